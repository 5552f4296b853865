"""Bytes that are no picture, too much of a picture, or spoiled at random: each ends as a picture or as a reason."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable

import pytest
from PIL import Image

from fewstep.data.sources.base import DroppedError
from fewstep.data.sources.decoding import decode
from fewstep.data.sources.filters import Reason
from fewstep.data.sources.fitting import PictureLimits
from spoiled_pictures import seeds, spoil
from written_shards import picture


def reason(content: bytes, **limits: int) -> str:
    with pytest.raises(DroppedError) as caught:
        decode(content, PictureLimits(**limits))
    return caught.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    """A small PNG with chunks between its header and its pixels."""
    plain = picture()
    return plain[:33] + b"".join(chunks) + plain[33:]


def test_the_bytes_and_not_the_name_say_what_a_picture_is():
    for kind in ("JPEG", "PNG", "WEBP"):
        assert decode(picture(kind=kind)).size == (40, 30)
    for kind in ("GIF", "BMP", "TIFF", "ICO"):
        assert reason(picture(kind=kind)) == Reason.BROKEN
    for junk in (b"", b"\0" * 5000, b"%!PS-Adobe", b"<svg/>", b"RIFF....WAVE", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"):
        assert reason(junk) == Reason.BROKEN


def test_limits_are_kept_before_anything_is_decoded(png_that_claims: Callable[[int, int], bytes]):
    content = picture()
    assert decode(content, PictureLimits(max_bytes=len(content))).size == (40, 30)
    assert reason(content, max_bytes=len(content) - 1) == Reason.TOO_LARGE
    assert decode(content, PictureLimits(max_pixels=1200)).size == (40, 30)
    assert reason(content, max_pixels=1199) == Reason.TOO_LARGE
    assert reason(png_that_claims(50_000, 50_000)) == Reason.TOO_LARGE
    assert reason(picture(size=(60_000, 1)), side=512) == Reason.TOO_LARGE
    assert reason(png_that_claims(0, 5)) == Reason.BROKEN


def memory_of(content: bytes) -> int:
    """Bytes at the peak of trying to decode, beside what the pixels need."""
    tracemalloc.start()
    try:
        decode(content)
    except DroppedError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def test_chunks_that_unpack_to_much_more_cost_no_more_than_their_bound():
    bomb = zlib.compress(b"\0" * (200 << 20), 9)
    for kind, data in (
        (b"zTXt", b"Comment\0\0" + bomb),
        (b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        (b"iCCP", b"name\0\0" + bomb),
    ):
        assert memory_of(png_with(chunk(kind, data))) < 16 << 20, kind
    text = zlib.compress(b"x" * 900_000, 9)
    many = [chunk(b"zTXt", b"C%d\0\0" % i + text) for i in range(500)]
    assert memory_of(png_with(*many)) < 128 << 20


def exif_of(entries: int, length: int) -> bytes:
    """A directory in which every entry claims the same `length` bytes."""
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", entries)
    body = b"".join(struct.pack("<HHLL", 0x8000 + i, 7, length, 8) for i in range(entries))
    return b"Exif\0\0" + head + body + b"\0" * 4 + b"x" * length


@pytest.mark.filterwarnings("ignore:Tag data")
def test_large_exif_is_no_matter_and_costs_no_more_than_its_bytes():
    file = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(file, "WEBP", exif=exif_of(20_000, 2 << 20))
    assert decode(file.getvalue()).size == (20, 20)
    assert memory_of(file.getvalue()) < 64 << 20
    jpeg = picture(kind="JPEG")
    parts = [b"\xff\xe1" + struct.pack(">H", 65_000 + 2) + b"Exif\0\0" + b"x" * 64_994 for _ in range(100)]
    assert decode(jpeg[:2] + b"".join(parts) + jpeg[2:]).size == (40, 30)


def test_headers_of_endlessly_many_parts_are_too_large():
    jpeg = picture(kind="JPEG")
    assert reason(jpeg[:2] + b"\xff\xe1\0\x09Exif\0\0x" * 70_000 + jpeg[2:]) == Reason.TOO_LARGE
    assert reason(jpeg[:2] + (b"\xff\xe2" + b"\xff\xff" + b"x" * 65_533) * 300 + jpeg[2:]) == Reason.TOO_LARGE
    assert reason(png_with(chunk(b"prVt", b"") * 70_000)) == Reason.TOO_LARGE
    assert decode(png_with(chunk(b"prVt", b"") * 1000)).size == (40, 30)
    file = io.BytesIO()
    Image.linear_gradient("L").save(file, "JPEG", progressive=True)
    scans = file.getvalue()
    last = scans.rindex(b"\xff\xda")
    assert decode(scans).size == (256, 256)
    assert reason(scans[:-2] + scans[last:-2] * 501 + b"\xff\xd9") == Reason.TOO_LARGE


def outcomes(count: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    whole = seeds()
    for i in range(count):
        try:
            image = decode(spoil(whole[i % len(whole)], random.Random(i)))
            assert image.mode == "RGB"
            counts["used"] += 1
        except DroppedError as dropped:
            counts[dropped.reason] += 1
    return counts


def run_outcomes(count: int) -> tuple[Counter[str], int]:
    """In a process of its own, with its peak of memory in MiB, so that a crash or a hang ends nothing else."""
    script = (
        "import json\nfrom pathlib import Path\nfrom test_decoding import outcomes\n"
        f"counts = outcomes({count})\n"
        # Not getrusage: its peak begins with that of the process which started this one.
        "status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())\n"
        "print(json.dumps([counts, int(status['VmHWM'].split()[0]) // 1024]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=60 + count // 20,
        check=False, env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    counts, peak = json.loads(done.stdout)
    return Counter(counts), peak


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_spoiled_pictures_neither_crash_nor_hang_nor_fill_the_memory_and_all_are_counted(count: int):
    counts, peak = run_outcomes(count)
    assert sum(counts.values()) == count
    assert set(counts) <= {"used", Reason.BROKEN, Reason.TOO_LARGE}
    assert counts["used"] > count // 20
    assert counts[Reason.BROKEN] > count // 3
    assert peak < 1024
