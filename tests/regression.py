"""A task for the training loop that takes milliseconds."""

import copy

import torch
from torch import nn

from fewstep.data import draws
from fewstep.data.latents import DroppedPicture
from fewstep.train.task import Loss, StudentTask


class Regression(StudentTask):
    """Fits a small network to sin; the loss of samples in `broken_at` is NaN, those in `unreadable` are not valid."""

    def __init__(self, ema=True, seed=0, broken_at=(), unreadable=()):
        torch.manual_seed(5)
        self.student = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))
        self.averaged = copy.deepcopy(self.student) if ema else None
        self.seed, self.broken_at, self.unreadable, self.seen, self.told = seed, broken_at, unreadable, [], 0

    def loss(self, counters):
        self.seen += counters
        x = draws.normal(self.seed, "x", counters, (1,))
        losses = (self.student(x) - x.sin()).square().mean(1)
        losses = torch.where(torch.tensor([i in self.broken_at for i in counters]), torch.nan, losses)
        valid = torch.tensor([i not in self.unreadable for i in counters])
        return Loss(torch.where(valid, losses, 0).sum(), valid.sum())

    def keys(self, counters):
        return [f"picture {i}" for i in counters]

    def dropped(self):
        new = [i for i in self.seen[self.told :] if i in self.unreadable]
        self.told = len(self.seen)
        return [DroppedPicture(i, f"picture {i}", "broken picture") for i in new]
