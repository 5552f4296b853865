"""How long the command takes from nothing: `fewstep --help`, and `fewstep generate` to its first picture.

    python studies/cold.py        # a minute; let nothing else run

Figures: docs/speed/cold.json, docs/speed.md; 0.05 and 3.73 s.
Every run is a process of its own; the first of each is not counted: it
reads from disk what later ones find in memory.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from fewstep.measure.stopwatch import machine

OUT = Path("docs/speed/cold.json")
RUNS = 5


def seconds(arguments: list[str]) -> list[float]:
    """Of each run but the first."""
    taken = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-m", "fewstep", *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - begun)
    return taken[1:]


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "--help": ["--help"],
            "generate": ["generate", "--prompt", "a pink heart", "--steps", "4", "--out", folder],
        }
        for name, arguments in commands.items():
            taken = seconds(arguments)
            row = {"command": name, "seconds": statistics.median(taken)}
            rows.append({**row, "seconds_low": min(taken), "seconds_high": max(taken)})
            print(rows[-1], flush=True)
    OUT.write_text(json.dumps({"machine": machine(torch.device("cpu")), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
