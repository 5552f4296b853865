"""The noise schedule of a flow that a diffusers scheduler's configuration says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.diffusion.flow import MOST_SHIFT, Flow
from fewstep.diffusion.schedule import ScheduleError
from fewstep.errors import UserError
from fewstep.models.card import is_number

CLASSES = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler")
"""Schedulers of diffusers that state a flow."""
_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Names those that state one where they are told to, as some flows are released with."""
_OTHER_TIMES = {
    "use_karras_sigmas": "Karras' times",
    "use_exponential_sigmas": "exponential times",
    "use_beta_sigmas": "beta times",
    "invert_sigmas": "times from data to noise",
}
_TIMES = 1000


def read_flow(config: Mapping[str, Any], source: str | Path, tokens: int) -> Flow:
    """Reads a flow matching scheduler's configuration, for pictures of so many `tokens` of the network.

    A shift that depends on the pictures' size is read at that size, and is the student's at every size. Raises
    UserError where the configuration states no flow, or times that no shift gives.
    """
    kind = str(config.get("_class_name") or "")
    solves = bool(
        kind in _SOLVERS and config.get("use_flow_sigmas") and config.get("prediction_type") == "flow_prediction"
    )
    if not solves and kind not in CLASSES:
        raise UserError(
            f"{source} has {f'a {kind}' if kind else 'no scheduler'} around the network of a flow; give the scheduler "
            f"that it was trained with ({CLASSES[0]})"
        )
    for name, what in _OTHER_TIMES.items():
        if config.get(name):
            raise UserError(f"{source} has a {kind} with {name}, which paints at {what}; set it to false")
    if config.get("num_train_timesteps", _TIMES) != _TIMES:
        raise UserError(
            f"{source} has num_train_timesteps {config['num_train_timesteps']!r:.60} in scheduler_config.json; flows "
            f"with {_TIMES} are read"
        )
    last = config.get("shift_terminal")
    if last is not None and not (is_number(last) and 0 <= last < 1):
        raise UserError(
            f"{source} has shift_terminal {last!r:.60} in scheduler_config.json; expected a number from 0 and below 1"
        )
    try:
        # Solvers have one shift, whatever the size.
        shift = _number(config, "flow_shift", 1.0, source) if solves else _find_shift(config, source, tokens)
        if MOST_SHIFT < shift < math.inf:
            raise ScheduleError(f"it is {shift:g}, and {MOST_SHIFT} is the most that is read")
        return Flow(_TIMES, shift)
    except ScheduleError as error:
        raise UserError(f"{source} has no usable shift in scheduler_config.json: {error}") from error


def _find_shift(config: Mapping[str, Any], source: str | Path, tokens: int) -> float:
    if not config.get("use_dynamic_shifting"):
        return _number(config, "shift", 1.0, source)
    if config.get("time_shift_type", "exponential") != "exponential":
        raise UserError(
            f"{source} has time_shift_type {config['time_shift_type']!r:.60} in scheduler_config.json; exponential is "
            "read"
        )
    low, high = (_number(config, name, default, source) for name, default in (("base_shift", 0.5), ("max_shift", 1.15)))
    least, most = (
        _number(config, name, default, source)
        for name, default in (("base_image_seq_len", 256), ("max_image_seq_len", 4096))
    )
    if least == most:
        raise UserError(f"{source} has base_image_seq_len and max_image_seq_len {least:g}; they must differ")
    try:
        return math.exp(low + (high - low) * (tokens - least) / (most - least))
    except OverflowError:
        return math.inf  # which no flow has


def _number(config: Mapping[str, Any], name: str, default: float, source: str | Path) -> float:
    value = config.get(name, default)
    if not is_number(value):
        raise UserError(f"{source} has {name} {value!r:.60} in scheduler_config.json; expected a number")
    return float(value)
