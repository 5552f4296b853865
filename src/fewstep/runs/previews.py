"""Grids of pictures that a student paints along its training."""

from __future__ import annotations

from collections.abc import Callable

from fewstep.evaluate.grid import labelled_grid
from fewstep.files import write_whole
from fewstep.models.pipeline import Pipeline
from fewstep.parallel.world import current_world
from fewstep.runs.reporting import Observed

PREVIEW_STEPS = (1, 2, 4, 8)


def make_observer(observed: Observed) -> Callable[[int], None]:
    """Makes what writes `samples/step-N.png`: a row for each number of steps."""
    with observed.student.exported() as model:
        counts = [steps for steps in PREVIEW_STEPS if steps <= Pipeline(model).most_steps()]
    captions = observed.material.captions

    def preview(step: int) -> None:
        file = observed.config.out / "samples" / f"step-{step:07d}.png"
        if observed.agree(file.exists()):
            return
        with observed.student.exported() as model:
            pipeline = Pipeline(model)
            rows = [(f"{steps} step{'' if steps == 1 else 's'}", pipeline(captions, steps=steps)) for steps in counts]
        if current_world().main:
            with write_whole(file) as draft:
                labelled_grid(rows, captions).save(draft, format="png")

    return preview
