"""Tar shards: one pass over the headers finds every picture, after which each is a seek and a read."""

from __future__ import annotations

import posixpath  # pathlib would take half of the time
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fewstep.data.shards.index import ABOUT_SHARD, Entry, IndexBuilder, ShardIndex
from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Reason, Tally
from fewstep.data.sources.decoding import OTHER_SUFFIXES, SUFFIXES
from fewstep.data.sources.filters import NO_SCORES, read_scores
from fewstep.data.sources.metadata import DOWNLOADED, PictureMetadata
from fewstep.data.sources.urls import leaves_folder

_LONGEST_HEADER = 1 << 20
_BLOCK = 512


@dataclass(frozen=True)
class Member:
    """A plain file in a tar."""

    name: str
    offset: int
    size: int

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]


class _Headers:
    """A file of which tarfile reads headers only, so that no header can make it read the file into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError("oversized header")
        return self._read(size)


def list_members(file: BinaryIO, size: int, tally: Tally) -> Iterator[Member]:
    """Every plain file in the tar that has a harmless name; the rest is counted.

    Damage, a missing end, and what stands after the end are each counted once, with the byte from which on
    nothing was read.
    """
    whole_up_to = 0
    try:
        headers: Any = _Headers(file)  # all of a file that tarfile uses
        archive: Any  # typeshed knows nothing of its `members`
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


def index_tar(file: BinaryIO, described: Mapping[str, PictureMetadata], wanted: tuple[str, ...] = ()) -> ShardIndex:
    """`described` is what the metadata beside the shard says, by the name of a picture without folder and suffix.

    A caption stands in a `.txt` member, else in that metadata or in a `.json` member; with `wanted` fields, in
    them alone.
    """
    builder = IndexBuilder()
    size = file.seek(0, 2)
    file.seek(0)
    pictures, texts, jsons = _sort_members(list_members(file, size, builder.tally), builder.tally)
    for picture in pictures:
        # Two more reads for each, close to one another in the shards that people have.
        reader = _Companions(file, texts.get(picture.stem), jsons.get(picture.stem))
        said = described.get(posixpath.basename(picture.stem))
        try:
            caption, scores = reader.caption_and_scores(said, wanted)
            builder.add(Entry(picture.name, picture.offset, picture.size, caption, ""), scores)
        except DroppedError as dropped:
            builder.tally.drop(dropped.reason, picture.name)
    there = {posixpath.basename(picture.stem) for picture in pictures}
    for key, said in described.items():
        if key not in there:
            came = said.status in ("", DOWNLOADED)
            builder.tally.drop(Reason.MISSING if came else Reason.NOT_DOWNLOADED, key)
    return builder.build()


def _sort_members(found: Iterator[Member], tally: Tally) -> tuple[list[Member], dict[str, Member], dict[str, Member]]:
    """Pictures in their order, and by their names without suffix the texts and the JSON."""
    pictures: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    jsons: dict[str, Member] = {}
    for member in found:
        suffix = posixpath.splitext(member.name)[1].lower()
        if suffix in SUFFIXES:
            kind, key = pictures, member.name
        elif suffix in (".txt", ".json"):
            kind, key = (texts if suffix == ".txt" else jsons), member.stem
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
    """What stands beside a picture in its shard."""

    file: BinaryIO
    text: Member | None
    json: Member | None

    def caption_and_scores(
        self, said: PictureMetadata | None, wanted: tuple[str, ...]
    ) -> tuple[str, tuple[float, ...]]:
        text = self.text if not wanted else None
        caption = captions.parse_text(self._content(text, captions.MAX_TEXT_BYTES)) if text else None
        if said is not None and (caption or said.caption is not None):
            return caption or captions.clean(said.caption), said.scores
        if self.json is None:
            return caption or captions.clean(None), said.scores if said else NO_SCORES
        try:
            fields = captions.parse_json(self._content(self.json, captions.MAX_JSON_BYTES + 1))
        except DroppedError:
            if caption is None:
                raise
            return caption, NO_SCORES
        scores = said.scores if said else read_scores(fields)
        return caption or captions.clean(captions.find_field(fields, wanted)), scores

    def _content(self, member: Member, most: int) -> bytes:
        self.file.seek(member.offset)
        return self.file.read(min(member.size, most))
