"""How much pictures of one prompt differ from each other."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric
from fewstep.evaluate.columns import Column
from fewstep.evaluate.metrics.distances import extract_features

DIVERSITY = Column(
    "diversity",
    "How much pictures of one prompt differ, as a share of how much real pictures do.",
    heading="div.",
    curve_label="diversity within a prompt",
)


def compute_diversity(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Divides the variance of the features within a prompt by that of the real pictures: 0 where a prompt always gives
    the same picture, 1 where it says nothing about it."""
    again = features[bench.roster.repeated_part].double()
    if not len(again):
        return {}
    within = again.view(-1, bench.roster.repeats, again.shape[1]).var(1).sum(1).mean()
    return {"diversity": float(within / bench.reference.double().var(0).sum())}


METRICS = (Metric(extract_features, compute_diversity, (DIVERSITY,)),)
