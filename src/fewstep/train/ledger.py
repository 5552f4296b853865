"""The account of a run's samples: which could not be read, and, if asked for, which came in which update."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from fewstep.data.latents import DroppedPicture
from fewstep.data.sources.filters import Reason
from fewstep.documents import parse_json
from fewstep.errors import UserError
from fewstep.files import append_lines, write_whole

DROPPED_FILE = "dropped.jsonl"
SAMPLES_FILE = "samples.jsonl"
MOST_DROPPED = 0.05
"""Above this share of all samples something is wrong with the data, and the run stops."""
MOST_IN_A_ROW = 100
_NONE_AT_FIRST = 8
"""Where so many samples are all that there were, and none could be read, nothing was learnt."""
_BROKEN = frozenset(map(str, Reason))


class Ledger:
    """Is kept by a run's main process; goes on at `counter`, and forgets what was written after it."""

    def __init__(self, folder: Path, counter: int, *, samples: bool) -> None:
        """Opens the ledger; `samples` has it write the keys of every update's samples too."""
        self._dropped, self._samples = folder / DROPPED_FILE, folder / SAMPLES_FILE if samples else None
        self._count, self._last, self._in_a_row, self._longest = 0, -1, 0, 0
        for path in (self._dropped, self._samples):
            if path is not None and path.exists():
                kept = [line for line in read_lines(path) if number_in(line, "counter") < counter]
                rewrite(path, kept)
                if path == self._dropped:
                    self._note([_read_dropped(line, path) for line in kept])

    def record(self, counter: int, dropped: Sequence[DroppedPicture]) -> None:
        """Adds what could not be read before `counter`, in the order of counters. Raises UserError where it is too
        much."""
        if dropped:
            append_lines(self._dropped, [json.dumps(vars(each)) for each in dropped])
        self._note(dropped)
        worst = f"the last was {dropped[-1].key} ({dropped[-1].reason})" if dropped else ""
        if dropped and self._count == counter >= _NONE_AT_FIRST:
            raise UserError(f"none of the first {counter} pictures could be read; {worst}")
        if self._longest >= MOST_IN_A_ROW:
            raise UserError(f"{self._longest} pictures in a row could not be read; {worst}: fix that shard")
        if dropped and self._count > MOST_DROPPED * counter and self._count >= MOST_IN_A_ROW:
            raise UserError(
                f"{self._count} of {counter} pictures could not be read, more than {MOST_DROPPED:.0%}; {worst}; "
                f"{self._dropped} lists them"
            )

    def _note(self, dropped: Sequence[DroppedPicture]) -> None:
        broken = [each for each in dropped if is_broken(each.reason)]
        for each in broken:
            self._in_a_row = self._in_a_row + 1 if each.counter == self._last + 1 else 1
            self._last, self._longest = each.counter, max(self._longest, self._in_a_row)
        self._count += len(broken)

    def record_samples(self, step: int, counters: range, keys: Sequence[str]) -> None:
        """Adds the samples of one update, if they are wanted."""
        if self._samples is not None:
            line = {"step": step, "counter": counters.start, "keys": list(keys)}
            append_lines(self._samples, [json.dumps(line)])


def is_broken(reason: str) -> bool:
    """Returns whether the picture is spoilt; else a filter has refused it, once its true sides were known."""
    return reason in _BROKEN


def rewrite(path: Path, lines: Sequence[str]) -> None:
    """Leaves the file with these lines, or as it was."""
    with write_whole(path) as draft:
        draft.write_text("".join(line + "\n" for line in lines))


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file that a run keeps; what is not text in it makes its line one that is not kept."""
    return path.read_text(errors="replace").splitlines()


def number_in(line: str, name: str) -> float:
    """Returns a number of a line of JSON; infinity where it has none, as where it was cut off by an interruption."""
    try:
        value = parse_json(line)[name]
        return float(value) if isinstance(value, int | float) else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _read_dropped(line: str, source: Path) -> DroppedPicture:
    try:
        found = DroppedPicture(**parse_json(line))
        if type(found.counter) is not int or not isinstance(found.key, str) or not isinstance(found.reason, str):
            raise TypeError("a number and two texts are wanted")
        return found
    except TypeError as error:
        raise UserError(f"{source} has a line that is none of a dropped picture's ({line:.80}); remove it") from error
