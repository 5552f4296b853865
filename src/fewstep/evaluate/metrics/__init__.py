"""The columns of an evaluation: a metric is a file in this folder that ends in its METRICS, and a line in _FILES."""

from __future__ import annotations

import hashlib
import importlib
import inspect

from fewstep.evaluate.bench import Bench, Metric, Observer, latents
from fewstep.evaluate.painting import LATENTS, Kept

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


def kept_as(observe: Observer) -> str:
    """Under which name its values are kept; another one once its file has changed, so that they are made anew."""
    if observe is latents:
        return LATENTS
    module = inspect.getmodule(observe)
    assert module is not None
    source = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    return f"{module.__name__.rpartition('.')[2]}.{observe.__name__}.{source[:12]}"


_NAMES = {metric.observe: kept_as(metric.observe) for metric in METRICS}
OBSERVERS: dict[str, Observer] = {name: observe for observe, name in _NAMES.items()}


def conclude(kept: Kept, bench: Bench) -> dict[str, float | None]:
    """All columns that the bench has a use for."""
    columns: dict[str, float | None] = {}
    for metric in METRICS:
        if (values := kept.observed.get(_NAMES[metric.observe])) is not None:
            columns |= metric.conclude(values, bench)
    return columns
