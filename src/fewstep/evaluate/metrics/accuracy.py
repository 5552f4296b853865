"""Obedience on a bundled world: whether every attribute that a prompt states is right."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.evaluate.bench import Bench, Metric, PaintedBatch
from fewstep.evaluate.bootstrap import share_interval
from fewstep.evaluate.columns import Column

ACCURACY = Column(
    "prompt_accuracy",
    "Share of pictures in which every attribute of the prompt is right. More is better.",
    heading="right",
    better="more",
    curve_label="prompt accuracy",
    chooses=True,
)
UNSEEN = Column(
    "prompt_accuracy_unseen",
    "The same for prompts of a kind that no training picture shows.",
    heading="unseen",
    better="more",
)


def read_as_stated(batch: PaintedBatch) -> Tensor | None:
    """Reads each picture and returns `[b]`: 1 where it shows all that its prompt states, else 0."""
    stated, reader = batch.bench.roster.stated, batch.bench.reader
    if stated is None or reader is None:
        return None
    pairs = zip(reader.read(batch.pictures), batch.rows, strict=True)
    agree = [scene is not None and reader.agrees(scene, stated[i]) for scene, i in pairs]
    return torch.tensor(agree, dtype=torch.uint8)


def compute_accuracy(correct: Tensor, bench: Bench) -> dict[str, float | None]:
    """Computes the share that is correct, with its 95 % interval; apart from it that of the unseen pairs."""
    main, unseen = correct[bench.roster.main_part].double(), correct[bench.roster.unseen_part].double()
    low, high = share_interval(main)
    return {
        "prompt_accuracy": float(main.mean()),
        "prompt_accuracy_low": low,
        "prompt_accuracy_high": high,
        "prompt_accuracy_unseen": float(unseen.mean()) if len(unseen) else None,
    }


METRICS = (Metric(read_as_stated, compute_accuracy, (ACCURACY, UNSEEN)),)
