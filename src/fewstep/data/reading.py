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
from fewstep.data.choices import Crop
from fewstep.data.latents import DroppedPicture
from fewstep.data.order import Indices, MixedSampleOrder, SampleOrder
from fewstep.data.sources.base import DroppedError, Example, Source, list_repeats
from fewstep.data.sources.fitting import fit_square

T = TypeVar("T")
Sizes = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """How a square is cropped from a picture whose shorter side was resized to `resolution`."""

    resolution: int
    crop: Crop = "middle"
    flip: bool = False
    """Mirror a picture with probability 1/2."""

    @property
    def is_fixed(self) -> bool:
        """Tells whether a picture gives the same square at every position."""
        return self.crop == "middle" and not self.flip


@dataclass(frozen=True)
class Square:
    """A cropped picture."""

    image: Image.Image
    caption: str
    sizes: Sizes
    """Height and width of the whole picture; top and left of the square in the resized picture; height and width of the
    square: Stable Diffusion XL's added conditions (arXiv 2307.01952, 2.2)."""
    reason: str = ""
    """Why the picture could not be read; the square is then grey and the caption empty."""
    captions: tuple[str, ...] = ()
    """All captions of the picture, of which `caption` was drawn."""


def draw_caption(captions: Sequence[T], seed: int, counter: int) -> T:
    """Draws the caption for this position from those of its picture."""
    return captions[draws.key(seed, "caption", counter) % len(captions)] if len(captions) > 1 else captions[0]


def crop_square(picture: Example, settings: CropSettings, seed: int, counter: int) -> Square:
    """Crops the square for this position. A flipped square has its place in the flipped picture."""
    image, side = picture.image, settings.resolution
    if settings.flip and float(draws.uniform(seed, "flip", [counter])[0]) < 0.5:
        image = ImageOps.mirror(image)
    short = min(image.size)
    width, height = (round(length * side / short) for length in image.size)
    left, top = (width - side) // 2, (height - side) // 2
    if settings.crop == "random":
        u = float(draws.uniform(seed, "crop", [counter])[0])  # one of the two has no room
        left, top = int(u * (width - side + 1)), int(u * (height - side + 1))
    square = fit_square(image, side, (left, top))
    captions = (picture.caption, *picture.others)
    caption = draw_caption(captions, seed, counter)
    height, width = (length * picture.reduced for length in (image.height, image.width))
    return Square(square, caption, (height, width, top, left, side, side), captions=captions)


class PictureReader:
    """Reads the pictures of one run from its sources.

    With `workers` threads, the next batch is read and decoded while the current one is used. The order does not
    depend on the number of threads.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], settings: CropSettings, seed: int, *,
        workers: int = 0, ahead: int = 0,
    ) -> None:  # fmt: skip
        """`ahead` is how many positions before its use a picture is read: the size of a whole batch."""
        orders = tuple(
            SampleOrder(draws.key(seed, "source", i), tuple(source.shard_sizes), repeats=list_repeats(source))
            for i, source in enumerate(sources)
        )
        self._order = orders[0] if len(orders) == 1 else MixedSampleOrder(seed, orders, tuple(weights))
        self._sources, self.crop_settings, self._seed, self._ahead = sources, settings, seed, ahead
        self._starts = np.cumsum([0, *(sum(source.shard_sizes) for source in sources)])
        self._pool = ThreadPoolExecutor(workers, "reading") if workers else None
        self._waiting: dict[int, Future[Square]] = {}

    def __len__(self) -> int:
        """Returns the number of pictures in all sources."""
        return int(self._starts[-1])

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
        """Hashes the names of the pictures in order, so that a picture or shard added or removed is noticed."""
        return hash_sources(self._sources)

    def read(self, index: int, counter: int = 0) -> Square:
        """Reads the picture with this index and crops it as this position requires."""
        source, inside = self._locate(index)
        try:
            return crop_square(source.read(inside), self.crop_settings, self._seed, counter)
        except DroppedError as dropped:
            side = self.crop_settings.resolution
            grey = Image.new("RGB", (side, side), (128, 128, 128))
            return Square(grey, "", (side, side, 0, 0, side, side), str(dropped.reason), ("",))

    def read_in_turn(self, chunks: Iterable[range]) -> Iterator[list[Square]]:
        """Yields the pictures of each range of indices; with threads the next range is read while one is used."""
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
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._sources[number], index - int(self._starts[number])


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
