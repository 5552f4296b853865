"""Checkpoints: folders of files and their hashes that appear whole or not at all, and are believed only if whole."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from fewstep.documents import load_bytes, parse_json
from fewstep.errors import UserError, show
from fewstep.files import DRAFT_MARK, name_draft, read_safetensors, refusals_named, sync
from fewstep.train.soundness import list_parts, open_tensors, read_numbers
from fewstep.train.state import RunState

TENSORS_FILE = "state.safetensors"
NUMBERS_FILE = "state.json"
MANIFEST_FILE = "manifest.json"
_MOST_WORDS = 200
LEAST_KEPT = 2
"""Keeps the one before there for when the newest turns out to be spoilt."""


class Checkpoints:
    """Keeps those of one run; one process writes, any number read."""

    def __init__(self, folder: Path, configuration: str = "") -> None:
        """`configuration` is what every checkpoint records as the run's."""
        self.folder, self._configuration = folder, configuration
        self._whole: dict[Path, bool] = {}  # what has been found out, since hashing a large one takes minutes

    def make_folder(self) -> None:
        """Makes the folder that they lie in, where it is not there."""
        self.folder.mkdir(parents=True, exist_ok=True)

    def pick(self, state: RunState) -> dict[str, Tensor]:
        """Returns what this process writes of a state."""
        return state.tensors()

    def save(self, tensors: dict[str, Tensor], numbers: dict[str, Any], keep: int) -> None:
        """Writes `step-N`; older ones beyond the `keep` newest whole ones go only after it is whole.

        Every file is on the disk, and so is the folder that names them, before the rename; the rename is on the disk
        before anything older is deleted.
        """
        final = self.folder / f"step-{numbers['step']:07d}"
        draft = name_draft(final)
        try:
            with refusals_named(final, draft):
                self._write(draft, final, tensors, numbers)
        except Exception as error:
            shutil.rmtree(draft, ignore_errors=True)
            if isinstance(error, OSError):
                raise UserError(self._explain_refusal(error)) from error
            raise
        self._whole[final] = True
        self._purge(max(keep, LEAST_KEPT))

    def _write(self, draft: Path, final: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        draft.mkdir()  # and not the run's folder, should somebody have removed that
        files = self._write_tensors(draft / TENSORS_FILE, tensors)
        (draft / NUMBERS_FILE).write_text(json.dumps(numbers))
        files[NUMBERS_FILE] = _measure(draft / NUMBERS_FILE)
        content = {"configuration": self._configuration, "counter": numbers["counter"], "files": files}
        (draft / MANIFEST_FILE).write_text(_format_manifest(content))
        for path in (*(draft / name for name in (*files, MANIFEST_FILE)), draft):
            sync(path)
        if final.exists():  # of an earlier attempt, and not whole, else the run would have gone on from it
            shutil.rmtree(final)
        draft.rename(final)
        sync(self.folder)

    def _write_tensors(self, path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
        safetensors.torch.save_file(tensors, path)
        return {path.name: _measure(path)}

    def _explain_refusal(self, error: OSError) -> str:
        last = next((path.name for path in reversed(self.list()) if self.is_whole(path)), None)
        stands = f"{last} stands whole" if last else "there is none before it"
        return (
            f"a checkpoint cannot be written to {self.folder} ({error.strerror or error}); {stands}: "
            "make room or fix the folder, and the same command goes on"
        )

    def _purge(self, keep: int) -> None:
        found = self.list()
        whole = [path for path in found if self.is_whole(path)]
        oldest = whole[-keep:][0]
        for old in found[: found.index(oldest)]:  # the spoilt ones before it too
            self._whole.pop(old, None)
            gone = name_draft(old)  # a kill in the middle of deleting leaves no spoilt checkpoint
            old.rename(gone)
            shutil.rmtree(gone)
        for path in self.folder.glob(f"step-*{DRAFT_MARK}*"):
            shutil.rmtree(path, ignore_errors=True)

    def list(self) -> list[Path]:
        """Returns the finished ones, whole or spoilt, oldest first."""
        found = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in self.folder.glob("step-*"))
        return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]

    def is_whole(self, checkpoint: Path) -> bool:
        """Returns whether every file has the size and the hash that its manifest says."""
        if checkpoint not in self._whole:
            self._whole[checkpoint] = why_spoilt(checkpoint) is None
        return self._whole[checkpoint]

    def newest(self, why_unfit: Callable[[Path], str | None] = lambda _: None) -> Path | None:
        """Returns the newest whole one that fits, with a warning where a newer one is spoilt or does not; None when
        there is none at all. `why_unfit` says why a whole one is of no use.

        Raises UserError when there are some and none is of use.
        """
        spoilt, unfit = [], []
        for checkpoint in reversed(self.list()):
            why = why_spoilt(checkpoint)
            if why is not None:
                spoilt.append(f"{checkpoint.name} ({why})")
            elif (why := why_unfit(checkpoint)) is not None:
                unfit.append(f"{checkpoint.name} ({why[:_MOST_WORDS]})")
            self._whole[checkpoint] = why is None
            if why is not None:
                continue
            for what, found in (("not whole", spoilt), ("whole and not of this run", unfit)):
                if found:
                    said = show(f"warning: {what}: {', '.join(found)}; going on from {checkpoint.name}")
                    print(said, file=sys.stderr)
            return checkpoint
        if unfit:
            raise UserError(
                f"no checkpoint in {self.folder} is of this run: {', '.join([*unfit, *spoilt])}; an earlier version of "
                "fewstep may have written them: choose another --out"
            )
        if spoilt:
            raise UserError(
                f"no checkpoint in {self.folder} is whole: {', '.join(spoilt)}; delete them to begin anew, or choose "
                "another --out"
            )
        return None


def why_spoilt(checkpoint: Path) -> str | None:
    """Returns what is wrong with it, or None."""
    try:
        text = load_bytes(checkpoint / MANIFEST_FILE).decode()
        content = parse_json(text)["content"]
        if text != _format_manifest(content):
            return f"{MANIFEST_FILE} is damaged"
        files = content["files"]
        parts = {*(path.name for path in list_parts(checkpoint / TENSORS_FILE)), *files} - {TENSORS_FILE, NUMBERS_FILE}
        for name in (TENSORS_FILE, NUMBERS_FILE, *sorted(parts)):
            if not (checkpoint / name).is_file():
                return f"{name} is missing"
            size = (checkpoint / name).stat().st_size  # first, since it may be a terabyte of nothing
            if size != files[name]["bytes"] or _measure(checkpoint / name) != files[name]:
                return f"{name} is damaged"
    except OSError as error:
        return f"{Path(error.filename or MANIFEST_FILE).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST_FILE} is damaged"
    return None


def files_of(checkpoint: Path) -> tuple[Path, Path]:
    """Returns the files of its tensors and of its numbers."""
    return checkpoint / TENSORS_FILE, checkpoint / NUMBERS_FILE


def restore(state: RunState, checkpoint: Path) -> None:
    """Takes over a whole one. Raises UserError where it is of another model."""
    try:
        tensors, numbers = files_of(checkpoint)
        if state.is_spread or list_parts(tensors):
            open_tensors(tensors, spread=True).restore(state, read_numbers(numbers))
        else:
            state.restore(read_safetensors(tensors), read_numbers(numbers))
    except (KeyError, RuntimeError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"checkpoint {checkpoint} is whole and not of this run ({reason}); an earlier version of fewstep may have "
            "written it: choose another --out"
        ) from error


def _format_manifest(content: dict[str, Any]) -> str:
    """Returns the text of the file, with its own hash, so that it vouches for itself too."""
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({"content": content, "sha256": sha256}, indent=2)


def _measure(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": sha256}
