"""What can be told of a run's folder at a glance: which command's it is, how far it came, and how it goes on."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.documents import load_yaml

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"
_REPORT = "made_of.json"
"""What an evaluation's folder holds."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a training, or of an evaluation."""

    folder: Path
    command: str
    """Is `distill`, `finetune`, `train-lora` or `evaluate`."""
    step: int = 0
    """The update of the newest checkpoint; 0 before there is one."""
    steps: int = 0
    ended: bool = True

    @property
    def kind(self) -> str:
        """Names it with its article."""
        return "an evaluation" if self.command == "evaluate" else f"a {self.command} run"

    def describe(self) -> str:
        """Says what it is and, where it has not ended, where it stopped and how it goes on."""
        if self.ended:
            return f"{self.folder} is {self.kind}"
        where = f"at update {self.step} of {self.steps:,}" if self.step else "before its first checkpoint"
        out = shlex.quote(str(self.folder))
        return (
            f"{self.folder} is {self.kind} that stopped {where}; it goes on with: "
            f"fewstep {self.command} {shlex.quote(str(self.folder / CONFIG_FILE))} --out {out}"
        )

    def describe_as_lora(self) -> str:
        """Says why it holds no LoRA, and what it is good for."""
        if self.command == "evaluate":
            return f"{self.describe()} and holds no LoRA; give the folder of a run that made one"
        paints = f"; paint with it as it is by --model {self.folder}" if self.step and self.makes_few_step else ""
        if not self.ended:
            return f"{self.describe()}{paints}"
        return f"{self.describe()} and its model is whole, not a LoRA; give it with --model {self.folder}"

    @property
    def makes_few_step(self) -> bool:
        """Tells whether what it makes paints by itself."""
        return self.command in ("distill", "finetune")


def find_run(folder: str | Path) -> RunFolder | None:
    """Returns what a folder is the run of; None where it is of none that this version knows."""
    folder = Path(folder)
    if (folder / _REPORT).is_file():
        return RunFolder(folder, "evaluate")
    try:
        settings = load_yaml(folder / CONFIG_FILE)
    except (OSError, ValueError):
        return None
    command = name_command(settings)
    if command is None:
        return None
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (folder / CHECKPOINTS).glob("step-*"))
    step = max((int(name[1]) for name in names if name), default=0)
    steps = settings.get("steps")
    return RunFolder(
        folder, command, step, steps if isinstance(steps, int) else 0, ended=(folder / "model").exists()
    )  # fmt: skip


def name_command(settings: Any) -> str | None:
    """Returns the command whose training has these settings, by those that no other has."""
    if not isinstance(settings, dict) or "steps" not in settings:
        return None
    if "teacher" in settings and "skip" in settings:
        return "distill"
    if "model" in settings and "skip" in settings:
        return "finetune"
    return "train-lora" if "model" in settings and "lora_rank" in settings else None
