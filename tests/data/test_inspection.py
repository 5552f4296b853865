"""Folders are opened by headers, and what was seen is kept as long as the files stay the same."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.data.sources import inspection
from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.fitting import PictureLimits
from fewstep.data.sources.folder import FolderPictures, open_folder
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., FolderPictures]:
    cache = CacheSettings(folder=tmp_path / "cache")
    return lambda **given: open_folder(tmp_path / "d", Selection(**given), cache)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read, in any order."""
    found: list[str] = []
    opens = os.open

    def note(path: str, *given: int, **more: int) -> int:
        found.append(Path(path).name)
        return opens(path, *given, **more)

    monkeypatch.setattr(os, "open", note)
    return found


def age(path: Path, seconds: float = 60) -> None:
    """Makes a file older than it is."""
    then = path.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def test_a_second_start_reads_nothing_that_has_stayed_the_same(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., FolderPictures], looks: list[str]
):
    for name in ("a.png", "b.png", "c.png"):
        path = add(tmp_path / "d", name, name)
        age(path)
        age(path.with_suffix(".txt"))
    (tmp_path / "d/c.png").write_bytes(b"no picture")
    age(tmp_path / "d/c.png")
    first = opened()
    assert set(looks) >= {"a.png", "a.txt", "b.png", "b.txt", "c.png"}
    looks.clear()
    again = opened()
    assert (again.samples, again.report) == (first.samples, first.report)
    assert not [name for name in looks if name.endswith((".png", ".txt"))]
    assert len(opened(limits=PictureLimits(max_pixels=1200))) == 2  # limits are not kept
    with pytest.raises(Exception, match="2 too large"):
        opened(limits=PictureLimits(max_pixels=1199))
    (tmp_path / "d/b.txt").write_text("other")
    Image.new("RGB", (50, 60)).save(tmp_path / "d/c.png")
    add(tmp_path / "d", "e.png", "e")
    looks.clear()
    assert dict(opened().samples) == {"a.png": "a.png", "b.png": "other", "c.png": "c.png", "e.png": "e"}
    assert sorted(name for name in looks if name.endswith((".png", ".txt"))) == ["b.txt", "c.png", "e.png", "e.txt"]


def test_what_was_just_written_is_looked_at_again(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., FolderPictures]
):
    path = add(tmp_path / "d", "a.png", "a")
    opened()
    times = path.stat()
    path.write_bytes(b"x" * times.st_size)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as within one tick of the clock
    with pytest.raises(Exception, match="1 broken picture"):
        opened()


def test_what_is_kept_may_be_damaged_or_impossible_to_keep(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., FolderPictures]
):
    age(add(tmp_path / "d", "a.png", "a"))
    assert len(opened()) == 1
    (kept,) = (tmp_path / "cache/folders").iterdir()
    kept.write_bytes(b"junk")
    assert len(opened()) == 1
    (tmp_path / "file").write_text("")
    assert len(open_folder(tmp_path / "d", None, CacheSettings(folder=tmp_path / "file"))) == 1


def jpeg(**options: object) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(file, "JPEG", **options)
    return file.getvalue()


def test_only_what_is_odd_is_decoded_at_opening(
    tmp_path: Path, opened: Callable[..., FolderPictures], monkeypatch: pytest.MonkeyPatch,
    png_that_claims: Callable[[int, int], bytes],
):  # fmt: skip
    decoded: list[int] = []
    decode = inspection.decode
    monkeypatch.setattr(inspection, "decode", lambda content: (decoded.append(len(content)), decode(content))[1])
    (tmp_path / "d").mkdir()
    odd = {
        "cut.jpg": jpeg()[:-500], "trailer.jpg": jpeg() + bytes(range(200)) * 50, "junk.png": b"junk",
        "cut.webp": webp()[:-9],
    }  # fmt: skip
    for name, content in {"plain.jpg": jpeg(), "scans.jpg": jpeg(progressive=True), "hollow.png": png_that_claims(9, 9),
                          "whole.webp": webp(), **odd}.items():  # fmt: skip
        (tmp_path / "d" / name).write_bytes(content)
        (tmp_path / "d" / name).with_suffix(".txt").write_text("words")
    source = opened()
    assert sorted(decoded) == sorted(map(len, odd.values()))
    assert source.report.names == {"broken picture": ["cut.jpg", "cut.webp", "junk.png"]}
    hollow = [name for name, _ in source.samples].index("hollow.png")
    with pytest.raises(DroppedError, match=r"hollow\.png: broken picture"):
        source.read(hollow)


def webp() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(file, "WEBP", lossless=True)
    return file.getvalue()


def test_sides_that_no_picture_has_are_refused_and_kept(
    tmp_path: Path, add: Callable[..., Path], opened: Callable[..., FolderPictures],
    png_that_claims: Callable[[int, int], bytes],
):  # fmt: skip
    """Their product is beyond 64 bits."""
    age(add(tmp_path / "d", "a.png", "a"))
    path = add(tmp_path / "d", "b.png", "b")
    path.write_bytes(png_that_claims(2**32 - 1, 2**32 - 1))
    age(path)
    for _ in range(2):
        assert opened().report.dropped == {"too large": 1}
