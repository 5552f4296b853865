"""How much pictures of one prompt differ from each other."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric
from fewstep.evaluate.metrics.distances import features


def diversity(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Variance of the features within a prompt over that of the real pictures: 0 where a prompt always gives the same
    picture, 1 where it says nothing about it."""
    again = features[bench.roster.repeated_part].double()
    if not len(again):
        return {}
    within = again.view(-1, bench.roster.repeats, again.shape[1]).var(1).sum(1).mean()
    return {"diversity": float(within / bench.reference.double().var(0).sum())}


METRICS = (Metric(features, diversity),)
