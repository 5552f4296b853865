"""How long a checkpoint stops a training: written before the next update begins, and written aside.

    python studies/saving.py        # ten minutes, 7 GiB of disk and 5 of memory; --help lists what can be other

Both ways take turns in one run of a network of 100 million weights with an average and AdamW's moments, so that what
else goes on in the machine meets both. Figures: docs/studies/saving.json, docs/speed.md.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from torch import nn

from fewstep.data import draws
from fewstep.evaluate.report import markdown_table
from fewstep.parallel.world import World
from fewstep.train.checkpoint import Checkpoints
from fewstep.train.config import LoopConfig
from fewstep.train.loop import begin, do_update
from fewstep.train.saving import Saving
from fewstep.train.task import Loss, StudentTask

WIDTH = 1024


class Mapping(StudentTask):
    """Learns to give vectors back."""

    def __init__(self, weights: int) -> None:
        torch.manual_seed(0)
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(round(weights / (WIDTH * (WIDTH + 1))))]
        self.student: nn.Module = nn.Sequential(*layers)
        self.averaged: nn.Module | None = copy.deepcopy(self.student)

    def loss(self, counters: range) -> Loss:
        x = draws.normal(0, "x", counters, (WIDTH,))
        return Loss((self.student(x) - x).square().mean(1).sum(), torch.tensor(len(counters)))


@dataclass(frozen=True, kw_only=True)
class Study:
    weights: int = 100_000_000
    rounds: int = 7
    batch_size: int = 64
    """Vectors in an update."""
    folder: Path = field(default=Path(os.environ.get("TMPDIR", "/tmp")))
    """Where the checkpoints go, for a while."""
    out: Path = field(default=Path("docs/studies/saving.json"))


def main(study: Study) -> None:
    task, config = Mapping(study.weights), LoopConfig(batch_size=study.batch_size, ema_decay=0.99)
    state = begin(task.roles, config)

    def update() -> None:
        do_update(task, state, config, World())
        state.roles[0].losses = []

    measured: dict[str, list[float]] = {"update": [], "before": [], "copy": [], "written": [], "slower": []}
    with tempfile.TemporaryDirectory(dir=study.folder) as folder:
        checkpoints = Checkpoints(Path(folder))
        with Saving(checkpoints, 2) as saving:
            update()
            saving.save(state)  # the first copy makes its room
            saving.finish()
            for _ in range(study.rounds):
                quiet = statistics.median(seconds(update) for _ in range(3))
                measured["update"].append(quiet)
                measured["before"].append(seconds(lambda: checkpoints.save(state.tensors(), state.numbers(), 2)))
                update()
                measured["copy"].append(seconds(lambda: saving.save(state)))
                updates = 0
                begun = time.perf_counter()
                while saving.is_writing:
                    update()
                    updates += 1
                measured["written"].append(time.perf_counter() - begun)
                measured["slower"].append(measured["written"][-1] - updates * quiet)
                saving.finish()
            size = sum(file.stat().st_size for file in checkpoints.list()[-1].iterdir())
    medians = {name: statistics.median(values) for name, values in measured.items()}
    rows = [
        {"checkpoint": "written before the next update", "training stops, s": round(medians["before"], 2)},
        {
            "checkpoint": "written aside", "training stops, s": round(medians["copy"], 2),
            "written in, s": round(medians["written"], 1),
            "updates meanwhile take longer by, s in all": round(medians["slower"], 2),
        },
    ]  # fmt: skip
    held = {
        "weights": sum(p.numel() for p in task.student.parameters()), "GiB": round(size / 2**30, 2),
        "rounds": study.rounds, "update, s": round(medians["update"], 2), "cores": os.cpu_count(),
        "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1), "rows": rows,
        "measured": {name: [round(value, 3) for value in values] for name, values in measured.items()},
    }  # fmt: skip
    study.out.write_text(json.dumps(held, indent=1) + "\n")
    print("\n".join(markdown_table(rows)))


def seconds(act: Callable[[], object]) -> float:
    begun = time.perf_counter()
    act()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main(tyro.cli(Study))
