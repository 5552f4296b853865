"""What a run shows of its student along the way: grids of samples, and small evaluations."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import torch

from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.benches import judges, make_bench, material
from fewstep.evaluate.cell import Cell, Row, painter_of
from fewstep.evaluate.columns import order_by_direction
from fewstep.evaluate.grid import labelled_grid
from fewstep.evaluate.metrics import list_columns
from fewstep.evaluate.scoring import score
from fewstep.files import write_whole
from fewstep.parallel.world import current_world
from fewstep.recipes.consistency import ConsistencyConfig
from fewstep.runs.student import Student
from fewstep.train.log import scalars
from fewstep.train.loop import computes_in_bf16
from fewstep.train.state import is_spread

SAMPLE_STEPS = (1, 2, 4, 8)
EVALUATIONS_FILE = "evaluations.jsonl"


class Watcher:
    """Does, after every update, what is due, once for each update however often the run is started."""

    def __init__(
        self,
        config: ConsistencyConfig,
        student: Student,
        captions: Sequence[str],
        resolution: int,
        device: torch.device,
    ) -> None:
        self._config, self._student, self._captions = config, student, list(captions)
        self._world = current_world()
        with student.pipeline() as pipeline:
            self._steps = [steps for steps in SAMPLE_STEPS if steps <= pipeline.grid_size]
            if config.eval_every and max(config.eval_steps) > pipeline.grid_size:
                raise UserError(
                    f"eval_steps has {max(config.eval_steps)} and with skip {config.skip} a model allows "
                    f"{pipeline.grid_size}; give less"
                )
        self._bench = _bench(config, resolution, device) if config.eval_every else None
        self._bf16 = computes_in_bf16(device, config.precision)

    def __call__(self, step: int) -> None:
        # Of weights that are spread, all processes paint; else one is enough.
        if not (self._world.main or is_spread(self._student.learner.weights)):
            return
        for every, act in ((self._config.sample_every, self._sample), (self._config.eval_every, self._evaluate)):
            if every and (step % every == 0 or step == self._config.steps):
                act(step)

    def _sample(self, step: int) -> None:
        file = self._config.out / "samples" / f"step-{step:07d}.png"
        if self._all_see(file.exists()):
            return
        with self._student.pipeline() as pipeline:
            rows = [(f"{steps} steps", pipeline(self._captions, steps=steps)) for steps in self._steps]
        if not self._world.main:
            return
        with write_whole(file) as draft:
            labelled_grid(rows, self._captions).save(draft, format="png")

    def _evaluate(self, step: int) -> None:
        file = self._config.out / EVALUATIONS_FILE
        done = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        if self._all_see(any(row["step"] == step for row in done)):
            return
        rows = self._rows()
        if not self._world.main:
            return
        # Whole or not at all: all rows of an update in one write.
        lines = "".join(json.dumps({"step": step, **row}) + "\n" for row in rows)
        with write_whole(file) as draft:
            draft.write_text("".join(json.dumps(row) + "\n" for row in done) + lines)
        columns = [column for column in order_by_direction(list_columns()) if rows[0].get(column.name) is not None]
        values = {f"{column.name}/{row['steps']}": row[column.name] for row in rows for column in columns}
        scalars(self._config.out, step, values)
        said = ", ".join(f"{row[columns[0].name]:.3g}" for row in rows)
        steps = ", ".join(str(row["steps"]) for row in rows)
        print(f"after update {step}: {columns[0].label} {said} at {steps} steps", file=sys.stderr, flush=True)

    def _all_see(self, what: bool) -> bool:
        """Returns what the main process sees, where all of them are here: another may look at a file too late."""
        return bool(self._world.gather(what)[0]) if is_spread(self._student.learner.weights) else what

    def _rows(self) -> list[Row]:
        assert self._bench is not None
        rows = []
        with self._student.pipeline() as pipeline:
            batch_size = 64 if pipeline.model.resolution <= 128 else 8
            for steps in self._config.eval_steps:
                cell = Cell("lcm", steps, "lcm", self._config.guidance_scale)
                painter = painter_of(cell, None, pipeline, bf16=self._bf16)
                rows.append(score(self._bench, cell, painter, pipeline.name, batch_size)[0])
        return rows


def _bench(config: ConsistencyConfig, resolution: int, device: torch.device) -> Bench:
    data = config.eval_data or config.data
    extractor, reader = judges(data, config.eval_extractor, device)
    return make_bench(material(data, resolution, n=config.eval_n, option="eval_n"), extractor, reader)[0]
