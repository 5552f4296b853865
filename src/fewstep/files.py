"""Writes files and folders completely or not at all, and reads safetensors files with errors that name the file."""

from __future__ import annotations

import contextlib
import errno
import glob
import math
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from fewstep.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

DRAFT_MARK = ".tmp-"
"""Part of the name of every draft, after the name of the finished file."""
LOCK_FILE = ".lock"
"""Says who writes into a folder, while somebody does."""


def is_vacant(folder: Path) -> bool:
    """Returns whether nothing is there, or an empty folder: the lock of whoever is about to write does not count."""
    return not os.path.lexists(folder) or (folder.is_dir() and all(path.name == LOCK_FILE for path in folder.iterdir()))


_REFUSED = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT,
)  # fmt: skip
"""What a disk says that does not take a file: full in three ways, not to be written in three, broken, or gone."""


@contextlib.contextmanager
def write_whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yields the path of a draft to write into, which replaces `path` at the end.

    The draft is in the same folder, which is created if missing, and is removed if writing fails. With `durable`, the
    content reaches the disk before the draft is renamed, and the new name before this returns.
    Raises OSError, which names `path`, where the disk does not take it, whatever the library that writes says then.
    """
    draft = name_draft(path)
    with refusals_named(path, draft):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))  # follows no link
        try:
            mode = stat.S_IMODE(draft.stat().st_mode)
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

    The draft is beside `folder` and is removed if writing fails; all of it is on the disk before it is renamed, and the
    new name before this returns. With `keep_existing`, a folder that another process has created meanwhile is kept, and
    the draft is removed. Raises OSError as `write_whole` does.
    """
    remove_abandoned(folder.parent, folder.name)
    draft = name_draft(folder)
    with refusals_named(folder, draft):
        draft.mkdir(parents=True)
        try:
            yield draft
            readable = stat.S_IMODE(draft.stat().st_mode) & 0o666
            for file in draft.rglob("*.safetensors"):  # as in write_whole
                file.chmod(readable)
            for path in (*draft.rglob("*"), draft):
                sync(path)
            if keep_existing:
                _rename_unless_exists(draft, folder)
            else:
                _swap(draft, folder)
            sync(folder.parent)
        finally:
            _remove(draft)


@contextlib.contextmanager
def create_new(paths: Iterable[Path]) -> Iterator[BinaryIO]:
    """Yields the file of the first of these names that nothing has yet, open for writing; it is removed if that fails.

    Follows no link, and never writes what another process has created meanwhile.
    """
    for path in paths:
        with contextlib.suppress(FileExistsError):
            file = path.open("xb")
            break
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    try:
        with refusals_named(path), file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Adds lines to a file, all of them or none. Raises OSError as `write_whole` does."""
    size = path.stat().st_size if path.exists() else 0
    with refusals_named(path):
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise


@contextlib.contextmanager
def refusals_named(path: Path, draft: Path | None = None) -> Iterator[None]:
    """Raises OSError with the name of `path` for what a disk says that does not take it, or its draft.

    Libraries written in Rust say it in exceptions of their own.
    """
    try:
        yield
    except Exception as error:
        number, where = _read_refusal(error)
        if number not in _REFUSED or (where and not (draft and where.startswith(str(draft)))):
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _read_refusal(error: Exception) -> tuple[int, str]:
    """Returns the system's number of an error, or 0, and the file that it names, if any."""
    if isinstance(error, OSError):
        return error.errno or 0, os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    said = re.search(r"\(os error (\d+)\)", str(error))
    return int(said[1]) if said else 0, ""


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


def name_draft(path: Path) -> Path:
    """Returns a path that no other thread, process or machine uses, and nobody can foresee."""
    return path.with_name(f"{path.name}{_host_mark()}{os.getpid()}-{secrets.token_hex(4)}")


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
        process = re.fullmatch(rf".*{re.escape(_host_mark())}(\d+)-[0-9a-f]+", draft.name)
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
_LONGEST_HEADER = 2**24
"""Bytes: a model of 2,000 tensors has 0.3 MiB."""


def read_safetensors_header(path: Path, *, advice: str = _ADVICE) -> SafetensorsHeader:
    """Reads names, shapes and metadata without the tensors. Raises UserError as `open_safetensors` does."""
    with explain_damage(path, advice), open_safetensors(path, advice=advice) as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  # not a mapping
        return SafetensorsHeader(shapes, dict(file.metadata() or {}))


def read_safetensors(path: Path, *, advice: str = _ADVICE) -> dict[str, Tensor]:
    """Reads all tensors to the CPU. Raises UserError as `open_safetensors` does."""
    with explain_damage(path, advice), open_safetensors(path, advice=advice) as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a mapping


def has_suffix(path: Path) -> bool:
    """Says whether a file is called as safetensors are; some are released with the short form."""
    return path.suffix.lower() in (".safetensors", ".sft")


def open_safetensors(path: Path, *, advice: str = _ADVICE) -> Any:
    """Opens a safetensors file, to read some of its tensors.

    Raises UserError, which ends with `advice`, where it does not exist, has another suffix, or is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; {advice}")
    if not has_suffix(path):
        raise UserError(f"{path} is not a .safetensors file; no other kind is read, convert it first")
    import safetensors

    with explain_damage(path, advice):
        with path.open("rb") as file:
            first = file.read(8)
        length = int.from_bytes(first, "little")
        if length > _LONGEST_HEADER and all(32 <= letter < 127 or letter in b"\t\r\n" for letter in first):
            raise ValueError("it begins as a text does")
        if length > _LONGEST_HEADER:
            raise ValueError(f"its header has {length:,} bytes, at most {_LONGEST_HEADER:,} are read")
        return safetensors.safe_open(path, "pt")


@contextlib.contextmanager
def explain_damage(path: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turns what safetensors raises of a file, as of one opened before, into a UserError that names it."""
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        what = "cannot be read" if isinstance(error, OSError) else "is damaged or not a safetensors file"
        raise UserError(f"{path} {what} ({' '.join(str(error).split())[:120]}); {advice}") from error
