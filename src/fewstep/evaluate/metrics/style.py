"""Whether pictures are in the look that the data has."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric
from fewstep.evaluate.columns import Column
from fewstep.evaluate.metrics.distances import extract_features

SHARE = Column(
    "share_in_style",
    "Of pictures that have the look of the data. More is better.",
    heading="style",
    better="more",
    curve_label="share in style",
)


def compute_share_in_style(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes the share of the pictures that the probe finds in the style."""
    if bench.style is None:
        return {}
    return {"share_in_style": float(bench.style(features[bench.roster.main_part]).double().mean())}


METRICS = (Metric(extract_features, compute_share_in_style, (SHARE,)),)
