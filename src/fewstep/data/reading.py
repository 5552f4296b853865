"""Reads and crops the pictures at the positions of a run, on demand or ahead of time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from fewstep.data import draws
from fewstep.data.buckets import BucketedOrder, Sides, find_buckets
from fewstep.data.latents import DroppedPicture
from fewstep.data.order import Indices, MixedSampleOrder, Order, SampleOrder
from fewstep.data.sources.base import DroppedError, Example, Source, list_repeats, list_sizes
from fewstep.data.sources.filters import Crop
from fewstep.data.sources.fitting import find_covering, fit_sides

T = TypeVar("T")
Sizes = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How a square is cropped from a picture whose shorter side was resized to `resolution`, or the shape of its bucket
    from one that was resized until it covers that."""

    resolution: int
    buckets: tuple[Sides, ...] = ()
    """Lists shapes, of which each picture has the nearest; without any it is the square."""
    crop: Crop = "middle"
    flip: bool = False
    """Mirror a picture with probability 1/2."""

    @property
    def is_fixed(self) -> bool:
        """Tells whether a picture is cropped alike at every position."""
        return self.crop == "middle" and not self.flip


@dataclass(frozen=True)
class Square:
    """A cropped picture, which is a square unless there are buckets."""

    image: Image.Image
    caption: str
    sizes: Sizes
    """Height and width of the whole picture; top and left of what was cropped in the resized picture; height and width
    of what was cropped: Stable Diffusion XL's added conditions (arXiv 2307.01952, 2.2)."""
    reason: str = ""
    """Why the picture could not be read; what was cropped is then grey and the caption empty."""
    captions: tuple[str, ...] = ()
    """All captions of the picture, of which `caption` was drawn."""


def draw_caption(captions: Sequence[T], seed: int, counter: int) -> T:
    """Draws the caption for this position from those of its picture."""
    return captions[draws.key(seed, "caption", counter) % len(captions)] if len(captions) > 1 else captions[0]


def crop_picture(
    picture: Example, settings: CropSettings, seed: int, counter: int, sides: Sides | None = None
) -> Square:  # fmt: skip
    """Crops what this position wants: the square, or with `sides` what is so high and wide. What is flipped has its
    place in the flipped picture."""
    image, (high, wide) = picture.image, sides or (settings.resolution, settings.resolution)
    if settings.flip and float(draws.uniform(seed, "flip", [counter])[0]) < 0.5:
        image = ImageOps.mirror(image)
    width, height = find_covering(image.size, (wide, high))
    left, top = (width - wide) // 2, (height - high) // 2
    if settings.crop == "random":
        u = float(draws.uniform(seed, "crop", [counter])[0])  # one of the two has no room
        left, top = int(u * (width - wide + 1)), int(u * (height - high + 1))
    square = fit_sides(image, (wide, high), (left, top))
    captions = (picture.caption, *picture.others)
    caption = draw_caption(captions, seed, counter)
    height, width = (length * picture.reduced for length in (image.height, image.width))
    return Square(square, caption, (height, width, top, left, high, wide), captions=captions)


class PictureReader:
    """Reads the pictures of one run from its sources.

    With `workers` threads, the next batch is read and decoded while the current one is used. The order does not
    depend on the number of threads.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], settings: CropSettings, seed: int, *,
        workers: int = 0, ahead: int = 0,
    ) -> None:  # fmt: skip
        """`ahead` is how many positions before its use a picture is read: the size of a whole batch.

        With buckets that batch is of one of them, whose pictures follow from their headers. Raises UserError where
        those cannot be read.
        """
        self._sources, self.crop_settings, self._seed, self._ahead = sources, settings, seed, ahead
        self._starts = np.cumsum([0, *(sum(source.shard_sizes) for source in sources)])
        self._buckets = [find_buckets(list_sizes(source), settings.buckets) for source in sources if settings.buckets]
        orders = tuple(self._make_order(i, source) for i, source in enumerate(sources))
        together = ahead if settings.buckets else 1
        self._order = orders[0] if len(orders) == 1 else MixedSampleOrder(seed, orders, tuple(weights), together)
        self._pool = ThreadPoolExecutor(workers, "reading") if workers else None
        self._waiting: dict[int, Future[Square]] = {}

    def __len__(self) -> int:
        """Returns the number of pictures in all sources."""
        return int(self._starts[-1])

    def _make_order(self, number: int, source: Source) -> Order:
        seed, sizes, repeats = draws.key(self._seed, "source", number), tuple(source.shard_sizes), list_repeats(source)
        if not self._buckets:
            return SampleOrder(seed, sizes, repeats=repeats)
        return BucketedOrder(seed, self._ahead, sizes, self._buckets[number], repeats)

    def sides(self, index: int) -> Sides:
        """Returns height and width that the picture with this index is cropped to."""
        if not self._buckets:
            return self.crop_settings.resolution, self.crop_settings.resolution
        number = self._find_source(index)
        return self.crop_settings.buckets[self._buckets[number][index - self._starts[number]]]

    def sides_at(self, counters: range) -> Sides:
        """Returns those of the pictures at these positions, which are of one batch."""
        return self.sides(int(self.indices(counters[:1])[0]))

    def count_sides(self) -> dict[Sides, int]:
        """Returns how many pictures lie in each bucket that has any; nothing without buckets."""
        counts = np.bincount(np.concatenate(self._buckets)) if self._buckets else np.zeros(0, np.int64)
        return {self.crop_settings.buckets[bucket]: int(counts[bucket]) for bucket in np.flatnonzero(counts)}

    def list_chunks(self, indices: range, most: int) -> list[Sequence[int]]:
        """Splits pictures into parts of at most so many: consecutive ones, or with buckets those of one each."""
        if not self._buckets:
            return [indices[start : start + most] for start in range(0, len(indices), most)]
        buckets = np.concatenate(self._buckets)[indices.start : indices.stop]
        groups = [indices.start + np.flatnonzero(buckets == bucket) for bucket in np.unique(buckets)]
        return [group[start : start + most].tolist() for group in groups for start in range(0, len(group), most)]

    def indices(self, counters: Sequence[int]) -> Indices:
        """Returns the index of the picture at each position, counted through all sources."""
        return self._order(counters)

    def key(self, index: int) -> str:
        """Returns the name of the picture with this index."""
        source, inside = self._locate(index)
        try:
            return source.key(inside)
        except DroppedError as dropped:  # its shard is gone
            return dropped.key or f"picture {index}"

    def draw_caption(self, captions: Sequence[T], counter: int) -> T:
        """Draws the caption for this position from those of its picture."""
        return draw_caption(captions, self._seed, counter)

    def hash_contents(self) -> str:
        """Hashes the names of the pictures in order, and their buckets if there are any, so that it is noticed where a
        picture or shard was added or removed."""
        total = hash_sources(self._sources)
        buckets = b"".join(each.tobytes() for each in self._buckets)
        return hashlib.sha256(total.encode() + buckets).hexdigest() if buckets else total

    def read(self, index: int, counter: int = 0) -> Square:
        """Reads the picture with this index and crops it as this position requires."""
        (source, inside), sides = self._locate(index), self.sides(index)
        try:
            return crop_picture(source.read(inside), self.crop_settings, self._seed, counter, sides)
        except DroppedError as dropped:
            grey = Image.new("RGB", sides[::-1], (128, 128, 128))
            return Square(grey, "", (*sides, 0, 0, *sides), str(dropped.reason), ("",))

    def read_in_turn(self, chunks: Iterable[Sequence[int]]) -> Iterator[list[Square]]:
        """Yields the pictures of each of these parts; with threads the next part is read while one is used."""
        if self._pool is None:
            yield from ([self.read(i) for i in chunk] for chunk in chunks)
            return
        before: list[Future[Square]] = []
        for chunk in chunks:
            futures = [self._pool.submit(self.read, i) for i in chunk]
            if before:
                yield [future.result() for future in before]
            before = futures
        yield [future.result() for future in before]

    def read_squares(self, counters: range) -> list[Square]:
        """Reads and crops the pictures at these positions."""
        if self._pool is None:
            return [self.read(int(index), i) for i, index in zip(counters, self.indices(counters), strict=True)]
        for batch in (counters, range(counters.start + self._ahead, counters.stop + self._ahead)):
            for i, index in zip(batch, self.indices(batch), strict=True):
                if i not in self._waiting:
                    self._waiting[i] = self._pool.submit(self.read, int(index), i)
        return [self._waiting.pop(i).result() for i in counters]

    def list_dropped(self, counters: range, squares: Sequence[Square]) -> list[DroppedPicture]:
        """Lists the pictures of a batch that could not be read."""
        lost = [(i, square.reason) for i, square in zip(counters, squares, strict=True) if square.reason]
        return [DroppedPicture(i, self.key(int(self.indices([i])[0])), reason) for i, reason in lost]

    def _locate(self, index: int) -> tuple[Source, int]:
        number = self._find_source(index)
        return self._sources[number], index - int(self._starts[number])

    def _find_source(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


_MOST_KEYS = 100_000


def hash_sources(sources: Sequence[Source]) -> str:
    """Hashes the names of all pictures; of a very large source only the names and sizes of the shards."""
    total = hashlib.sha256()
    for source in sources:
        sizes = source.shard_sizes
        total.update(f"{len(sizes)} shards\n".encode())
        if (repeats := list_repeats(source)) != (1,) * len(sizes):
            total.update(f"repeated {repeats}\n".encode())
        total.update(getattr(source, "contents_sha256", "").encode())  # of what has no names that change with it
        if sum(sizes) <= _MOST_KEYS:
            names = [source.key(i) for i in range(sum(sizes))]
        else:
            names = [f"{source.shard_name(number)} {size}" for number, size in enumerate(sizes)]
        total.update("\n".join(names).encode(errors="surrogateescape"))
    return total.hexdigest()
