"""Which pictures an evaluation paints: the prompt and the seed of each, and what it is painted for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewstep.data.worlds.scenes import Scenes

PROMPT_SEED = 1_000_003  # no training run draws its scenes from this seed by default
_APART = 10_000_000  # between the seeds of two groups, so that no group's pictures depend on the size of another


@dataclass(frozen=True)
class Roster:
    """Lists pictures in the order `main`, `unseen`, `repeated`; each starts from noise of its own seed."""

    prompts: list[str]
    seeds: list[int]
    stated: list[Any] | None
    """Holds what each prompt of a bundled world states, as its reader compares it with a scene."""
    main: int
    """Number of pictures that make the table."""
    unseen: int
    """Number of pictures, of a shape in a colour never trained on, that are scored apart."""
    repeats: int
    """How often each prompt of the last group is painted, one time after another; 0 without that group."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sha256(self) -> str:
        """Hashes the prompts and seeds."""
        lines = [f"{seed} {prompt}" for seed, prompt in zip(self.seeds, self.prompts, strict=True)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def main_part(self) -> slice:
        return slice(0, self.main)

    @property
    def unseen_part(self) -> slice:
        return slice(self.main, self.main + self.unseen)

    @property
    def repeated_part(self) -> slice:
        return slice(self.main + self.unseen, len(self))


def make_scenes_roster(
    n: int, n_unseen: int = 0, repeated: int = 0, repeats: int = 4, *, seed: int = 0, prompt_seed: int = PROMPT_SEED
) -> Roster:
    """Draws prompts of scenes that no picture of a training set was drawn for, and takes the first `repeated` of them
    again, in `repeats` pictures each."""
    main = [Scenes(prompt_seed, "seen").prompt(i) for i in range(n)]
    unseen = [Scenes(prompt_seed, "unseen").prompt(i) for i in range(n_unseen)]
    again = [Scenes(prompt_seed, "seen").prompt(i) for i in range(repeated) for _ in range(repeats)]
    pairs = [*main, *unseen, *again]
    return Roster(
        [text for text, _ in pairs], space_seeds(seed, n, n_unseen, len(again)), [scene for _, scene in pairs],
        n, n_unseen, repeats if repeated else 0,
    )  # fmt: skip


def make_captions_roster(captions: Sequence[str], repeated: int = 0, repeats: int = 4, *, seed: int = 0) -> Roster:
    """Takes captions of real pictures, one picture each."""
    again = [caption for caption in captions[:repeated] for _ in range(repeats)]
    seeds = space_seeds(seed, len(captions), 0, len(again))
    return Roster([*captions, *again], seeds, None, len(captions), 0, repeats if again else 0)


def space_seeds(seed: int, *counts: int) -> list[int]:
    """Returns seeds for groups of so many pictures, one group after another."""
    return [seed + group * _APART + i for group, count in enumerate(counts) for i in range(count)]
