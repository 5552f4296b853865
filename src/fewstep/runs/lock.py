"""One command at a time writes into a folder: it holds the folder's lock, and who comes second is told who that is.

The lock is the operating system's, on a file that is kept open, so it ends with the process that holds it, however that
ends. The file's text says who it is; where the file system has no locks, the text is all there is.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from fewstep.errors import UserError
from fewstep.files import LOCK_FILE

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LONGEST = 4096
"""Bytes of a lock file that are read."""
_PATIENCE = 1.0
"""Seconds that a holder may take to write who it is."""
_TAKEN = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
"""What the system says where another process holds the lock; whatever else it says, it has no locks there."""
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def _let_go_in_child() -> None:
    # A forked child must not keep its parent's lock alive, nor remove its file.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


@dataclass(frozen=True)
class Holder:
    """Who writes into a folder."""

    pid: int
    host: str
    boot: str
    """Names the machine's kernel since it was started, which containers share; empty where there is no such name."""
    since: str
    sharing: str
    """What all that hold the lock together have in common; empty for one that holds it alone."""

    def __str__(self) -> str:
        host, since = ("".join(c if c.isprintable() else "?" for c in text[:80]) for text in (self.host, self.since))
        return f"process {self.pid} on {host} since {since}"

    def is_elsewhere(self) -> bool:
        """Returns whether it is, or was, on another machine, where this one cannot see whether it still lives."""
        return self.host != socket.gethostname() and (not self.boot or self.boot != _name_boot())

    def is_alive(self) -> bool:
        """Returns whether a process of that number runs on this machine since the same start."""
        if self.boot != _name_boot():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
        except PermissionError:  # another user's
            return True
        return True


_FORM = {"pid": int, "host": str, "boot": str, "since": str, "sharing": str}
"""What a lock's file holds, as JSON."""


class _Grant(enum.Enum):
    """What the operating system says to the wish for a lock."""

    ALONE = enum.auto()
    TOGETHER = enum.auto()
    REFUSED = enum.auto()
    UNKNOWN = enum.auto()
    """It has no locks there."""


@contextlib.contextmanager
def hold_folder(folder: Path, sharing: str = "") -> Iterator[None]:
    """Keeps others from writing into `folder`, which is created if missing, while this lasts.

    Those that name the same `sharing` hold it together. Raises UserError, which says who holds it, where it is held,
    or last was by a machine that cannot be asked; and where nothing can be written there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is not a folder; choose another --out")
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(folder, sharing)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); fix that, or choose another --out") from error
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            _release(folder, descriptor, sharing)
        for each in made:  # by a command that was refused before it wrote anything
            with contextlib.suppress(OSError):
                each.rmdir()


def _acquire(folder: Path, sharing: str) -> int:
    """Returns the open file on which the lock is held, and which says by whom."""
    file = folder / LOCK_FILE
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _check_own(file, descriptor)
            grant = _lock(descriptor, shared=bool(sharing))
            holder = _read(descriptor, patient=grant in (_Grant.TOGETHER, _Grant.REFUSED))
            if _is_at(file, descriptor):
                _check(folder, holder, sharing, grant)
                _take(file, descriptor, sharing, grant)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has just removed it


def _check_own(file: Path, descriptor: int) -> None:
    """Raises UserError where the file is not a lock of ours: what stands in it would be written over."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise UserError(f"{file} is not a lock that fewstep wrote; move it away, or choose another --out")


def _lock(descriptor: int, *, shared: bool) -> _Grant:
    if fcntl is None:
        return _Grant.UNKNOWN
    wishes = [(fcntl.LOCK_EX, _Grant.ALONE), (fcntl.LOCK_SH, _Grant.TOGETHER)]
    for how, grant in wishes if shared else wishes[:1]:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:
                return _Grant.UNKNOWN
        else:
            return grant
    return _Grant.REFUSED


def _check(folder: Path, holder: Holder | None, sharing: str, grant: _Grant) -> None:
    """Raises UserError where `holder`, which the lock's file names, keeps this process off."""
    ours = grant is not _Grant.REFUSED and bool(sharing) and holder is not None and holder.sharing == sharing
    if ours or (holder is None and grant in (_Grant.ALONE, _Grant.UNKNOWN)):
        return
    who = holder or "another process"
    if grant in (_Grant.REFUSED, _Grant.TOGETHER):
        raise UserError(f"{folder} is being written by {who}; wait until that ends, or choose another --out")
    assert holder is not None
    if holder.is_elsewhere():
        raise UserError(
            f"{folder} was last written by {who}, which did not say that it ended and cannot be asked from "
            f"{socket.gethostname()}: if it has ended, delete {folder / LOCK_FILE}, else choose another --out"
        )
    if grant is _Grant.UNKNOWN and holder.pid != os.getpid() and holder.is_alive():
        raise UserError(
            f"{folder} is being written by {who}; wait until that ends, or choose another --out; if that process is "
            f"no fewstep, delete {folder / LOCK_FILE}"
        )


def _take(file: Path, descriptor: int, sharing: str, grant: _Grant) -> None:
    """Writes who holds the lock, and lets those in who share it."""
    if grant is _Grant.TOGETHER:
        return
    if grant is _Grant.UNKNOWN:
        print(f"note: nothing can be locked in {file.parent}; what keeps others off is only {file}", file=sys.stderr)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    holder = Holder(os.getpid(), socket.gethostname(), _name_boot(), since, sharing)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(holder)).encode() + b"\n", 0)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    if sharing and grant is _Grant.ALONE:
        # Not in one step: another may come between, and then it is its text that counts.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _check(file.parent, _read(descriptor, patient=True), sharing, _Grant.TOGETHER)


def _release(folder: Path, descriptor: int, sharing: str) -> None:
    """Removes the file, unless others share it still, and closes it."""
    file = folder / LOCK_FILE
    with contextlib.suppress(OSError):  # the folder may be gone
        last = not sharing or _lock(descriptor, shared=False) is not _Grant.REFUSED
        if last and _is_at(file, descriptor):
            file.unlink()
    os.close(descriptor)


def _is_at(file: Path, descriptor: int) -> bool:
    """Returns whether the open file is the one of that name still."""
    try:
        return os.path.samestat(os.lstat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _read(descriptor: int, *, patient: bool) -> Holder | None:
    """Returns who the file says holds the lock, or None where it says nothing that can be read."""
    until = time.monotonic() + (_PATIENCE if patient else 0)
    while True:
        try:
            values = json.loads(os.pread(descriptor, _LONGEST, 0))
            if {name: type(value) for name, value in values.items()} == _FORM and values["pid"] > 0:
                return Holder(**values)
        except (ValueError, AttributeError, RecursionError):
            pass
        if time.monotonic() >= until:
            return None
        time.sleep(0.02)


def _name_boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return ""
