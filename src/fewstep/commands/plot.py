"""`fewstep plot`: runs, finished or going on, as curves and pictures on one page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fewstep.errors import UserError
from fewstep.files import write_whole
from fewstep.runs.overview import write_page
from fewstep.runs.records import read_run


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Draws loss, learning rate, scores at each number of steps, and samples over time into one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Run folders of `distill`, `finetune` or `train-lora`, one or several to compare; a run may still go on."""
    out: Path | None = None
    """File to write; one that is there is replaced. By default it is plot.html in the run's folder, or of several runs
    here. It needs nothing beside it: mail it, or open it in any browser."""


def plot(config: Plot) -> None:
    """Writes the page. Raises UserError where a folder holds no run."""
    if not config.runs:
        raise UserError("give at least one run folder, as in `fewstep plot runs/mine`")
    out = config.out or (config.runs[0] if len(config.runs) == 1 else Path()) / "plot.html"
    if out.is_dir() or out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out is {out}; give the name of an .html file")
    page = write_page([read_run(folder) for folder in config.runs])
    with write_whole(out) as draft:
        draft.write_text(page, encoding="utf-8")
    print(f"page: {out}", flush=True)
