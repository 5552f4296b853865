"""What a run has written of itself, read back while it goes on: figures, evaluations, samples, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.documents import parse_json
from fewstep.errors import UserError
from fewstep.models.model_files import CONFIG_FILE
from fewstep.recipes.plain import read_config_file
from fewstep.train.ledger import number_in, read_lines
from fewstep.train.tracking import find_samples, read_evaluations

Points = list[tuple[float, float]]
"""Lists updates and values, in order."""


@dataclass(frozen=True)
class RunRecord:
    """Holds a run as its folder shows it at a moment."""

    name: str
    settings: Mapping[str, Any]
    figures: Mapping[str, Points]
    """Has curves by the names of metrics.jsonl."""
    scores: Mapping[str, Points]
    """Has curves by `metric/steps`, as `fd/4`."""
    samples: list[tuple[int, Path]]
    finished: bool

    @property
    def steps(self) -> int:
        """Returns the updates that are done, as far as log, evaluations and samples tell."""
        ends = [points[-1][0] for points in (*self.figures.values(), *self.scores.values())]
        return int(max([*ends, *(step for step, _ in self.samples)], default=0))


def read_run(folder: Path) -> RunRecord:
    """Reads a run folder; lines that are being written, or are none of a run's, are passed over.

    Raises UserError where the folder holds no run.
    """
    if not (folder / CONFIG_FILE).exists():
        raise UserError(f"{folder} holds no run; give the --out of a distill, finetune or train-lora")
    scores: dict[str, Points] = {}
    for step, values in read_evaluations(folder):
        for name, value in values.items():
            if math.isfinite(value):
                scores.setdefault(name, []).append((step, value))
    return RunRecord(
        name=folder.resolve().name, settings=read_config_file(folder / CONFIG_FILE), scores=scores,
        figures=_read_figures(folder / "metrics.jsonl"), samples=find_samples(folder),
        finished=(folder / "model").exists(),
    )  # fmt: skip


def _read_figures(file: Path) -> dict[str, Points]:
    found: dict[str, dict[float, float]] = {}
    for line in read_lines(file) if file.exists() else []:
        if math.isfinite(step := number_in(line, "step")):
            for name in parse_json(line):
                if name != "step" and math.isfinite(value := number_in(line, name)):
                    found.setdefault(name, {})[step] = value
    return {name: sorted(points.items()) for name, points in found.items()}
