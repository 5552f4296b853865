"""Small evaluations of a student along its training."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence

from fewstep.data.kind import SourceRequest
from fewstep.data.sources.selection import Selection
from fewstep.errors import UserError
from fewstep.evaluate.bench import Bench
from fewstep.evaluate.benches import make_bench, material, pick_judges
from fewstep.evaluate.cell import Cell, Row, painter_of
from fewstep.evaluate.columns import order_by_direction
from fewstep.evaluate.metrics import list_columns
from fewstep.evaluate.scoring import score
from fewstep.files import write_whole
from fewstep.models.pipeline import Pipeline
from fewstep.parallel.world import current_world
from fewstep.precision import choose_dtype
from fewstep.runs.reporting import Observed
from fewstep.train.ledger import number_in, read_lines
from fewstep.train.tracking import EVALUATIONS_FILE


class Evaluations:
    """Scores the student after an update and writes a line for each number of steps."""

    def __init__(self, observed: Observed) -> None:
        """Raises UserError where the student cannot paint in so many steps."""
        config = observed.config
        with observed.student.exported() as model:
            most = Pipeline(model).most_steps()
            if max(config.eval_steps) > most:
                raise UserError(
                    f"eval_steps has {max(config.eval_steps)} and with skip {config.skip} a model allows {most}; "
                    "give less"
                )
            device = model.device
        data = config.eval_data or config.data
        extractor, reader = pick_judges(data, config.eval_extractor, device)
        selection = Selection(follow_links=config.follow_links)
        pictures = SourceRequest(data=data, resolution=observed.material.resolution, selection=selection)
        found = material(pictures, n=config.eval_n, option="eval_n")
        self._bench: Bench = make_bench(found, extractor, reader)[0]
        self._observed, self._dtype = observed, choose_dtype(config.precision, device)

    def __call__(self, step: int) -> None:
        file = self._observed.config.out / EVALUATIONS_FILE
        lines = read_lines(file) if file.exists() else []
        done = {line: number_in(line, "step") for line in lines if math.isfinite(number_in(line, "step"))}
        if self._observed.agree(step in done.values()):
            return
        rows = self._score()
        if not current_world().main:
            return
        # Whole or not at all: all rows of an update in one write.
        with write_whole(file) as draft:
            added = (json.dumps({"step": step, **row}) for row in rows)
            draft.write_text("".join(f"{line}\n" for line in (*done, *added)))
        self._announce(step, rows)

    def _score(self) -> list[Row]:
        config, rows = self._observed.config, []
        with self._observed.student.exported() as model:
            pipeline, batch_size = Pipeline(model), 64 if model.resolution <= 128 else 8
            for steps in config.eval_steps:
                cell = Cell("lcm", steps, "lcm", config.guidance_scale)
                painter = painter_of(cell, None, pipeline, self._dtype)
                rows.append(score(self._bench, cell, painter, pipeline.name, batch_size)[0])
        return rows

    def _announce(self, step: int, rows: Sequence[Row]) -> None:
        """Prints the first of the scores on the terminal."""
        columns = [column for column in order_by_direction(list_columns()) if rows[0].get(column.name) is not None]
        said = ", ".join(f"{row[columns[0].name]:.3g}" for row in rows)
        steps = ", ".join(str(row["steps"]) for row in rows)
        print(f"after update {step}: {columns[0].label} {said} at {steps} steps", file=sys.stderr, flush=True)


make_observer = Evaluations
