"""Obedience on the scenes world: whether every attribute that a prompt states is right."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.data.pictures import from_levels
from fewstep.evaluate.bench import Bench, Metric, Seen
from fewstep.evaluate.bootstrap import bootstrap_interval
from fewstep.evaluate.reader import read


def right(seen: Seen) -> Tensor | None:
    """1 for a picture that the reader reads as its prompt states, else 0."""
    stated, reader = seen.bench.roster.stated, seen.bench.reader
    if stated is None or reader is None:
        return None
    scenes, _ = read(reader, from_levels(seen.pictures))
    agree = [scene is not None and scene.agrees_with(stated[i]) for scene, i in zip(scenes, seen.rows, strict=True)]
    return torch.tensor(agree, dtype=torch.uint8)


def prompt_accuracy(right: Tensor, bench: Bench) -> dict[str, float | None]:
    """Share that is right, with its 95 % bootstrap interval; apart from it that of the unseen pairs."""
    main, unseen = right[bench.roster.main_part].double(), right[bench.roster.unseen_part].double()
    low, high = bootstrap_interval(main)
    return {
        "prompt_accuracy": float(main.mean()),
        "prompt_accuracy_low": low,
        "prompt_accuracy_high": high,
        "prompt_accuracy_unseen": float(unseen.mean()) if len(unseen) else None,
    }


METRICS = (Metric(right, prompt_accuracy),)
