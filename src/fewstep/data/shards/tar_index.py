"""Indexes tar shards by one pass over the headers, after which each picture takes a seek and a read."""

from __future__ import annotations

import contextlib
import posixpath  # pathlib would take half of the time of indexing
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from fewstep.data.shards.index import ABOUT_SHARD, Entry, IndexBuilder, ShardIndex
from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Tally
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.filters import NO_SCORES, Reason, read_scores
from fewstep.data.sources.folder_files import is_hidden
from fewstep.data.sources.metadata import DOWNLOADED, PictureMetadata
from fewstep.data.sources.selection import Selection
from fewstep.roots import leaves_folder

_LONGEST_HEADER = 1 << 16
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A regular file in a tar."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]


class _Headers:
    """A file from which tarfile can read headers only, so that no header makes it read the whole file into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError("oversized header")
        return self._read(size)


def list_members(file: BinaryIO, size: int, tally: Tally) -> Iterator[Member]:
    """Lists every regular file in the tar whose name stays inside the folder; counts the others.

    Damage, a missing end and data after the end each count once, with the first byte that was not read.
    """
    whole_up_to = 0
    try:
        headers: Any = _Headers(file)  # has all methods of a file that tarfile uses
        archive: Any  # typeshed lacks `members`
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as archive:
            while (info := archive.next()) is not None:
                end = info.offset_data + info.size
                if info.size < 0 or info.offset < whole_up_to or archive.offset <= info.offset or end > size:
                    raise tarfile.ReadError("leads out of the file")
                archive.members.clear()
                name = info.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
                if leaves_folder(name):
                    tally.drop(Reason.OUTSIDE, name)
                elif info.isreg() and not info.issparse():
                    yield Member(name, info.offset_data, info.size)
                elif not info.isdir():
                    tally.drop(Reason.NOT_A_FILE, name)
                whole_up_to = archive.offset
        ended = _has_end_mark(file, whole_up_to)
    except (tarfile.TarError, ValueError, OverflowError, RecursionError):  # what tarfile raises on damaged data
        ended = False
    if not ended:
        tally.drop(Reason.DAMAGED_SHARD, f"{ABOUT_SHARD}from byte {whole_up_to:,}")


def _has_end_mark(file: BinaryIO, place: int) -> bool:
    file.seek(place)
    rest = file.read(_LONGEST_HEADER)
    return len(rest) >= _BLOCK and not rest.strip(b"\0")


def index_tar(file: BinaryIO, described: Mapping[str, PictureMetadata], selection: Selection) -> ShardIndex:
    """Indexes a tar; `described` is the metadata beside it, by the names of pictures without folder and suffix.

    Captions come from a `.txt` or `.caption` member, else from that metadata or a `.json` member; where fields are
    asked for, from these only.
    """
    builder = IndexBuilder()
    size = file.seek(0, 2)
    file.seek(0)
    members = [member for member in list_members(file, size, builder.tally) if not is_hidden(member.name)]
    pictures, texts, jsons = _sort_members(members, builder.tally)
    for picture in pictures:
        # Two more reads for each picture, usually close by in the file.
        companions = _Companions(file, *(
            found.get(picture.stem) or found.get(picture.name) for found in (texts, jsons)
        ))  # fmt: skip
        metadata = described.get(posixpath.basename(picture.stem))
        try:
            value, scores = companions.read_caption_and_scores(metadata, selection.captions)
            caption, others = builder.read_captions(value, selection.lines)
            builder.add(Entry(picture.name, picture.offset, picture.size, caption, "", others), scores)
        except DroppedError as dropped:
            builder.tally.drop(dropped.reason, picture.name)
    builder.seen = sorted({posixpath.splitext(member.name)[1].lower() for member in members} - {""})
    with contextlib.suppress(DroppedError, StopIteration):
        builder.seen += _Companions(file, None, next(iter(jsons.values()))).read_fields()
    names = {posixpath.basename(picture.stem) for picture in pictures}
    for key, metadata in described.items():
        if key not in names:
            downloaded = metadata.status in ("", DOWNLOADED)
            builder.tally.drop(Reason.MISSING if downloaded else Reason.NOT_DOWNLOADED, key)
    return builder.build()


def _sort_members(found: Sequence[Member], tally: Tally) -> tuple[list[Member], dict[str, Member], dict[str, Member]]:
    """Returns the pictures in their order, and texts and JSON by their names without suffix."""
    pictures: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    jsons: dict[str, Member] = {}
    for member in found:
        suffix = posixpath.splitext(member.name)[1].lower()
        if suffix in SUFFIXES:
            kind, key = pictures, member.name
        elif suffix in captions.SUFFIXES:
            kind, key = (jsons if suffix == ".json" else texts), member.stem
            if suffix == ".caption" and key in texts:
                continue
        else:
            if suffix in OTHER_SUFFIXES:
                tally.drop(Reason.UNSUPPORTED, member.name)
            continue
        if key in kind:
            tally.drop(Reason.REPEATED_NAME, member.name)
        kind.setdefault(key, member)
    return list(pictures.values()), texts, jsons


@dataclass(frozen=True)
class _Companions:
    """The files that accompany a picture in its shard."""

    file: BinaryIO
    text: Member | None
    json: Member | None

    def read_caption_and_scores(
        self, metadata: PictureMetadata | None, wanted: tuple[str, ...]
    ) -> tuple[object, tuple[float, ...]]:
        """Returns what holds the caption, or captions, and the scores."""
        text = self.text if not wanted else None
        caption = captions.decode_text(self._read(text, captions.MAX_TEXT_BYTES)) if text else None
        if caption is not None:
            captions.clean(caption)  # an empty one is said to be so
        if metadata is not None and (caption or metadata.caption is not None):
            return caption or metadata.caption, metadata.scores
        if self.json is None:
            return caption, metadata.scores if metadata else NO_SCORES
        try:
            fields = self.read_fields()
        except DroppedError:
            if caption is None:
                raise
            return caption, NO_SCORES
        scores = metadata.scores if metadata else read_scores(fields)
        return caption or captions.find_field(fields, wanted), scores

    def read_fields(self) -> dict[str, object]:
        """Reads the JSON. Raises DroppedError where it is damaged."""
        return captions.parse_json(self._read(self.json, captions.MAX_JSON_BYTES + 1)) if self.json else {}

    def _read(self, member: Member, most: int) -> bytes:
        self.file.seek(member.offset)
        return self.file.read(min(member.size, most))
