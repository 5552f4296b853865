"""Reads a picture of the gallery: which things of which sizes it shows, in what arrangement, on which ground."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.data.worlds.gallery_art import list_names
from fewstep.data.worlds.gallery_scene import ARRANGEMENTS, GROUNDS, SIZES, GalleryScene, GalleryThing
from fewstep.evaluate.reader import load_into

LAYOUTS = (*(name for names in ARRANGEMENTS.values() for name in names), "unreadable")
GRID = 8
"""Cells along a side; each tells whether a thing has its centre there, and which."""
FEATURES = 128
_COUNTS = {name: count for count, names in ARRANGEMENTS.items() for name in names}


class GalleryReader(nn.Module):
    """Classifies 64×64 pictures as a whole, and each cell of an 8×8 grid on them."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(_convolve(3, 32, 2), _convolve(32, 64, 2), _Residual(64))
        self.middle = nn.Sequential(_convolve(64, 128, 2), _Residual(128))
        self.coarse = nn.Sequential(_convolve(128, 160, 2), _Residual(160), nn.Conv2d(160, 128, 1))
        self.joined = nn.Sequential(_Residual(128), _Residual(128))
        self.cells = nn.Conv2d(128, 1 + len(SIZES) + len(list_names()), 1)
        self.whole = nn.Sequential(nn.Flatten(), nn.Linear(32 * GRID**2, FEATURES))
        self.narrow = nn.Conv2d(128, 32, 1)
        self.heads = nn.Sequential(nn.GELU(), nn.Linear(FEATURES, len(LAYOUTS) + len(GROUNDS)))

    def grid(self, pixels: Tensor) -> Tensor:
        """Maps `[b, 3, 64, 64]` in [−1, 1] to `[b, 128, 8, 8]`."""
        middle = self.middle(self.fine(pixels.contiguous(memory_format=torch.channels_last)))
        grid: Tensor = self.joined(middle + functional.interpolate(self.coarse(middle), scale_factor=2.0))
        return grid

    def answer(self, grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns features `[b, 128]`, which the Fréchet distance compares, the logits of layout and ground `[b, k]`,
        and those of a thing's presence, size and name in every cell `[b, k, 8, 8]`."""
        features = self.whole(self.narrow(grid))
        layout, ground = self.heads(features).split((len(LAYOUTS), len(GROUNDS)), dim=1)
        presence, size, name = self.cells(grid).split((1, len(SIZES), len(list_names())), dim=1)
        return features, layout, ground, presence, size, name

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Returns what `answer` does, of pixels."""
        return self.answer(self.grid(pixels))


def _convolve(narrow: int, wide: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(narrow, wide, 3, stride, 1), nn.GroupNorm(8, wide), nn.GELU())


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolve(width, width), nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width))

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(x + self.body(x))


@torch.no_grad()
def read_gallery(
    reader: GalleryReader, pixels: Tensor, batch_size: int = 256
) -> tuple[list[GalleryScene | None], Tensor]:
    """Returns what each picture `[n, 3, 64, 64]` shows (None: unreadable), and its features `[n, 128]`."""
    scenes: list[GalleryScene | None] = []
    features = []
    for part in pixels.split(batch_size):
        feature, layout, ground, *cells = reader(part)
        features.append(feature)
        layouts, grounds = layout.argmax(1).tolist(), ground.argmax(1).tolist()
        for i, (which, under) in enumerate(zip(layouts, grounds, strict=True)):
            presence, size, name = (each[i] for each in cells)
            scenes.append(_to_scene(LAYOUTS[which], GROUNDS[under], presence[0], size.argmax(0), name.argmax(0)))
    return scenes, torch.cat(features)


def _to_scene(layout: str, ground: str, presence: Tensor, size: Tensor, name: Tensor) -> GalleryScene | None:
    """Takes as many things as the layout has, where presence peaks; None where two are the same, which no scene has."""
    if layout == "unreadable":
        return None
    found = _order(layout, _find_peaks(presence, _COUNTS[layout]))
    things = tuple(GalleryThing(list_names()[int(name[y, x])], SIZES[int(size[y, x])]) for y, x in found)
    if len({thing.name for thing in things}) < len(things):
        return None
    return GalleryScene(things, layout, ground)


def _find_peaks(presence: Tensor, count: int) -> list[tuple[int, int]]:
    """Returns row and column of the `count` strongest cells of which none touches another."""
    left = presence.float().clone()
    peaks = []
    for _ in range(count):
        y, x = divmod(int(left.argmax()), left.shape[1])
        peaks.append((y, x))
        left[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = -torch.inf
    return peaks


def _order(layout: str, peaks: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Lists cells as scenes list things: from top to bottom, in a row from left to right."""

    def column(peak: tuple[int, int]) -> int:
        return peak[1]

    if layout == "side by side":
        return sorted(peaks, key=column)
    peaks = sorted(peaks)
    if layout == "one above two":
        return [peaks[0], *sorted(peaks[1:], key=column)]
    return [*sorted(peaks[:2], key=column), peaks[2]] if layout == "two above one" else peaks


def load_gallery_reader(folder: Path) -> GalleryReader:
    """Loads the reader as `save_reader` saved it."""
    return load_into(GalleryReader(), folder)
