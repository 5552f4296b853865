"""Reads what the files of metadata in a folder say about its pictures."""

from __future__ import annotations

import csv
import io
import posixpath
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Tally, escape_line
from fewstep.data.sources.filters import Reason, read_scores
from fewstep.data.sources.folder_files import FolderFiles, Listing
from fewstep.data.sources.metadata import PATHS, PictureMetadata
from fewstep.documents import name_encoding
from fewstep.errors import UserError
from fewstep.roots import leaves_folder

_MAX_METADATA = 1 << 30
_DELIMITERS = (",", "\t", ";", "|")
csv.field_size_limit(captions.MAX_JSON_BYTES)


@dataclass
class FolderMetadata:
    """What the files of metadata say."""

    pictures: dict[str, PictureMetadata] = field(default_factory=dict)
    """What is said of each picture, by its path in the folder."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Names the columns or fields of each file, for messages."""


def read_metadata(files: FolderFiles, listing: Listing, tally: Tally, wanted: Sequence[str]) -> FolderMetadata:
    """Reads every `metadata.jsonl` and `metadata.csv`, whose paths begin in its own folder.

    `tally` counts the lines that cannot be used. Raises UserError for a file that cannot be read.
    """
    found = FolderMetadata()
    names = _Names(listing)
    for place in listing.find_metadata():
        try:
            content = files.read(place, _MAX_METADATA + 1).removeprefix(b"\xef\xbb\xbf")
        except DroppedError as dropped:
            raise UserError(_explain(f"{files.name}/{place}", dropped.reason)) from dropped
        if len(content) > _MAX_METADATA:
            raise UserError(
                f"{escape_line(f'{files.name}/{place}')} has more than {_MAX_METADATA:,} bytes; "
                "split the pictures into folders with a file of metadata each, or into shards"
            )
        if name_encoding(content) == "utf-16":  # as spreadsheets write what they call Unicode
            content = content.decode("utf-16", "replace").encode()
        rows = _read_csv(content) if place.lower().endswith(".csv") else _read_jsonl(content)
        for number, fields in rows:
            try:
                if fields is None:
                    raise DroppedError(Reason.BAD_LINE)
                found.columns.setdefault(place, list(fields))
                below = posixpath.dirname(place)
                name, metadata = _read_line(fields, wanted, files, below)
                name = names.find(below, name)
                if name in found.pictures:
                    raise DroppedError(Reason.REPEATED_LINE)
                found.pictures[name] = metadata
            except DroppedError as dropped:
                tally.drop(dropped.reason, f"{place} line {number}")
    return found


def _explain(place: str, reason: str) -> str:
    if reason == Reason.LINKED_OUTSIDE:
        return f"{escape_line(place)} is a link out of the folder; remove it, or follow it with --follow-links"
    return f"{escape_line(place)} cannot be read; fix or remove it"


class _Names:
    """The names of pictures, as metadata may spell them."""

    def __init__(self, listing: Listing) -> None:
        self._pictures = frozenset(listing.pictures)
        self._unsupported = frozenset(listing.unsupported)
        self._normal = {unicodedata.normalize("NFC", name): name for name in listing.pictures if not name.isascii()}

    def find(self, folder: str, name: str) -> str:
        """Returns the picture of this name in a folder. Raises DroppedError where there is none."""
        path = posixpath.join(folder, name)
        if path in self._pictures:
            return path
        tried = (path, path.replace("\\", "/"), self._normal.get(unicodedata.normalize("NFC", path), path))
        for each in tried:
            if (
                each in self._pictures or each in self._unsupported
            ):  # one of another format is counted as a file already
                return each
        raise DroppedError(Reason.MISSING)


def _read_jsonl(content: bytes) -> Iterator[tuple[int, Mapping[str, object] | None]]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            try:
                yield number, captions.parse_json(line)
            except DroppedError:
                yield number, None


def _read_csv(content: bytes) -> Iterator[tuple[int, Mapping[str, object] | None]]:
    text = io.StringIO(content.decode("utf-8", "surrogateescape"), newline="")
    header = text.readline()
    text.seek(0)
    rows = csv.DictReader(text, delimiter=max(_DELIMITERS, key=header.count))
    try:
        for row in rows:
            named = captions.lower_names({name.strip(): value for name, value in row.items() if name})
            yield rows.line_num, named if None not in row else None  # more values than columns
    except csv.Error:
        yield rows.line_num, None


def _read_line(
    fields: Mapping[str, object], wanted: Sequence[str], files: FolderFiles, below: str
) -> tuple[str, PictureMetadata]:
    name, text = next((fields[path] for path in PATHS if path in fields), None), captions.find_field(fields, wanted)
    if not isinstance(name, str) or not isinstance(text, str | list):
        raise DroppedError(Reason.BAD_LINE)
    try:
        f"{name}{text if isinstance(text, str) else ''}".encode()  # refuses halves of surrogate pairs
    except UnicodeEncodeError as error:
        raise DroppedError(Reason.BAD_LINE) from error
    name = files.shorten(name, below)
    if leaves_folder(name):
        raise DroppedError(Reason.OUTSIDE)
    return posixpath.normpath(name), PictureMetadata(text, read_scores(fields))
