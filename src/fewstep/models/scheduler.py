"""The noise schedule that a diffusers scheduler's configuration says, and what a person says over it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.diffusion.prediction import Parameterisation
from fewstep.diffusion.schedule import Schedule, ScheduleError, Tabulated
from fewstep.errors import UserError
from fewstep.models.options import OF_BETAS, Overrides

logger = logging.getLogger(__name__)

_DEFAULTS = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "trained_betas": None, "prediction_type": "epsilon", "rescale_betas_zero_snr": False,
}  # fmt: skip
"""What a schedule depends on, as most of diffusers' schedulers have it where a file leaves it out."""
_NOT_READ = {
    "use_flow_sigmas": "flow matching", "snr_shift_scale": "a shifted signal-to-noise ratio",
}  # fmt: skip
"""Settings that make another schedule of the betas beside them."""


def settle_schedule(
    config: Mapping[str, Any], source: str | Path, overrides: Overrides, held: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Returns a scheduler's configuration with what the weights' own file says (`held`), and a person over that.

    Prints what had to be assumed, and where the file says otherwise than its configuration.
    """
    said = {**config, **(held or {})}
    given: dict[str, Any] = {"rescale_betas_zero_snr": True} if overrides.zero_snr else {}
    if overrides.prediction_type != "auto":
        given["prediction_type"] = overrides.prediction_type
    said |= given
    for name, value in (held or {}).items():
        if name not in given and config.get(name) != value:
            logger.info(
                f"note: {source} says {name} {value}, and its configuration {config.get(name)}; the file is followed"
            )
    is_silent = said.get("prediction_type") is None or (held is not None and "prediction_type" not in held)
    if is_silent and overrides.prediction_type == "auto":
        said["prediction_type"] = resolve_schedule(said, source)["prediction_type"]
        logger.info(
            f"note: {source} does not say what its network predicts; {said['prediction_type']} is assumed, as its "
            "scheduler's configuration has it (--prediction-type decides)"
        )
    return said


def resolve_schedule(config: Mapping[str, Any], source: str | Path) -> dict[str, Any]:
    """Returns all that a schedule depends on, with the class's own defaults for what its configuration leaves out.

    Raises UserError where the class is of another formulation, and has no betas.
    """
    kind = str(config.get("_class_name") or "")
    if kind.startswith("FlowMatch"):
        raise UserError(
            f"{source} has a {kind}, which is a flow's and not of this network; give the scheduler that it was "
            "trained with"
        )
    for name, what in _NOT_READ.items():
        if config.get(name):
            raise UserError(f"{source} has a {kind} with {name}, which is {what}; give a model with plain betas")
    if config.get("timestep_type") == "continuous":
        raise UserError(f"{source} has a {kind} that tells its network noise levels and no times; it cannot be read")
    defaults = dict(_DEFAULTS)
    scheduler = _find_class(kind)
    if scheduler is not None:
        parameters = inspect.signature(scheduler.__init__).parameters
        if "beta_start" not in parameters:
            raise UserError(
                f"{source} has a {kind}, which has no betas (EDM's formulation, or another); models with a noise "
                "schedule of betas are read"
            )
        defaults |= {name: parameters[name].default for name in _DEFAULTS if name in parameters}
    elif config.get("trained_betas") is None and not {"beta_start", "beta_end"} <= config.keys():
        raise UserError(
            f"{source} has no betas in scheduler_config.json and no class of diffusers that has defaults for them "
            f"({kind or 'none is named'}); give the scheduler that the model was trained with"
        )
    return {name: default if config.get(name) is None else config[name] for name, default in defaults.items()}


def _find_class(kind: str) -> Any:
    import diffusers  # slow, and not needed for --help

    return getattr(diffusers, kind, None) if kind else None


def read_schedule(config: Mapping[str, Any], source: str | Path) -> tuple[Schedule, Parameterisation]:
    """Reads a diffusers scheduler's configuration. Raises UserError where no model could be trained on it."""
    settings = resolve_schedule(config, source)
    parameterisation = settings["prediction_type"]
    if parameterisation not in OF_BETAS:
        allowed = ", ".join(OF_BETAS)
        raise UserError(f"{source} has prediction_type {parameterisation!r}; known: {allowed}")
    try:
        schedule = Tabulated.from_config(settings)
    except (ScheduleError, TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{source} has no usable noise schedule in scheduler_config.json: {reason}") from error
    if schedule.has_zero_terminal_snr and parameterisation == "epsilon":
        raise UserError(
            f"{source} has zero-terminal SNR with epsilon-prediction, which has no answer at pure noise; "
            "use a v_prediction model, or its scheduler without rescale_betas_zero_snr"
        )
    return schedule, parameterisation
