"""How far the pictures as a whole are from real ones: Fréchet and kernel distance in the extractor's features."""

from __future__ import annotations

import functools
import operator

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric, PaintedBatch
from fewstep.evaluate.columns import Column
from fewstep.evaluate.frechet import Moments, frechet_distance
from fewstep.evaluate.kernel_distance import kernel_distance

FRECHET = Column(
    "fd",
    "Fréchet distance to real pictures in the extractor's features. Less is better.",
    heading="FD",
    better="less",
    curve_label="Fréchet distance",
    log_scale=True,
    biased_below=5000,
    plural="Fréchet distances",
)
KERNEL = Column(
    "kd",
    "Unbiased kernel distance to them (KID), with its standard error; near 0 where there is none.",
    heading="KD",
    better="less",
    chooses=True,
)
_AT_ONCE = 4096


def extract_features(batch: PaintedBatch) -> Tensor:
    """Returns what the bench's extractor says of each picture, `[b, d]`."""
    return batch.bench.extractor.features(batch.pictures)


def sum_moments(features: Tensor) -> Moments:
    """Adds up the moments of `[n, d]` part by part."""
    return functools.reduce(operator.add, map(Moments.of, features.split(_AT_ONCE)))


def compute_frechet(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes `fd`; leaves it out with fewer pictures than twice the features, as there may be when guidance and
    spacing are chosen."""
    main = features[bench.roster.main_part]
    if len(main) < 2 * main.shape[1]:
        return {}
    return {"fd": frechet_distance(sum_moments(main), sum_moments(bench.reference))}


def compute_kernel(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes `kd` with its standard error."""
    distance, error = kernel_distance(features[bench.roster.main_part], bench.reference)
    return {"kd": distance, "kd_error": error}


METRICS = (Metric(extract_features, compute_frechet, (FRECHET,)), Metric(extract_features, compute_kernel, (KERNEL,)))
