"""Recognises JPEG and PNG files with so many header parts or scans that decoding them would exhaust memory or time."""

from __future__ import annotations

_MAX_PARTS = 1 << 16
_MAX_JPEG_HEADER = 16 << 20
_START_OF_SCAN = 0xDA
_MAX_SCANS = 500
_WITHOUT_LENGTH = frozenset((0x00, 0x01, 0xD8, 0xFF, *range(0xD0, 0xD8)))


def is_overgrown(content: bytes) -> bool:
    """Tells whether a JPEG has over 16 MiB of header or 500 scans, or a JPEG or PNG over 65,536 parts."""
    if content.startswith(b"\xff\xd8"):
        return content.count(b"\xff\xda") > _MAX_SCANS or _has_overgrown_jpeg_header(content)
    return content.startswith(b"\x89PNG") and _has_too_many_chunks(content)


def _has_overgrown_jpeg_header(content: bytes) -> bool:
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


def _has_too_many_chunks(content: bytes) -> bool:
    place, parts = 8, 0
    while place < len(content):
        parts += 1
        if parts > _MAX_PARTS:
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False
