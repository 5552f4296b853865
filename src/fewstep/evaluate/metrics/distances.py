"""How far the pictures as a whole are from real ones: Fréchet and kernel distance in the extractor's features."""

from __future__ import annotations

import functools
import operator

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric, Seen
from fewstep.evaluate.frechet import Moments, frechet_distance
from fewstep.evaluate.kernel_distance import kernel_distance

_AT_ONCE = 4096


def features(seen: Seen) -> Tensor:
    """The extractor's `[b, d]`."""
    return seen.bench.extractor.features(seen.pictures)


def moments(features: Tensor) -> Moments:
    """Of `[n, d]`, added up part by part."""
    return functools.reduce(operator.add, map(Moments.of, features.split(_AT_ONCE)))


def frechet(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """`fd`; none with fewer pictures than twice the features, as some are when guidance and spacing are chosen."""
    main = features[bench.roster.main_part]
    if len(main) < 2 * main.shape[1]:
        return {}
    return {"fd": frechet_distance(moments(main), moments(bench.reference))}


def kernel(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """`kd` with its standard error."""
    distance, error = kernel_distance(features[bench.roster.main_part], bench.reference)
    return {"kd": distance, "kd_error": error}


METRICS = (Metric(features, frechet), Metric(features, kernel))
