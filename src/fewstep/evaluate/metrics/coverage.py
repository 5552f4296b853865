"""Coverage on the gallery: how far pictures of one prompt are from the exact distribution that it leaves open."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewstep.data.worlds.gallery_art import list_names
from fewstep.data.worlds.gallery_scene import ARRANGEMENTS, AXES, GROUNDS, SIZES, GalleryScene, GalleryThing
from fewstep.evaluate.bench import Bench, Metric, PaintedBatch
from fewstep.evaluate.columns import Column
from fewstep.evaluate.gallery_bench import GalleryJudge, describe_coverage, list_repeated
from fewstep.evaluate.gallery_coverage import measure_coverage
from fewstep.evaluate.gallery_reader import LAYOUTS

COVERAGE = Column(
    "coverage",
    "Total variation distance, 0 to 1, of what pictures of one prompt show from the exact distribution of all that the "
    "prompt leaves open: the mean over prompts, and over things, sizes, places and grounds. Less is better; pictures "
    "that collapse on one answer, or are wrong, are far. As many real pictures have some of it too.",
    heading="cover",
    better="less",
    curve_label="distance from what prompts leave open",
)
TO_REAL = Column(
    "coverage_to_real",
    "The same as a multiple of that of as many real pictures, read by the same reader: 1 is as varied as real ones.",
    heading="to real",
    better="less",
)
REPEATS = Column(
    "repeats",
    "Share of the pairs of pictures of one prompt that show the very same scene. Real ones seldom do.",
    heading="same",
    better="less",
)
BY_AXIS = tuple(
    Column(f"coverage_{axis}", f"Coverage of {axis}s alone.", on_terminal=False, better="less") for axis in AXES
)


_NUMBERS = 2 + 2 * max(ARRANGEMENTS)


def keep_scenes(batch: PaintedBatch) -> Tensor | None:
    """Returns int16 `[b, 8]`: what the gallery's reader reads in each picture, as numbers."""
    reader = batch.bench.reader
    if not isinstance(reader, GalleryJudge):
        return None
    return torch.tensor([to_numbers(scene) for scene in reader.read(batch.pictures)], dtype=torch.int16)


def to_numbers(scene: GalleryScene | None) -> list[int]:
    """Returns layout and ground, then name and size of up to three things; −1 stands for none."""
    if scene is None:
        return [-1] * _NUMBERS
    things = [n for thing in scene.things for n in (list_names().index(thing.name), SIZES.index(thing.size))]
    numbers = [LAYOUTS.index(scene.arrangement), GROUNDS.index(scene.ground), *things]
    return numbers + [-1] * (_NUMBERS - len(numbers))


def to_scene(numbers: Sequence[int]) -> GalleryScene | None:
    """Returns the scene that `to_numbers` wrote."""
    layout, ground, *things = numbers
    if layout < 0:
        return None
    pairs = zip(things[::2], things[1::2], strict=True)
    shown = tuple(GalleryThing(list_names()[name], SIZES[size]) for name, size in pairs if name >= 0)
    return GalleryScene(shown, LAYOUTS[layout], GROUNDS[ground])


def compute_coverage(numbers: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes it of the repeated prompts; leaves it out where there are none."""
    prompts = list_repeated(bench.roster)
    if not prompts:
        return {}
    again = [to_scene(row) for row in numbers[bench.roster.repeated_part].tolist()]
    count = bench.roster.repeats
    shown = [again[i * count : (i + 1) * count] for i in range(len(prompts))]
    values = describe_coverage(measure_coverage(prompts, shown))
    real = bench.real.get(COVERAGE.name)
    found = {column.name: values.get(column.name) for column in (COVERAGE, REPEATS, *BY_AXIS)}
    return {**found, TO_REAL.name: values[COVERAGE.name] / real if real else None}


METRICS = (Metric(keep_scenes, compute_coverage, (COVERAGE, TO_REAL, REPEATS, *BY_AXIS)),)
