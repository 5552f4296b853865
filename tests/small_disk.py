"""A file system with little room, so that a disk is really full."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

PAGE = 4096


@contextlib.contextmanager
def small_disk(folder: Path, kib: int):
    """Mounts one of so many KiB on `folder`; skips the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def leave_room(folder: Path, pages: int) -> Path:
    """Fills the disk but for so many pages; returns the file to delete for the rest."""
    (filler := folder / "filler").write_bytes(b"")
    state = os.statvfs(folder)
    filler.write_bytes(bytes((state.f_bavail * state.f_frsize // PAGE - pages) * PAGE))
    return filler


def files_of(folder: Path) -> dict[str, bytes]:
    """Returns every file below with its content; folders have none."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != "filler"
    }
