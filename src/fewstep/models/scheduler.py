"""The noise schedule that a diffusers scheduler's configuration says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

from fewstep.diffusion.prediction import Parameterisation
from fewstep.diffusion.schedule import Schedule, ScheduleError, Tabulated
from fewstep.errors import UserError


def read_json(path: Path, otherwise: str) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError, which begins with `otherwise`, where there is none."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{otherwise}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{otherwise}: {path.name} cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise UserError(f"{otherwise}: {path.name} is not a JSON object")
    return content


def read_schedule(config: dict[str, Any], source: str | Path) -> tuple[Schedule, Parameterisation]:
    """Reads a diffusers scheduler's configuration. Raises UserError where no model could be trained on it."""
    kind = str(config.get("_class_name", ""))
    if kind.startswith("FlowMatch"):
        raise UserError(f"{source} has a {kind}; flow models are not read, give one with a noise schedule of betas")
    parameterisation = config.get("prediction_type", "epsilon")
    if parameterisation not in get_args(Parameterisation):
        allowed = ", ".join(get_args(Parameterisation))
        raise UserError(f"{source} has prediction_type {parameterisation!r}; known are {allowed}")
    try:
        schedule = Tabulated.from_config(config)
    except (ScheduleError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} has no usable noise schedule in scheduler_config.json: {reason}") from error
    if schedule.has_zero_terminal_snr and parameterisation == "epsilon":
        raise UserError(
            f"{source} has zero-terminal SNR with epsilon-prediction, which has no answer at pure noise; "
            "use a v_prediction model, or its scheduler without rescale_betas_zero_snr"
        )
    return schedule, parameterisation
