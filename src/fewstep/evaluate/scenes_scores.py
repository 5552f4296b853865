"""Prompt accuracy and Fréchet distance on the scenes world, for a student and its baselines."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.data.pictures import to_pixels
from fewstep.data.scenes import Scene, Scenes
from fewstep.diffusion.prediction import Cond
from fewstep.diffusion.sampling import Spacing, sampling_times
from fewstep.evaluate.baselines import SamplerName, network_evaluations, teacher_latents
from fewstep.evaluate.frechet import Moments, frechet_distance
from fewstep.evaluate.reader import Reader, read
from fewstep.evaluate.roster import PROMPT_SEED
from fewstep.models.latent_model import LatentModel
from fewstep.models.pipeline import Pipeline

REFERENCE_PICTURES = 2048
BEST_SPACING: dict[tuple[SamplerName, int], Spacing] = {
    ("ddim", 2): "leading+1", ("ddim", 4): "leading+1", ("dpm++", 2): "leading+1",
}  # fmt: skip
"""Where a baseline on the bundled teacher at guidance_scale 5 is more accurate than trailing (studies/spacing.py)."""
Latents = Callable[[Cond, range], Tensor]
"""(conditions [b, …], seeds) → z_0 [b, c, h, w]."""


@dataclass(frozen=True)
class Prompts:
    """Fresh prompts with what each states; the last `unseen` hold a shape in a colour never trained on."""

    texts: list[str]
    stated: list[Scene]
    unseen: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def fresh_prompts(seen: int, unseen: int, seed: int = PROMPT_SEED) -> Prompts:
    """`seen` + `unseen` prompts of scenes that no picture of a training set was drawn for."""
    pairs = [Scenes(seed, "seen").prompt(i) for i in range(seen)] + [
        Scenes(seed, "unseen").prompt(i) for i in range(unseen)
    ]
    return Prompts([text for text, _ in pairs], [scene for _, scene in pairs], unseen)


@dataclass(frozen=True)
class Scored:
    """A row of the table, and the pictures behind it as pixels `[n, 3, h, w]`."""

    row: dict[str, Any]
    pixels: Tensor
    read: list[Scene | None]


class ScenesScores:
    """Scores samplers over one set of prompts, seeds and guidance; picture i has seed `seed + i`."""

    def __init__(self, reader: Reader, teacher: LatentModel, prompts: Prompts, *, omega: float, seed: int) -> None:
        self.teacher, self.prompts, self.omega, self.seed = teacher, prompts, omega, seed
        self._reader = reader
        self._cond = teacher.encode_text(prompts.texts)
        real = Scenes(PROMPT_SEED + 1, "seen")
        features = read(reader, to_pixels([real[i].image for i in range(REFERENCE_PICTURES)]))[1]
        self._reference = Moments.of(features)

    def protocol(self) -> dict[str, Any]:
        """All that two tables must share to be compared."""
        return {
            "n": len(self.prompts.texts) - self.prompts.unseen,
            "n_unseen": self.prompts.unseen,
            "omega": self.omega,
            "guidance_scale": self.omega + 1,
            "seed": self.seed,
            "prompts_sha256": self.prompts.sha256,
            "fd": f"reader features against {REFERENCE_PICTURES} real scenes",
        }

    def teacher_row(self, steps: int) -> Scored:
        """The reference: DDIM at many steps."""
        return self._baseline("teacher", "ddim", steps, "trailing")

    def baseline_row(self, sampler: SamplerName, steps: int, spacing: Spacing | None = None) -> Scored:
        """At its best spacing when none is given."""
        return self._baseline(sampler, sampler, steps, spacing or BEST_SPACING.get((sampler, steps), "trailing"))

    def student_row(self, student: Pipeline, steps: int) -> Scored:
        return self.score(
            {"sampler": "lcm", "steps": steps, "network_evaluations": steps, "spacing": "lcm"},
            lambda cond, seeds: student.latents(cond, seeds, steps, self.omega),
        )

    def _baseline(self, name: str, sampler: SamplerName, steps: int, spacing: Spacing) -> Scored:
        times = sampling_times(self.teacher.schedule.num_steps, steps, spacing)
        return self.score(
            {
                "sampler": name,
                "steps": steps,
                "network_evaluations": network_evaluations(sampler, steps),
                "spacing": spacing,
            },
            lambda cond, seeds: teacher_latents(self.teacher, sampler, times, cond, seeds, self.omega),
        )

    def score(self, row: dict[str, Any], latents: Latents, batch_size: int = 64) -> Scored:
        """Completes `row` with accuracy, distance and time."""
        begun = time.perf_counter()
        parts = []
        count = len(self.prompts.texts)
        for start in range(0, count, batch_size):
            stop = min(count, start + batch_size)
            cond = {name: value[start:stop] for name, value in self._cond.items()}
            z_0 = latents(cond, range(self.seed + start, self.seed + stop))
            parts.append(self.teacher.decode(z_0).clamp(-1, 1).cpu())
        seconds = (time.perf_counter() - begun) / count
        pixels = torch.cat(parts)
        scenes, features = read(self._reader, pixels)
        right = [
            scene is not None and scene.agrees_with(want)
            for scene, want in zip(scenes, self.prompts.stated, strict=True)
        ]
        seen = count - self.prompts.unseen
        row = {
            **row,
            "guidance_scale": self.omega + 1,
            "prompt_accuracy": _share(right[:seen]),
            "prompt_accuracy_unseen": _share(right[seen:]),
            "fd": round(frechet_distance(Moments.of(features[:seen]), self._reference), 4),
            "seconds_per_image": round(seconds, 5),
        }
        return Scored(row, pixels, scenes)


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None
