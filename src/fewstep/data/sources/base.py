"""The interface of a source of captioned pictures, and the counting of what it cannot use."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewstep.data.sources.filters import Reason

KEPT_NAMES = 20
"""Most names kept for each reason, where a source is too large to keep all."""


_NOT_PICTURES = frozenset(
    (
        Reason.BAD_LINE, Reason.REPEATED_LINE, Reason.BAD_METADATA, Reason.MISSING, Reason.NOT_DOWNLOADED,
        Reason.OUTSIDE, Reason.LINKED_OUTSIDE, Reason.NOT_SEARCHED, Reason.NOT_A_FILE, Reason.DAMAGED_SHARD,
        Reason.MISSING_SHARD,
    )
)  # fmt: skip
_COUNTABLE = frozenset(
    (
        Reason.BROKEN, Reason.UNREADABLE, Reason.UNSUPPORTED, Reason.EMPTY_CAPTION, Reason.BAD_LINE,
        Reason.REPEATED_LINE, Reason.MISSING, Reason.NOT_SEARCHED, Reason.REPEATED_NAME, Reason.DAMAGED_SHARD,
        Reason.MISSING_SHARD, Reason.CHANGED_SHARD,
    )
)  # fmt: skip


class DroppedError(Exception):
    """Raised for a picture that cannot be used; `key` is empty where its name is not known yet."""

    def __init__(self, reason: str, key: str = "") -> None:
        super().__init__(reason, key)
        self.reason, self.key = reason, key

    def __str__(self) -> str:
        return f"{escape_line(self.key)}: {self.reason}" if self.key else str(self.reason)


@dataclass(frozen=True)
class Example:
    """An RGB picture, upright and uncropped unless said otherwise, and its caption."""

    image: Image.Image
    caption: str
    others: tuple[str, ...] = ()
    """Further captions of the same picture: at each position of a run, one of them all is drawn."""
    reduced: int = 1
    """How many times smaller than the file's its sides are, where it was decoded so to save time."""


@dataclass(frozen=True, kw_only=True)
class SourceReport:
    """The counts of an opened source: found = used + everything dropped."""

    found: int
    """Pictures and other entries: metadata without a picture, folders that were not searched."""
    used: int
    """Pictures with a caption that pass the filters."""
    dropped: Mapping[str, int]
    """Counts what was dropped, for each reason that occurred."""
    names: Mapping[str, Sequence[str]]
    """The first few dropped for each reason, in order: names, or numbers of metadata lines."""
    told: Mapping[str, int] = field(default_factory=dict)
    """How many of the used pictures something is worth saying of: `smaller than 512 pixels, and enlarged`."""
    notes: Sequence[str] = ()
    """What else was found out about the source, a line each."""

    def __post_init__(self) -> None:
        if self.found != self.used + sum(self.dropped.values()):
            raise ValueError(f"{self.found} found is not {self.used} used and {dict(self.dropped)} dropped")

    def format_summary(self) -> str:
        """Returns `data: 12 pictures found, 9 used, 3 dropped (1 broken picture, 2 without caption)` or the like."""
        noun = "picture" if self.found == 1 else "pictures"
        if not _NOT_PICTURES.isdisjoint(self.dropped):
            noun = "pictures and other entries"
        counts = f"data: {self.found} {noun} found, {self.used} used, {sum(self.dropped.values())} dropped"
        reasons = ", ".join(_pluralise(count, reason) for reason, count in self.dropped.items())
        return f"{counts} ({reasons})" if reasons else counts

    def format_report(self) -> str:
        """Returns the summary, what was dropped, and what is worth saying of the rest, a line each."""
        told = [f"  {what}: {count}" for what, count in self.told.items()]
        return "\n".join([self.format_summary(), *self.format_dropped(), *told, *(f"  {note}" for note in self.notes)])

    def format_advice(self) -> str:
        """Returns which option reads more of what was dropped; empty where none does."""
        linked = str(Reason.LINKED_OUTSIDE) in self.dropped
        return f"; --follow-links reads what is {Reason.LINKED_OUTSIDE}" if linked else ""

    def format_dropped(self, most: int = 3) -> list[str]:
        """Returns a line for each reason, with the first names: `  broken picture: a.png, b.png and 4 more`."""
        lines = []
        for reason, count in self.dropped.items():
            first = [escape_line(name) for name in self.names.get(reason, ())[:most]]
            more = f" and {count - len(first)} more" if count > len(first) else ""
            option = " (--follow-links reads them)" if reason == Reason.LINKED_OUTSIDE else ""
            lines.append(f"  {reason}: {', '.join(first)}{more}{option}")
        return lines


def _pluralise(count: int, reason: str) -> str:
    return f"{count} {reason}{'s' if reason in _COUNTABLE and count > 1 else ''}"


class Tally:
    """Counts what is used and what is dropped, and makes the report, with reasons in the order of `Reason`."""

    def __init__(self, kept_names: int | None = KEPT_NAMES) -> None:
        self.used = 0
        self.told: Counter[str] = Counter()
        self.notes: list[str] = []
        self.names: defaultdict[str, list[str]] = defaultdict(list)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._kept_names = kept_names

    def drop(self, reason: str, name: str) -> None:
        self._counts[str(reason)] += 1
        self._keep_names(str(reason), [name])

    def add(self, dropped: Mapping[str, int], names: Mapping[str, Iterable[str]]) -> None:
        """Adds the counts of a part, and its names while there is room."""
        for reason, count in dropped.items():
            self._counts[str(reason)] += count
            self._keep_names(str(reason), names.get(reason, ()))

    def _keep_names(self, reason: str, names: Iterable[str]) -> None:
        kept = self.names[reason]
        kept.extend(names if self._kept_names is None else itertools.islice(names, self._kept_names - len(kept)))

    @property
    def dropped(self) -> dict[str, int]:
        order = {str(reason): place for place, reason in enumerate(Reason)}
        return dict(sorted(self._counts.items(), key=lambda item: order.get(item[0], len(order))))

    def report(self) -> SourceReport:
        dropped = self.dropped
        found = self.used + sum(dropped.values())
        return SourceReport(
            found=found, used=self.used, dropped=dropped, names={reason: self.names[reason] for reason in dropped},
            told=dict(self.told), notes=tuple(self.notes),
        )  # fmt: skip


class Source(Protocol):
    """Captioned pictures in shards, numbered across all shards; nothing is decoded before it is read."""

    @property
    def report(self) -> SourceReport:
        """Returns what was found when the source was opened, and what of it is used."""
        ...

    @property
    def shard_sizes(self) -> Sequence[int]:
        """Returns the number of usable pictures in each shard, in order; a folder is one shard."""
        ...

    def __len__(self) -> int:
        """Returns the sum of `shard_sizes`."""
        ...

    def key(self, index: int) -> str:
        """Returns a lasting name of the picture: `shard-00012.tar/000123456.jpg`, `cats/one.png`."""
        ...

    def shard_name(self, shard: int) -> str:
        """Returns the name of the shard with this number."""
        ...

    def caption(self, index: int) -> str:
        """Returns the caption without decoding the picture. Raises DroppedError as `read` does."""
        ...

    def read(self, index: int) -> Example:
        """Decodes the whole picture. Raises DroppedError where it cannot be read or its shard has changed."""
        ...


def list_repeats(source: Source) -> tuple[int, ...]:
    """Returns how often the pictures of each shard come in an epoch: once, unless a source has `shard_repeats`."""
    return tuple(getattr(source, "shard_repeats", ())) or (1,) * len(source.shard_sizes)


def list_sizes(source: Source) -> NDArray[np.int64]:
    """Returns width and height of every upright picture, `[n, 2]`, as its header says: 0 × 0 where it does not.

    So it is too of a source without `measure`, whose pictures are all square. Raises UserError where they cannot be
    known before the pictures are used.
    """
    measure = getattr(source, "measure", None)
    return np.zeros((len(source), 2), np.int64) if measure is None else measure()


def escape_line(text: object) -> str:
    """Returns the text unchanged, or escaped where it would break the line or the terminal."""
    return str(text) if str(text).isprintable() else ascii(str(text))
