"""A training whose networks torch.compile computes; imported only where a run wants it."""

from __future__ import annotations

from fewstep.errors import UserError
from fewstep.models.compiling import compile_blocks
from fewstep.models.network import BackboneNetwork
from fewstep.parallel.world import current_world
from fewstep.precision import choose_dtype
from fewstep.recipes.pictures import TrainingConfig
from fewstep.train.learner import Trainable


def compile_trainable(config: TrainingConfig, trainable: Trainable) -> None:
    """Compiles the repeated blocks of student, averages and base, each network once. Raises UserError where it cannot
    be, or where several processes train."""
    if current_world().size > 1:
        raise UserError("--compile is for one process; leave it out, or --processes")
    learner = trainable.learner
    held = (trainable.model.network, learner.weights, learner.averaged, learner.target_average)
    networks = {id(each): each for each in held if isinstance(each, BackboneNetwork)}
    device = trainable.model.device
    compile_blocks([*networks.values()], config.compile, device, choose_dtype(config.precision, device))
