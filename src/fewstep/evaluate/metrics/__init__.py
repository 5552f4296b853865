"""The columns that judge pictures: a metric is a file in this folder that ends in its METRICS, and a line in _FILES."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
from collections.abc import Sequence

from fewstep.evaluate.bench import Bench, Metric, Observer, keep_latents
from fewstep.evaluate.columns import Column
from fewstep.evaluate.painting import LATENTS, PaintedCell

_FILES = (
    "accuracy",
    "coverage",
    "style",
    "distances",
    "clip_score",
    "to_teacher",
    "diversity",
)


def load_metrics(files: Sequence[str]) -> tuple[Metric, ...]:
    """Imports the metrics of these files of the folder; their order is that of the columns."""
    metrics = tuple(metric for file in files for metric in importlib.import_module(f"{__name__}.{file}").METRICS)
    for metric in metrics:
        name_kept(metric.observe)  # now, while the source on the disk is the one that was imported
    return metrics


@functools.cache
def name_kept(observe: Observer) -> str:
    """Names what an observer keeps; otherwise once its file has changed, so that the values are made anew."""
    if observe is keep_latents:
        return LATENTS
    module = inspect.getmodule(observe)
    assert module is not None
    source = hashlib.sha256(inspect.getsource(module).encode()).hexdigest()
    return f"{module.__name__.rpartition('.')[2]}.{observe.__name__}.{source[:12]}"


METRICS = load_metrics(_FILES)


def list_columns() -> tuple[Column, ...]:
    """Lists the columns of all metrics, in the table's order."""
    return tuple(column for metric in METRICS for column in metric.columns)


def list_observers() -> dict[str, Observer]:
    """Returns every observer once, under the name of what it keeps."""
    return {name_kept(metric.observe): metric.observe for metric in METRICS}


def compute_columns(kept: PaintedCell, bench: Bench) -> dict[str, float | None]:
    """Computes the values of all columns that the bench has a use for."""
    columns: dict[str, float | None] = {}
    for metric in METRICS:
        if (values := kept.observed.get(name_kept(metric.observe))) is not None:
            columns |= metric.compute(values, bench)
    return columns
