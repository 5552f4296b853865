"""Pictures that a run learns from: sources opened, mixed and encoded."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.buckets import describe_counts
from fewstep.data.kind import SourceRequest
from fewstep.data.latents import LatentSource
from fewstep.data.opening import check_pictures, open_pictures
from fewstep.data.reading import CropSettings, PictureReader
from fewstep.data.sources.base import DroppedError, Source, SourceReport, list_sizes
from fewstep.data.sources.prompts import is_prompt_file, open_prompts
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError, show
from fewstep.models.encoded import Keeping
from fewstep.models.encoding import KeptLatents, encode
from fewstep.models.family import LatentModel
from fewstep.recipes.pictures import PictureOptions, TrainingConfig, split_weight
from fewstep.recipes.plain import to_plain
from fewstep.roots import Root
from fewstep.runs.buckets import choose_buckets
from fewstep.runs.material import ENCODED, Material


def open_source(config: PictureOptions, data: str, resolution: int, seed: int) -> Source:
    """Opens what `data` names with the selection and the cache of a configuration."""
    selection = Selection(
        filters=config.filters, captions=config.caption_fields, lines=config.caption_lines,
        repeats=config.folder_repeats, follow_links=config.follow_links, squares=config.buckets == "off",
    )  # fmt: skip
    request = SourceRequest(
        data=data, resolution=resolution, seed=seed, count=config.pictures, selection=selection,
        cache_bytes=config.cache_bytes,
    )  # fmt: skip
    return open_pictures(request)


def check_named(config: PictureOptions) -> None:
    """Raises UserError where a source that a configuration names is not there."""
    for data in (config.data, *(split_weight(given)[0] for given in getattr(config, "mix", ()))):
        if not is_prompt_file(data):
            check_pictures(data)


def open_kind(
    config: TrainingConfig, model: LatentModel, resolution: int, *, captions: int, most: int, run: Path | None
) -> Material:
    """Opens pictures, and prints of one's own what was used and what was dropped."""
    given = [(config.data, 1.0), *map(split_weight, config.mix)]
    sources = [_open(config, data, resolution) for data, _ in given]
    count = sum(map(len, sources))
    shapes = choose_buckets(model, resolution) if config.buckets == "on" else ()
    cut = CropSettings(resolution=resolution, buckets=shapes, crop=config.crop, flip=config.flip)
    options: Any = {"settings": cut, "seed": config.seed, "workers": config.read_ahead, "ahead": config.batch_size}
    reading = PictureReader(sources, [weight for _, weight in given], **options)
    buckets = describe_counts(reading.count_sides(), config.batch_size)
    if most:
        sources, given = [_First(sources[0], most)], given[:1]
        reading = PictureReader(sources, [1.0], **options)
    words = [_read_caption(sources[0], i) for i in range(min(captions, len(sources[0])))]
    reports = [(data, source.report) for (data, _), source in zip(given, sources, strict=True)]
    account = {
        data: {"found": r.found, "used": r.used, "dropped": dict(r.dropped)}
        | ({"told": dict(r.told)} if r.told else {})
        for data, r in reports
    }
    for line in (*_list_shortages(dict(reports), config.batch_size), *buckets):
        print(line, flush=True)
    keeping = None if run is None else Keeping(run / ENCODED, describe_pictures(config))
    return Material(
        latents=lambda: (
            _encode_first(model, reading, config.keep_gib, count)
            if most
            else encode(model, reading, config.keep_gib, keeping)
        ),
        count=count,
        resolution=resolution,
        captions=words,
        account=account,
        identity=reading.hash_contents(),
        read_squares=lambda most: _read_squares(reading, most),
        read_captions=lambda most: _read_captions(sources, most),
    )


def _encode_first(model: LatentModel, reading: PictureReader, keep_gib: float, count: int) -> LatentSource:
    """Encodes as a run of `count` pictures would, of which `reading` has the first, and foretells how long that takes
    for all."""
    begun = time.perf_counter()
    latents = encode(model, reading, keep_gib, count=count)
    seconds = (time.perf_counter() - begun) * count / len(reading)
    if isinstance(latents, KeptLatents):
        print(
            f"encoding: about {timedelta(seconds=math.ceil(seconds))} before the first update, once, for {count:,} "
            f"pictures and their captions, judged by {len(reading)} of them; it comes on top of the time below",
            flush=True,
        )
    else:
        print("encoding: in every update anew, which the time below has in it", flush=True)
    return latents


def _read_squares(reading: PictureReader, most: int) -> list[Image.Image]:
    """Reads pictures that lie evenly over all sources, without those that cannot be read."""
    count = len(reading)
    squares = (reading.read(i * count // min(most, count)) for i in range(min(most, count)))
    return [square.image for square in squares if not square.reason]


def _read_captions(sources: Sequence[Source], most: int) -> Iterator[str]:
    """Yields the captions of the first pictures of each source."""
    return (_read_caption(source, i) for source in sources for i in range(min(most, len(source))))


def _open(config: TrainingConfig, data: str, resolution: int) -> Source:
    """Opens pictures, or prompts where a run looks at no picture."""
    if not is_prompt_file(data):
        return open_source(config, data, resolution, config.seed)
    if not getattr(config, "reads_captions_alone", False):
        raise UserError(
            f"{data} holds prompts and no pictures, which are enough for `fewstep distill` with --states walkers or "
            "--method tdm; give pictures"
        )
    return open_prompts(data, resolution)


def _list_shortages(reports: Mapping[str, SourceReport], batch_size: int) -> Iterator[str]:
    """Yields a warning for each source of which most is lost, and one where a batch holds pictures several times."""
    for data, report in reports.items():
        if (lost := sum(report.dropped.values())) > report.used:
            yield show(f"warning: {lost} of the {report.found} pictures of {data} are not used; see above why")
    count = sum(report.used for report in reports.values())
    if count < batch_size:
        yield (
            f"warning: there are fewer pictures ({count}) than an update takes ({batch_size}), so it sees some several "
            "times; give more pictures, or a smaller --batch-size"
        )


def describe_pictures(config: TrainingConfig) -> dict[str, Any]:
    """Returns what was chosen of which sources, and a hash of the names, sizes and times of all their files here."""
    chosen = (
        "data", "mix", "filters", "caption_fields", "caption_lines", "folder_repeats", "follow_links", "pictures",
        "seed", "crop", "buckets",
    )  # fmt: skip
    settings = to_plain(config)
    total = hashlib.sha256()
    for data in (config.data, *(split_weight(given)[0] for given in config.mix)):
        for name in sorted(_list_files(data, follow_links=config.follow_links)):
            with contextlib.suppress(OSError):
                status = Path(name).stat()
                total.update(f"{name} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return {**{name: settings[name] for name in chosen}, "files": total.hexdigest()}


def _list_files(data: str, *, follow_links: bool) -> list[str]:
    """Lists the files of a source on this machine: those of a folder, one file, or those that a pattern names."""
    from fewstep.data.sources.urls import expand_wildcards, is_remote  # slow, and not needed for scenes

    if os.path.isdir(data):
        return [os.path.join(data, name) for name, kind in Root(data, follow_links).walk() if kind == "file"]
    return [data] if is_remote(data) or os.path.isfile(data) else expand_wildcards(data)


def _read_caption(source: Source, index: int) -> str:
    try:
        return source.caption(index)
    except DroppedError:
        return ""


class _First:
    """The beginning of a source, as one shard."""

    def __init__(self, source: Source, most: int) -> None:
        self._source = source
        self.report = source.report
        self.shard_sizes = (min(most, len(source)),)
        self.key, self.caption, self.read, self.shard_name = source.key, source.caption, source.read, source.shard_name

    def measure(self) -> NDArray[np.int64]:
        return list_sizes(self._source)[: len(self)]

    def __len__(self) -> int:
        return self.shard_sizes[0]
