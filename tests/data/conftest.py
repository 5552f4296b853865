"""Photographs, and captioned picture files of every kind."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from sklearn.datasets import load_sample_images


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


@pytest.fixture
def add() -> Callable[..., Path]:
    """Writes a picture, and its caption unless that is None."""
    return _add


def _add(folder: Path, name: str, caption: str | bytes | None, image: Image.Image | None = None) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (40, 30), (220, 30, 30))).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_bytes(caption.encode() if isinstance(caption, str) else caption)
    return path


@pytest.fixture
def png_that_claims() -> Callable[[int, int], bytes]:
    return _png_that_claims


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG whose header names a size and which holds no pixels: to decode it is an error."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
