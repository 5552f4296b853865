"""What trajectories that were walked beforehand save: seconds of an update, beside walkers' and LCM's.

    python studies/trajectories.py      # two minutes of one core

Figures: docs/studies/trajectories.json, docs/methods.md. All are of the recipe `scenes`, guided everywhere, in batches
of 32, one update of each in turn; only ratios are meant to be read, which what else the machine does leaves alone. A
forward pass being 1 and a backward pass 2, LCM's update costs 6 passes a picture and one without a teacher 4.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import tyro

from fewstep.commands.bench_train import Ours
from fewstep.commands.prepare import prepare
from fewstep.evaluate.report import markdown_table
from fewstep.measure.stopwatch import Spread, Stopwatch, in_turn, machine
from fewstep.models.loading import load_latent_model
from fewstep.recipes.named import find_recipe
from fewstep.recipes.prepare import Prepare

BASE = "LCM"


@dataclass(frozen=True, kw_only=True)
class Study:
    rounds: int = 40
    """Timed updates of each."""
    trajectories: int = 64
    """Kept; their number does not change what an update costs."""
    out: Path = Path("docs/studies/trajectories.json")
    """Where the figures go."""


def main(study: Study) -> None:
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        updates = {name: make(config, device) for name, config in configure(study, Path(folder) / "kept").items()}
        seconds = in_turn({name: each.update for name, each in updates.items()}, study.rounds, device, warm_up=3)
    rows = [compare(name, spread, seconds[BASE]) for name, spread in seconds.items()]
    study.out.write_text(
        json.dumps({"machine": machine(device), "rounds": study.rounds, "rows": rows}, indent=1) + "\n"
    )
    print("\n".join(markdown_table(rows)))


def compare(name: str, spread: Spread, base: Spread) -> dict[str, Any]:
    """Returns the median and the quartiles of the ratios round by round."""
    low, middle, high = quantiles(
        (own / other for own, other in zip(spread.seconds, base.seconds, strict=True)), n=4, method="inclusive"
    )
    return {"update": name, "of LCM's time": round(middle, 3), "from": round(low, 3), "to": round(high, 3)}


def configure(study: Study, folder: Path) -> dict[str, Any]:
    """Walks what is to be kept, and returns the configurations to time."""
    guidance: Any = {"guidance_range": (5.0, 5.0), "guided_from": 0}
    any_step = dataclasses.replace(find_recipe("scenes-any-step"), pictures=256, **guidance)
    prepare(
        Prepare(trajectories=study.trajectories, skip=any_step.skip, out=folder, workers=1, pictures=256, **guidance)
    )
    lcm = dataclasses.replace(find_recipe("scenes"), pictures=256, **guidance)
    return {
        BASE: lcm,
        "any-step, data": dataclasses.replace(any_step, states="data"),
        "any-step, walkers": any_step,
        "any-step, kept trajectories": dataclasses.replace(any_step, data=str(folder)),
    }


def make(config: Any, device: torch.device) -> Ours:
    """Makes what does one update of a configuration, with weights of its own."""
    return Ours(config, load_latent_model(config.teacher, device), Stopwatch(device))


if __name__ == "__main__":
    main(tyro.cli(Study))
