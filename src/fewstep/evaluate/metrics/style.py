"""Whether pictures are in the look that the data has."""

from __future__ import annotations

from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric
from fewstep.evaluate.metrics.distances import features


def share_in_style(features: Tensor, bench: Bench) -> dict[str, float | None]:
    """Share of the pictures that the probe finds in the style."""
    if bench.style is None:
        return {}
    return {"share_in_style": float(bench.style(features[bench.roster.main_part]).double().mean())}


METRICS = (Metric(features, share_in_style),)
