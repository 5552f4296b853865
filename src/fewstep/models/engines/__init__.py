"""What computes a model: torch, or an engine in its place."""

from __future__ import annotations

import importlib

import torch

from fewstep.models.engines.calibration import Calibration
from fewstep.models.family import LatentModel
from fewstep.models.options import Engine
from fewstep.precision import PaintPrecision


def check_engine(engine: Engine, precision: PaintPrecision, device: torch.device) -> None:
    """Raises UserError where that engine is not there, or computes not on that device or not in that format."""
    if engine != "torch":
        importlib.import_module("fewstep.models.engines.openvino").check_openvino(device, precision)


def with_engine(
    model: LatentModel, engine: Engine, precision: PaintPrecision = "auto", calibration: Calibration | None = None
) -> LatentModel:  # fmt: skip
    """Returns `model` computed by that engine; with `openvino` its LoRAs are merged into it for good, and `auto` is
    bf16 where the processor has instructions for it; for `int8` it takes a calibration."""
    if engine == "torch":
        return model
    from fewstep.models.engines.openvino import on_openvino

    return on_openvino(model, precision, calibration=calibration)
