"""The columns of an evaluation: a metric is a file in this folder that ends in its METRICS, and a line in _FILES."""

from __future__ import annotations

import importlib

from fewstep.evaluate.bench import Bench, Metric, Observer
from fewstep.evaluate.painting import Kept

_FILES = (
    "accuracy",
    "style",
    "distances",
    "clip_score",
    "to_teacher",
    "diversity",
)
METRICS: tuple[Metric, ...] = tuple(
    metric for file in _FILES for metric in importlib.import_module(f"{__name__}.{file}").METRICS
)
OBSERVERS: dict[str, Observer] = {metric.observe.__name__: metric.observe for metric in METRICS}


def conclude(kept: Kept, bench: Bench) -> dict[str, float | None]:
    """All columns that the bench has a use for."""
    columns: dict[str, float | None] = {}
    for metric in METRICS:
        if (values := kept.observed.get(metric.observe.__name__)) is not None:
            columns |= metric.conclude(values, bench)
    return columns
