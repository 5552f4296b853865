"""A fake score: adapters on the base of a student, whose answers with them judge the student."""

from __future__ import annotations

from fewstep.models.lora.adapters import AdaptedNetwork
from fewstep.parallel.world import current_world
from fewstep.train.learner import Learner, Trainable, replicate


def add_fake(student: Trainable, rank: int) -> Learner:
    """Hangs adapters of that rank on the base, which answers as it did for all others, and returns what learns."""
    assert student.card.seed is not None
    network, targets = student.model.network, student.model.family.lora.targets
    fake = AdaptedNetwork(network, rank, float(rank), targets, student.frozen, student.card.seed, name="fake")
    student.base = fake.teacher
    learner = Learner(weights=fake.weights, student=fake.student)
    if current_world().size == 1:
        return learner
    return replicate(learner, some_unused=network.leaves_some_unused)
