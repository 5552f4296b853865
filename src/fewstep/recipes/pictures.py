"""The settings of pictures, and those that every training on pictures shares, by which it sends what it made to the Hub
too."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import tyro

from fewstep import assets
from fewstep.data.sources.filters import Buckets, CaptionLines, Crop, Filters
from fewstep.errors import UserError
from fewstep.models.options import DeviceOptions, ModelOptions
from fewstep.precision import FrozenPrecision, Quantisation
from fewstep.train.config import LoopConfig, check_at_least

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,60}")


def check_license(name: str) -> str:
    """Returns the name of a license as the Hub spells it. Raises UserError for what none is called."""
    if not _LICENSE.fullmatch(name):
        raise UserError(
            f"license is {name!r:.80}; give the Hub's name of one, as apache-2.0, creativeml-openrail-m, openrail++ or "
            "other"
        )
    return name


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """Says whether, where and under which license a training publishes its model. Nothing is sent by default."""

    push_to_hub: str = ""
    """Repository of the Hub, as OWNER/NAME, to send the model to at the end, with its card and the last samples; `hf
    auth login` comes first. By default nothing is sent; `fewstep publish` does it later, and shows before what."""
    license: str = ""
    """License that the card names, in the Hub's spelling, as apache-2.0 or creativeml-openrail-m; the base's own may
    bind you. Without it a terminal is asked, before the training begins."""
    public: bool = False
    """Make a new repository open to all, and send to one that is; else it is private."""

    def __post_init__(self) -> None:
        if self.license:
            check_license(self.license)
        if not self.push_to_hub and (self.license or self.public):
            given = "--license" if self.license else "--public"
            raise UserError(f"{given} is for what is sent to the Hub; give --push-to-hub OWNER/NAME too")


_BETWEEN = "::"


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """Says which pictures a command reads, and which square of each."""

    data: str = assets.SCENES
    """Captioned pictures: `scenes`, `scenes-leaning`, `gallery` or `gallery-twemoji` (bundled, drawn on the fly); a
    folder of pictures with captions beside them or in a metadata.jsonl or .csv; or tar, parquet or Arrow shards, as a
    path, URL or pattern (docs/data.md). A training also takes the folder or URL that `fewstep prepare` filled; and a
    distillation that looks at no picture (--states walkers, --method tdm) a .txt file with a prompt on each line."""
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    """Use only some of your own pictures, by scores in their metadata. Every filter is off until it is given."""
    caption_fields: tuple[str, ...] = ()
    """Fields or columns that hold the captions. By default the usual names are tried."""
    caption_lines: CaptionLines = "join"
    """What a caption of several lines becomes: `join` makes one line of them, `draw` draws one of them anew each time,
    and `first` takes the first."""
    follow_links: bool = False
    """Read what links in the folder of your pictures lead to, wherever it is: pictures, captions, shards and folders.
    Without it a link out of the folder is counted and not read."""
    folder_repeats: bool = True
    """Obey the numbers of folders such as 10_cat and 1_dog: how often their pictures come in an epoch."""
    cache_gib: float = 100.0
    """Disk space in GiB for local copies of shards that are read over the network."""
    pictures: int = 8192
    """Number of scenes to draw. Other sources are used whole."""
    resolution: int = 0
    """Side length of the pictures in pixels; 0 takes the model's own."""
    buckets: Buckets = "off"
    """Whether each picture keeps about its aspect: `on` crops it to the nearest of some shapes of about the area that
    --resolution has squared, and batches are of one shape each; `off` crops squares. Switch it on where squares would
    cut off what captions tell of."""
    crop: Crop = "middle"
    """Square, or with buckets shape, to cut out of a picture of another: its `middle`, or a `random` one, drawn anew
    each time."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "pictures")
        check_at_least(self, 0, "resolution", "cache_gib")

    @property
    def cache_bytes(self) -> int:
        """Returns the disk space for local copies of shards."""
        return int(self.cache_gib * 2**30)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(PictureOptions, LoopConfig, HubOptions, ModelOptions, DeviceOptions):
    """What every training on captioned pictures shares."""

    mix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A further source of pictures, with its weight after `::`, as in `shards/::0.5`; --data has the weight 1. Each
    source is gone through in its own epochs. May be given several times."""
    flip: bool = False
    """Mirror each picture with probability 1/2. Leave it off for captions that tell left from right."""
    keep_gib: float = 4.0
    """Encode pictures and captions once, and keep the results, if they need at most this many GiB; else encode them
    anew for every update."""
    read_ahead: int = 4
    """Threads that read and decode the next batch during an update; 0 reads it in between. Raise it when the GPU waits
    for pictures all the same."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    compile: Literal["off", "blocks"] = "off"
    """Have torch.compile compute the blocks that the networks repeat, each kind compiled once: from one to some minutes
    at the first update, and equal to within rounding. For long runs of one process, on large networks."""
    frozen_precision: FrozenPrecision = "auto"
    """Number format in which weights that are not trained are stored. `auto` takes what networks compute in; bf16 and
    fp16 halve their memory. Under adapters `int8` and `nf4` (need fewstep[8bit]) hold the base in 8 or 4 bits: take
    them where a card does not hold it in 16. `int8` rounds weights by 0.6%, `nf4` by 9%, and pictures painted along the
    way are of the rounded base."""

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        PictureOptions.__post_init__(self)
        HubOptions.__post_init__(self)
        check_at_least(self, 0, "read_ahead")
        for given in self.mix:
            split_weight(given)

    def check_spread_base(self) -> None:
        """Raises UserError for what does not go with a base of which every process holds a part."""
        if self.quantisation:
            raise UserError(
                f"frozen_precision {self.frozen_precision} is held whole in every process; give --distribution ddp, or "
                "--frozen-precision bf16"
            )

    @property
    def quantisation(self) -> Quantisation | None:
        """Returns the bits that a base is held in, if they are fewer than a format's. Raises UserError without
        bitsandbytes."""
        match self.frozen_precision:
            case "int8" | "nf4":
                if find_spec("bitsandbytes") is None:
                    raise UserError(
                        f"frozen_precision {self.frozen_precision} needs bitsandbytes: pip install 'fewstep[8bit]'"
                    )
                return self.frozen_precision
            case _:
                return None


def split_weight(given: str) -> tuple[str, float]:
    """Splits `DATA::WEIGHT`; without a weight it is 1. Raises UserError where the weight is not above 0."""
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
