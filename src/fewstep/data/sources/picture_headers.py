"""What is no picture's: headers whose endless parts Pillow would keep one by one, and endless scans."""

from __future__ import annotations

_MAX_PARTS = 1 << 16
_MAX_JPEG_HEADER = 16 << 20
_START_OF_SCAN = 0xDA
_MAX_SCANS = 500
_WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xD8, 0xFF, *range(0xD0, 0xD8)))


def is_overgrown(content: bytes) -> bool:
    """Whether a JPEG has more than 16 MiB before its pixels or 500 scans of them, or it or a PNG 65,536 parts."""
    if content.startswith(b"\xff\xd8"):
        return content.count(b"\xff\xda") > _MAX_SCANS or _jpeg_header(content)
    return content.startswith(b"\x89PNG") and _png_chunks(content)


def _jpeg_header(content: bytes) -> bool:
    place, parts = 2, 0
    while (place := content.find(b"\xff", place)) >= 0 and place + 4 <= len(content):
        parts += 1
        marker = content[place + 1]
        if parts > _MAX_PARTS or place > _MAX_JPEG_HEADER:
            return True
        if marker == _START_OF_SCAN:
            return False
        place += 1 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _png_chunks(content: bytes) -> bool:
    place, parts = 8, 0
    while place < len(content):
        parts += 1
        if parts > _MAX_PARTS:
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False
