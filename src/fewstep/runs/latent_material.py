"""Latents that were encoded beforehand, as what a run learns from."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.data import draws
from fewstep.data.buckets import BucketedOrder, describe_counts
from fewstep.data.latents import LatentSource
from fewstep.data.shards.bucketed import BucketedShards
from fewstep.data.shards.prepared import PreparedShards
from fewstep.data.sources.remote import CacheSettings
from fewstep.errors import UserError
from fewstep.models.family import LatentModel
from fewstep.models.prepared_latents import PreparedLatents, check_made_for
from fewstep.recipes.pictures import TrainingConfig
from fewstep.runs.buckets import choose_buckets
from fewstep.runs.material import Material


def open_kind(config: TrainingConfig, model: LatentModel, resolution: int, *, captions: int, **_: object) -> Material:
    """Opens the latents of a folder. Raises UserError where they were made for another model."""
    buckets = choose_buckets(model, resolution) if config.buckets == "on" else ()
    kind = BucketedShards if buckets else PreparedShards
    shards = kind(config.data, follow_links=config.follow_links, cache=CacheSettings(budget=config.cache_bytes))
    check_made_for(shards, model, resolution, buckets)
    order = None
    if isinstance(shards, BucketedShards):
        print("\n".join(describe_counts(shards.count_sides(), config.batch_size)), flush=True)
        seed = draws.key(config.seed, "source", 0)
        order = BucketedOrder(seed, config.batch_size, shards.shard_sizes, shards.bucket_of, shards.shard_repeats)
    return describe_shards(
        config, shards, resolution, captions, len(shards), lambda: PreparedLatents(model, shards, config.seed, order)
    )


def describe_shards(
    config: TrainingConfig, shards: PreparedShards, resolution: int, captions: int, count: int,
    latents: Callable[[], LatentSource],
) -> Material:  # fmt: skip
    _check_free(config, shards)
    return Material(
        latents=latents,
        count=count,
        resolution=resolution,
        captions=[shards.read_row(*shards.locate(i)).caption for i in range(min(captions, len(shards)))],
        account={config.data: shards.report},
        identity=shards.hash_contents(),
        read_captions=lambda most: (shards.read_row(*shards.locate(i)).caption for i in range(min(most, len(shards)))),
    )


def _check_free(config: TrainingConfig, shards: PreparedShards) -> None:
    """Raises UserError where a setting asks for what was settled when the latents were prepared."""
    plain = TrainingConfig()
    asked = [
        name
        for name in ("mix", "filters", "caption_fields", "caption_lines", "folder_repeats", "flip")
        if getattr(config, name) != getattr(plain, name)
    ]
    if config.crop not in (plain.crop, shards.made_of.get("crop")):
        asked.append("crop")
    if asked:
        raise UserError(
            f"{shards.place} holds {shards.kind}, for which {', '.join(asked)} was settled when they were prepared"
        )
