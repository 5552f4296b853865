"""Runs numbered inputs in a process of its own, with caps on memory and time, and writes down what went wrong."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

HANG_SECONDS = 5.0
"""Of processor time: other processes' work is not counted."""
_KILL_AFTER = 120
MEMORY = 3 * 2**30
"""More address space than the process had with everything imported."""
_WATCHED = (
    "socket.connect",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "pickle.find_class",
)


_SYSTEM = (
    "/proc/self",
    "/proc/cpuinfo",
    "/sys/",
    "/dev/null",
    "/dev/urandom",
    "/usr/share/zoneinfo",
    "/usr/lib",
    "/lib",
)
"""What Python and its libraries read of the system; code, which is imported where it is needed, comes to it."""


def run_inputs(seed: int, first: int, last: int, folder: str, only: str) -> None:
    """Runs inputs `first` to `last`, and appends to a file in `folder` a line of each fault and one of sums."""
    place = Path(folder)
    with (place / "stderr").open("w") as errors:
        os.dup2(errors.fileno(), 2)
    faulthandler.enable()
    import torch

    torch.set_num_threads(1)
    fuzz = Fuzz(seed, place, only)
    with (place / f"found-{first}.jsonl").open("w", buffering=1) as found:
        begun = time.monotonic()
        for number in range(first, last):
            (place / "current").write_text(str(number))
            if fault := fuzz.run(number):
                found.write(json.dumps({"number": number, **fault}) + "\n")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sums = {"counts": fuzz.counts, "seconds": time.monotonic() - begun, "peak": peak, "slowest": fuzz.slowest}
        found.write(json.dumps(sums) + "\n")


class Fuzz:
    """Makes and reads the inputs of one seed."""

    def __init__(self, seed: int, place: Path, only: str = "") -> None:
        import corpus
        import readers

        self._readers, self._seed, self._work = readers, seed, place / "work"
        outside = place / "outside"
        outside.mkdir(exist_ok=True)
        (outside / "secret.png").write_bytes(corpus.draw_picture("PNG"))
        (outside / "secret").write_text("secret")
        self._outside = str(outside)
        tempfile.tempdir = str(place)
        seeds = place / "seeds"
        shutil.rmtree(seeds, ignore_errors=True)
        seeds.mkdir()
        self.corpus = corpus.build_corpus(seeds, outside)
        names = {name: each.weight for name, each in readers.READERS.items() if only in name}
        self._names, self._weights = list(names), list(names.values())
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.slowest: dict[str, float] = dict.fromkeys(names, 0.0)
        imported = (path for path in sys.path if os.path.isdir(path))
        code = (sys.prefix, sys.base_prefix, Path(__file__).parents[2], *imported)
        self._allowed = (*map(os.path.realpath, (place, *code)), f"/proc/{os.getpid()}/", *_SYSTEM)
        self._seen: list[str] = []
        self._watching = False
        sys.addaudithook(self._watch)
        _cap_memory()

    def _watch(self, event: str, args: tuple[Any, ...]) -> None:
        if not self._watching:
            return
        if event in _WATCHED:
            self._seen.append(f"{event} {args!r:.200}")
        elif event == "open" and isinstance(args[0], str | bytes):
            path = os.path.realpath(os.fsdecode(args[0]))
            if not path.startswith(self._allowed) or path.startswith(self._outside):
                self._seen.append(f"open {path}")

    def run(self, number: int) -> dict[str, Any] | None:
        """Makes and reads one input; returns what went wrong, if anything."""
        rng = Random(f"{self._seed} {number}")
        name = rng.choices(self._names, self._weights)[0]
        work = self._work / str(number)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        fault: dict[str, Any] | None = None
        faulthandler.dump_traceback_later(_KILL_AFTER, exit=True)
        self._seen.clear()
        begun = time.process_time()
        self._watching = True
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                self._readers.READERS[name].read(self.corpus, work, rng)
            end = "read"
        except self._readers.REFUSALS as refusal:
            end = "refused"
            if len(lines := str(refusal).splitlines()) > 1 and len(" ".join(lines)) > 4000:
                fault = {"kind": "long message", "what": str(refusal)[:500]}
        except BaseException as error:  # every other end is a fault
            end = "fault"
            fault = {"kind": type(error).__name__, "what": "".join(traceback.format_exception(error))[-3000:]}
        finally:
            self._watching = False
            faulthandler.cancel_dump_traceback_later()
        took = time.process_time() - begun
        self.slowest[name] = max(self.slowest[name], took)
        if took > HANG_SECONDS:
            fault = {"kind": "hang", "what": f"{took:.1f} s"}
        if self._seen:
            fault = {"kind": "outside", "what": "; ".join(self._seen)[:1000]}
        self.counts[name]["fault" if fault else end] += 1
        if fault:
            return {"reader": name, **fault}
        shutil.rmtree(work, ignore_errors=True)
        return None


def _cap_memory() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_all(seed: int, count: int, folder: Path, only: str = "", batch: int = 5000) -> dict[str, Any]:
    """Runs `count` inputs in processes of `batch` of them, each begun anew after one that died; returns the sums."""
    from warm_command import FORK, start_server

    start_server()

    faults: list[dict[str, Any]] = []
    counts: dict[str, Counter[str]] = {}
    seconds, peak, number = 0.0, 0, 0
    slowest: dict[str, float] = {}
    while number < count:
        last = min(count, number + batch)
        found = folder / f"found-{number}.jsonl"
        process = FORK.Process(target=run_inputs, args=(seed, number, last, str(folder), only))
        process.start()
        process.join()
        lines = [json.loads(line) for line in found.read_text().splitlines()] if found.exists() else []
        faults += [line for line in lines if "number" in line]
        if process.exitcode:
            died = int((folder / "current").read_text())
            errors = (folder / "stderr").read_text()[-1500:]
            faults.append({"number": died, "reader": "?", "kind": f"exit {process.exitcode}", "what": errors})
            number = died + 1
            continue
        number = last
        (sums,) = (line for line in lines if "counts" in line)
        for name, each in sums["counts"].items():
            counts.setdefault(name, Counter()).update(each)
            slowest[name] = max(slowest.get(name, 0.0), sums["slowest"][name])
        seconds, peak = seconds + sums["seconds"], max(peak, sums["peak"])
    return {"faults": faults, "counts": counts, "seconds": seconds, "peak": peak, "slowest": slowest}
