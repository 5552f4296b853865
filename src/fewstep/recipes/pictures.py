"""Where a recipe's pictures come from: scenes drawn on the fly, pictures of one's own, or latents made of them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tyro

from fewstep import assets
from fewstep.data.decoding import Limits
from fewstep.data.filters import Filters
from fewstep.data.latents import LatentSource
from fewstep.data.picking import Picking
from fewstep.data.prepared import PreparedShards, is_prepared
from fewstep.data.reading import Captioned, Crop, Cut, Reading
from fewstep.data.remote import CacheSettings
from fewstep.data.scene_drawing import SIDE, Look
from fewstep.data.scenes import SceneExamples, Scenes
from fewstep.data.source import DroppedError
from fewstep.data.sources import open_source
from fewstep.data.squares import SquarePictures
from fewstep.errors import UserError
from fewstep.models.encoding import encode
from fewstep.models.latent_model import LatentModel
from fewstep.models.prepared_latents import PreparedLatents, check_made_for
from fewstep.train.config import LoopConfig

LOOKS: dict[str, Look] = {assets.SCENES: "plain", assets.SCENES_LEANING: "leaning"}
_NOT_A_NAME = frozenset(":{*?[")  # of a folder: a URL or a pattern
_BETWEEN = "::"


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Which pictures, and which square of each."""

    data: str = assets.SCENES
    """`scenes` or `scenes-leaning` (drawn on the fly); a folder of pictures with .txt captions or a metadata.jsonl; tar
    shards or parquet files, as a path, URL or pattern (docs/data.md); for a training also a folder that
    `fewstep prepare` filled."""
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    """Which of one's own pictures are used, by their metadata."""
    caption_fields: tuple[str, ...] = ()
    """Fields or columns that hold the captions of shards, if not the usual ones."""
    cache_gib: float = 100.0
    """Room on this machine's disk for shards that lie elsewhere."""
    pictures: int = 8192
    """How many scenes are drawn; other sources are used whole."""
    resolution: int = 0
    """Side of the pictures in pixels; 0 takes the model's own."""
    crop: Crop = "middle"
    """Which square is cut out of a picture that is none; `random` cuts another one wherever it stands."""

    def __post_init__(self) -> None:
        for name, least in (("pictures", 1), ("resolution", 0), ("cache_gib", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")

    def side(self, model: LatentModel) -> int:
        """The resolution. Raises UserError where `model` cannot have it."""
        resolution = self.resolution or model.resolution
        if resolution % model.pixels_per_latent:
            raise UserError(f"resolution is {resolution}; the model needs a multiple of {model.pixels_per_latent}")
        return resolution

    def open(self, data: str, resolution: int, seed: int) -> PictureSource:
        """A source by name; of pictures of one's own it prints what was used and what was dropped."""
        if data not in LOOKS:
            picking = Picking(limits=Limits(side=resolution), filters=self.filters, captions=self.caption_fields)
            cache = CacheSettings(budget=int(self.cache_gib * 2**30))
            return open_own(data, resolution, picking, cache).source
        if self.filters != Filters() or self.caption_fields:
            raise UserError("scenes have no metadata to choose by; give your own pictures with --data")
        if resolution != SIDE:
            raise UserError(
                f"scenes are {SIDE} pixels wide and resolution is {resolution}; give your own pictures with --data"
            )
        return SceneExamples(Scenes(seed=seed, look=LOOKS[data]), self.pictures)


@dataclass(frozen=True, kw_only=True)
class PictureConfig(Pictures, LoopConfig):
    """What a training says of its pictures."""

    mix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further source and, after `::`, its weight beside that of --data, which is 1 (shards/::0.5); may be given
    several times. Each source is gone through in its own epochs."""
    flip: bool = False
    """Mirror every other picture, by chance. Not for captions that tell left from right."""
    keep_gib: float = 4.0
    """Latents and texts are encoded once and kept when they need at most this many GiB."""
    read_ahead: int = 0
    """Threads that read and decode the next batch while one is trained on; 0: none."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        Pictures.__post_init__(self)
        if self.read_ahead < 0:
            raise UserError(f"read_ahead is {self.read_ahead}; it must be at least 0")
        for given in self.mix:
            _weighed(given)


class PictureSource(Protocol):
    """What a run's pictures are read from."""

    @property
    def shard_sizes(self) -> Sequence[int]: ...

    def key(self, index: int) -> str: ...

    def caption(self, index: int) -> str: ...

    def read(self, index: int) -> Captioned: ...


@dataclass(frozen=True)
class Material:
    """What a run learns from."""

    latents: Callable[[], LatentSource]
    """Encodes them, if they are to be kept encoded."""
    count: int
    """Pictures that there are."""
    captions: list[str]
    """The first few."""
    account: dict[str, Any]
    """Of each source, what was found, used and dropped."""
    identity: str
    """Hash of what stands where."""


def open_material(config: PictureConfig, model: LatentModel, *, captions: int = 0, most: int = 0) -> Material:
    """All sources of a configuration, in its order, as `model` sees them; of the first one `most` pictures, if given.

    Of pictures of one's own it prints what was used and what was dropped.
    """
    resolution = config.side(model)
    if is_prepared(Path(config.data)):
        shards = PreparedShards(Path(config.data))
        _check_free(config, shards)
        check_made_for(shards, model, resolution)
        words = [shards.row(*shards.place(i)).caption for i in range(min(captions, len(shards)))]
        return Material(
            lambda: PreparedLatents(model, shards, config.seed),
            len(shards),
            words,
            {config.data: shards.report},
            shards.identity(),
        )
    given = [(config.data, 1.0), *map(_weighed, config.mix)]
    sources = [config.open(data, resolution, config.seed) for data, _ in given]
    count = sum(sum(source.shard_sizes) for source in sources)
    if most:
        sources, given = [_First(sources[0], most)], given[:1]
    reading = Reading(
        sources, [weight for _, weight in given], Cut(resolution=resolution, crop=config.crop, flip=config.flip),
        config.seed, workers=config.read_ahead, ahead=config.batch_size,
    )  # fmt: skip
    words = [_caption(sources[0], i) for i in range(min(captions, sum(sources[0].shard_sizes)))]
    account = {data: _account(source) for (data, _), source in zip(given, sources, strict=True)}
    return Material(lambda: encode(model, reading, config.keep_gib), count, words, account, reading.identity())


def _check_free(config: PictureConfig, shards: PreparedShards) -> None:
    """Raises UserError where a setting asks for what was settled when the latents were prepared."""
    plain = PictureConfig()
    asked = [
        name for name in ("mix", "filters", "caption_fields", "flip") if getattr(config, name) != getattr(plain, name)
    ]
    if config.crop not in (plain.crop, shards.made_of["crop"]):
        asked.append("crop")
    if asked:
        raise UserError(
            f"{shards.folder} holds latents, for which {', '.join(asked)} was settled when they were prepared"
        )


def _account(source: PictureSource) -> dict[str, Any]:
    report = getattr(source, "report", None)
    if report is None:
        count = sum(source.shard_sizes)
        return {"found": count, "used": count, "dropped": {}}
    return {"found": report.found, "used": report.used, "dropped": dict(report.dropped)}


def _caption(source: PictureSource, index: int) -> str:
    try:
        return source.caption(index)
    except DroppedError:
        return ""


def open_own(
    data: str, resolution: int, picking: Picking | None = None, cache: CacheSettings | None = None
) -> SquarePictures:
    """Captioned pictures of one's own (docs/data.md); prints what was used and what was dropped."""
    if not (Path(data).exists() or _NOT_A_NAME.intersection(data)):
        close = difflib.get_close_matches(data, LOOKS, n=1)
        hint = f"; did you mean {close[0]}?" if close else f"; known worlds are {' and '.join(LOOKS)}"
        raise UserError(f"data folder {data} does not exist{hint}")
    if is_prepared(Path(data)):
        raise UserError(f"{data} holds latents, and pictures are needed here; give those that it was prepared from")
    picking = picking or Picking(limits=Limits(side=resolution))
    pictures = SquarePictures(open_source(data, picking, cache), resolution)
    print("\n".join([pictures.report.line(), *pictures.report.examples()]), flush=True)
    return pictures


def _weighed(given: str) -> tuple[str, float]:
    data, between, weight = given.rpartition(_BETWEEN)
    if not between:
        return given, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UserError(f"mix is {given}; after {_BETWEEN} stands a weight above 0, as in {data or 'shards/'}::0.5")
    return data, value


@dataclass(frozen=True)
class _First:
    """The beginning of a source."""

    source: PictureSource
    most: int

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        return (min(self.most, sum(self.source.shard_sizes)),)

    def key(self, index: int) -> str:
        return self.source.key(index)

    def caption(self, index: int) -> str:
        return self.source.caption(index)

    def read(self, index: int) -> Captioned:
        return self.source.read(index)
