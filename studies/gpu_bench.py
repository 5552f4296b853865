"""Runs the steps of `gpu_steps.py` so that none costs another anything: `bash studies/gpu_bench.sh [--rehearse]`.

A step runs in a process of its own, which has imported what it needs while the step before ran, and is killed at its
limit. Its figures, or why there are none, are in OUT/STEP.json once it ends, what it printed is in OUT/STEP.log; a row
for each is in OUT/index.json. The exit status is the number of steps that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STARTING = 120.0
"""Seconds that a process may take to import the libraries."""


LIMITS = {
    # does it run at all?
    "machine": 60.0, "generate-fp32": 60.0, "generate-bf16": 60.0, "update-sd15-lora": 60.0, "update-sd15": 60.0,
    # training beside the plain arrangement
    "train-sd15-lora": 100.0, "train-sd15": 100.0, "train-sdxl-lora": 120.0,
    # painting beside diffusers
    "paint-1-bf16": 60.0, "paint-16-bf16": 60.0, "paint-1-compiled": 150.0, "paint-16-compiled": 150.0,
    "paint-16-fp16": 60.0, "paint-16-fp32": 60.0,
    # flows
    "train-sd35-lora": 100.0, "train-flux-lora": 120.0,
    # where the time goes, how exact it is, and what compiling brings
    "profile-sd15-lora": 60.0, "profile-sd15": 60.0, "exactness": 60.0, "train-sd15-lora-compiled": 200.0,
    "paint-1-graphs": 150.0,
}  # fmt: skip
"""The steps in the order of their worth, and the seconds that each may take."""


class Worker:
    """A process that runs steps which it is told of, one after the other."""

    def __init__(self, arguments: list[str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "gpu_bench.py"), "--work", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self._ready = False

    def run(self, step: str, limit: float) -> str:
        """Has it run a step; returns why it wrote no result, or nothing."""
        if not self._ready and not self._answers(STARTING):
            return f"no process was ready within {STARTING:g} s"
        self._ready = True
        assert self._process.stdin is not None
        self._process.stdin.write(f"{step}\n".encode())
        self._process.stdin.flush()
        if self._answers(limit):
            return ""
        status = self._process.poll()
        return f"not done within {limit:g} s" if status is None else f"the process ended with status {status}"

    def _answers(self, seconds: float) -> bool:
        """Waits for a line of it; says whether one came."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        if ready and os.read(self._process.stdout.fileno(), 1):
            return True
        if ready:  # its end, whose status is there in a moment
            self._process.wait(10)
        return False

    def end(self) -> None:
        """Ends it and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def drive(options: argparse.Namespace, steps: dict[str, float]) -> int:
    """Runs the steps, each with its limit in seconds, and returns how many failed."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    arguments = ["--out", str(out), "--device", options.device, *(["--rehearse"] if options.rehearse else [])]
    begun, failed = time.monotonic(), 0
    worker, names = Worker(arguments), list(steps)
    for i, step in enumerate(names):
        file = out / f"{step}.json"
        file.unlink(missing_ok=True)
        left = 60 * options.minutes - (time.monotonic() - begun)
        spare = None if options.rehearse or i + 1 == len(names) else Worker(arguments)
        at = time.monotonic()
        missing = worker.run(step, min(steps[step], left)) if left > 0 else f"the {options.minutes:g} minutes were over"
        if missing:
            write(file, {"step": step, "ok": False, "error": missing})
        result = json.loads(file.read_text())
        failed += not result["ok"]
        write(out / "index.json", {"rehearsal": options.rehearse, "steps": list_results(out)})
        said, seconds = "done" if result["ok"] else "FAILED", time.monotonic() - at
        print(f"{step:<26}{said:<8}{seconds:6.1f} s  {result.get('error', '')}", flush=True)
        if spare is not None or not result["ok"]:  # a rehearsal's process goes on while all is well
            worker.end()
            if i + 1 < len(names):
                worker = spare or Worker(arguments)
    worker.end()
    return failed


def list_results(out: Path) -> list[dict[str, Any]]:
    """Reads whether each step has done its work, of all whose files are in the folder."""
    found = [json.loads((out / f"{step}.json").read_text()) for step in LIMITS if (out / f"{step}.json").exists()]
    return [{name: each[name] for name in ("step", "ok", "seconds", "error") if name in each} for each in found]


def work(options: argparse.Namespace) -> None:
    """Runs the steps that are named on stdin, and answers each on stdout once its files are written."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print is none of the answers
    prepare = importlib.import_module("gpu_steps")
    setting = prepare.Setting(options.device, options.out, options.rehearse)
    prepare.get_ready(setting)
    answers.write(b".")
    for line in sys.stdin:
        step = line.strip()
        with open(options.out / f"{step}.log", "wb", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            result: dict[str, Any] = {"step": step, "rehearsal": options.rehearse}
            begun = time.monotonic()
            try:
                result |= {"ok": True, **prepare.run(step, setting)}
            except BaseException as error:  # whatever it is, it is the step's result
                traceback.print_exc()
                result |= {"ok": False, "error": f"{type(error).__name__}: {error}"[:2000]}
            write(options.out / f"{step}.json", result | {"seconds": time.monotonic() - begun})
        answers.write(b".")


def write(file: Path, content: dict[str, Any]) -> None:
    """Writes a file whole or not at all."""
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2, default=str) + "\n")
    draft.replace(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU with miniatures, into a temporary folder")
    parser.add_argument("--out", type=Path, help="folder for the files (default: docs/speed/gpu)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="steps to run (default: all that there are)")
    parser.add_argument("--minutes", type=float, default=10.0, help="no step runs for longer (default: 10)")
    parser.add_argument("--limit", type=float, help="seconds that a step may take, in place of its own limit")
    parser.add_argument("--device", help="what to compute on (default: cuda, and cpu in a rehearsal)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.device = options.device or ("cpu" if options.rehearse else "cuda")
    sys.path.insert(0, str(HERE))
    if options.work:
        work(options)
        return
    if options.out is None:
        options.out = Path(tempfile.mkdtemp()) if options.rehearse else HERE.parent / "docs" / "speed" / "gpu"
    if unknown := set(options.only or ()) - LIMITS.keys():
        parser.error(f"{', '.join(sorted(unknown))} is no step; there are {', '.join(LIMITS)}")
    chosen = {step: options.limit or limit for step, limit in LIMITS.items() if step in (options.only or LIMITS)}
    print(f"{len(chosen)} steps into {options.out}", flush=True)
    sys.exit(drive(options, chosen))


if __name__ == "__main__":
    main()
