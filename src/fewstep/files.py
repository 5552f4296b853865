"""Writes files and folders completely or not at all, and reads safetensors files with errors that name the file."""

from __future__ import annotations

import contextlib
import glob
import math
import os
import re
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DRAFT_MARK = ".tmp-"
"""Part of the name of every draft, after the name of the finished file."""


@contextlib.contextmanager
def write_whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields the path of a draft to write into, which replaces `path` at the end.

    The draft is in the same folder, which is created if missing, and is removed if writing fails. With `durable`, the
    content reaches the disk before the draft is renamed, and the new name before this returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _name_draft(path)
    draft.touch()
    mode = stat.S_IMODE(draft.stat().st_mode)
    try:
        yield draft
        if stat.S_IMODE(draft.stat().st_mode) != mode:
            draft.chmod(mode)  # safetensors writes files that only their owner may read
        if durable:
            sync(draft)
        os.replace(draft, path)
        if durable:
            sync(path.parent)
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path, *, keep_existing: bool = False) -> Iterator[Path]:
    """Yields a draft folder to write into, which replaces `folder` at the end.

    The draft is beside `folder` and is removed if writing fails. With `keep_existing`, a folder that another process
    has created meanwhile is kept, and the draft is removed.
    """
    remove_abandoned(folder.parent, folder.name)
    draft = _name_draft(folder)
    _remove(draft)
    draft.mkdir(parents=True)
    try:
        yield draft
        readable = stat.S_IMODE(draft.stat().st_mode) & 0o666
        for file in draft.rglob("*.safetensors"):  # as in write_whole
            file.chmod(readable)
        if keep_existing:
            _rename_unless_exists(draft, folder)
        else:
            _swap(draft, folder)
    finally:
        _remove(draft)


def _rename_unless_exists(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)  # fails where there is a folder that is not empty
    except OSError:
        if not folder.exists():
            raise


def _swap(draft: Path, folder: Path) -> None:
    # Moved away before it is deleted, so that a half-deleted folder never has its name.
    old = draft.with_name(f"{draft.name}.old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    draft.rename(folder)
    _remove(old)


def _name_draft(path: Path) -> Path:
    """Returns a path that no other thread, process or machine uses."""
    return path.with_name(f"{path.name}{_host_mark()}{os.getpid()}-{threading.get_ident()}")


def _host_mark() -> str:
    return f"{DRAFT_MARK}{socket.gethostname()}-"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_abandoned(folder: Path, name: str | None = None) -> None:
    """Removes drafts in `folder`, or only those of `name`, whose processes on this machine no longer exist."""
    start = "*" if name is None else glob.escape(name)
    for draft in folder.glob(f"{start}{glob.escape(_host_mark())}*"):
        process = re.fullmatch(rf".*{re.escape(_host_mark())}(\d+)-\d+", draft.name)
        try:
            if process:
                os.kill(int(process[1]), 0)
        except ProcessLookupError:
            _remove(draft)
        except (OverflowError, PermissionError):  # no process's number, or another user's
            pass


def sync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class SafetensorsHeader:
    """The shapes and the metadata in the header of a safetensors file."""

    shapes: dict[str, tuple[int, ...]]
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


_ADVICE = "fetch or write it again"


def read_safetensors_header(path: Path, *, advice: str = _ADVICE) -> SafetensorsHeader:
    """Reads names, shapes and metadata without the tensors. Raises UserError as `open_safetensors` does."""
    with _explained(path, advice), open_safetensors(path, advice=advice) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # not a mapping
        return SafetensorsHeader(shapes, dict(file.metadata() or {}))


def read_safetensors(path: Path, *, advice: str = _ADVICE) -> dict[str, Tensor]:
    """Reads all tensors to the CPU. Raises UserError as `open_safetensors` does."""
    with _explained(path, advice), open_safetensors(path, advice=advice) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping


def open_safetensors(path: Path, *, advice: str = _ADVICE) -> Any:
    """Opens a safetensors file, to read some of its tensors.

    Raises UserError, which ends with `advice`, where it does not exist, has another suffix, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; {advice}")
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file; no other kind is read, convert it first")
    import safetensors

    with _explained(path, advice):
        return safetensors.safe_open(path, "pt")


@contextlib.contextmanager
def _explained(path: Path, advice: str) -> Iterator[None]:
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is damaged or not a safetensors file"
        raise UserError(f"{path} {what} ({' '.join(str(error).split())[:120]}); {advice}") from error
