"""A training whose networks torch.compile computes; imported only where a run wants it."""

from __future__ import annotations

import torch

from fewstep.errors import UserError
from fewstep.models.compiling import check_compile, compile_blocks
from fewstep.models.network import BackboneNetwork
from fewstep.models.options import Compile
from fewstep.parallel.world import current_world
from fewstep.precision import Precision, choose_dtype
from fewstep.train.learner import Trainable


def check_training(how: Compile, device: torch.device) -> None:
    """Raises UserError where nothing can be compiled, or where several processes train; before a model is loaded."""
    if current_world().size > 1:
        raise UserError("--compile is for one process; leave it out, or --processes")
    check_compile(how, device)


def compile_trainable(trainable: Trainable, how: Compile, precision: Precision) -> None:
    """Compiles the repeated blocks of student, averages and base, each network once. Raises UserError where it cannot
    be, or where several processes train."""
    check_training(how, trainable.model.device)
    learner = trainable.learner
    held = (trainable.model.network, learner.weights, learner.averaged, learner.target_average)
    networks = {id(each): each for each in held if isinstance(each, BackboneNetwork)}
    device = trainable.model.device
    compile_blocks([*networks.values()], how, device, choose_dtype(precision, device))
