"""Runs of the command on the miniatures of `flow_miniatures`, each done once, that many tests look at."""

from __future__ import annotations

import contextlib
import functools
import io
from dataclasses import dataclass
from pathlib import Path

from fewstep.cli import main

GUIDED = ("--guidance-range", 4, 4, "--guidance-scale", 4)
_SMALL = ("--steps", 2, "--batch-size", 2, "--log-every", 1, "--data", "PICTURES", "--warmup-steps", 0)
_FEW_STEP = ("scenes", *GUIDED, *_SMALL, "--lr", 3e-3, "--ema-decay", 0.5, "--sample-every", 0, "--resolution", 64)
_DISTILL = ("distill", *_FEW_STEP, "--teacher", "FLOW", "--guided-from", 0)
_LORA = ("--lora-rank", 3, "--lora-alpha", 6)
_ANY_STEP = ("--method", "any-step", "--skip", 125)
_SMALLER = ("--resolution", 32)
LORAS = ("--lora", "@lora/model", "--lora", "@style/model:0.8")
RUNS = {
    "lora": (*_DISTILL, *_LORA, "--sample-every", 2),
    "any-step": (*_DISTILL, *_LORA, *_ANY_STEP),
    "whole": _DISTILL,
    "whole-any-step": (*_DISTILL, *_ANY_STEP, "--lr", 3e-2),
    "prepared": ("prepare", "--model", "FLOW", "--data", "PICTURES", "--resolution", 64),
    "of-prepared": (*_DISTILL, "--data", "@prepared"),
    "style": ("train-lora", "scenes", "--model", "FLOW", *_SMALL, "--resolution", 64, "--lr", 0.1),
    "tuned": ("finetune", *_FEW_STEP, "--model", "@whole/model"),
    "combined": ("combine", "--base", "FLOW", *LORAS),
    "merged": ("combine", "--base", "FLOW", *LORAS, "--merged"),
    "small-whole": (*_DISTILL, *_SMALLER, "--steps", 1, "--ema-decay", 0, "--checkpoint-every", 1),
    "small-any-step": (*_DISTILL, *_SMALLER, *_ANY_STEP, "--steps", 1),
    "small-lora": (*_DISTILL, *_SMALLER, *_LORA, "--steps", 1),
}  # fmt: skip
"""What is given to the command; FLOW and PICTURES are a test's own, and @NAME another run's folder."""


@dataclass(frozen=True)
class Run:
    """The folder of a run, not to be written into, and what the command said."""

    folder: Path
    said: str

    @property
    def model(self) -> Path:
        return self.folder / "model"


def distil(flow: Path, pictures: Path, out: Path, *more: object) -> str:
    """Distils a miniature's smallest pictures for `more`, which is given to the command, and returns what it said."""
    own = {"FLOW": flow, "PICTURES": pictures}
    return run_here(*(own.get(str(word), word) for word in _DISTILL), *_SMALLER, *more, "--out", out)


@functools.cache
def make_run(flow: Path, pictures: Path, name: str) -> Run:
    """Does one of RUNS, and those that it needs."""

    def fill(word: object) -> object:
        if isinstance(word, str) and word.startswith("@"):
            other, slash, rest = word[1:].partition("/")
            return f"{make_run(flow, pictures, other).folder}{slash}{rest}"
        return {"FLOW": flow, "PICTURES": pictures}.get(str(word), word)

    out = flow.parent / "runs" / flow.name / name
    return Run(out, run_here(*map(fill, RUNS[name]), "--out", out))


def run_here(*arguments: object) -> str:
    """Runs the command in this very process, which has read the miniature's frozen parts already, and returns what it
    said. Raises SystemExit where it fails."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        main([*map(str, arguments)])
    return said.getvalue()


def fill_loras(flow: Path, pictures: Path) -> tuple[object, ...]:
    """Returns LORAS as the command is given them."""
    lora, style = (make_run(flow, pictures, name).model for name in ("lora", "style"))
    return ("--lora", lora, "--lora", f"{style}:0.8")
