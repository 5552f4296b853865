"""A source of the captioned pictures in a folder; whatever cannot be used is counted."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Example, Reason, SourceReport, Tally, escape_line
from fewstep.data.sources.decoding import SUFFIXES, decode
from fewstep.data.sources.filters import NO_SCORES, SCORES, read_scores
from fewstep.data.sources.folder_files import FolderFiles, LocalFiles, RemoteFiles
from fewstep.data.sources.metadata import PictureMetadata
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import leaves_folder, redact
from fewstep.errors import UserError

METADATA = "metadata.jsonl"
WANTED = (
    f"pictures ({', '.join(SUFFIXES)}) in it or in the folders below, each with a caption in a .txt file "
    f"of the same name or in a {METADATA} with file_name and text in every line"
)
_MAX_METADATA = 1 << 32
_READERS = 16


@dataclass(frozen=True, kw_only=True)
class FolderPictures:
    """Captioned pictures of a folder in the order of their paths; `open_folder` makes one.

    Only paths and captions are in memory; `read` reads and decodes a picture.
    """

    files: FolderFiles
    selection: Selection
    samples: tuple[tuple[str, str], ...]
    """Path inside the folder, and caption, of every picture."""
    report: SourceReport

    @property
    def shard_sizes(self) -> Sequence[int]:
        return (len(self.samples),)

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        return self.samples[index][0]

    def shard_name(self, shard: int) -> str:
        return (self.files.name,)[shard]

    def caption(self, index: int) -> str:
        return self.samples[index][1]

    def read(self, index: int) -> Example:
        file, caption = self.samples[index]
        limits, filters = self.selection.limits, self.selection.filters
        try:
            image = decode(self.files.read(file, limits.max_bytes + 1), limits)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, file) from dropped
        if reason := filters.refuse_size(image.size):
            raise DroppedError(reason, file)
        return Example(image, caption)


def open_folder(place: Path | str, selection: Selection | None = None) -> FolderPictures:
    """Finds every picture below `place`, a path or an fsspec URL, and reads the captions.

    Local pictures are decoded once, so that broken ones are found; remote ones are decoded only by `read`. A caption
    comes from `metadata.jsonl` at the top of the folder if that lists the picture, else from a UTF-8 `.txt` file of the
    same name. Scores for the filters come from `metadata.jsonl`. Raises UserError where no picture can be used.
    """
    selection = selection or Selection()
    files = _open_local(place) if isinstance(place, Path) else RemoteFiles(place)
    tally = Tally(None)
    names = files.list_pictures(tally)
    described = _read_metadata(files, frozenset(names), tally, selection.captions)
    found: list[_Found] = []
    for name, outcome in zip(names, _inspect_all(files, names, described, selection), strict=True):
        if isinstance(outcome, DroppedError):
            tally.drop(outcome.reason, name)
        else:
            found.append(outcome)
    scores = np.array([picture.scores for picture in found], dtype=np.float64).reshape(-1, len(SCORES))
    wanted = selection.select(scores, lambda row: found[row].name, tally)
    samples = tuple((picture.name, picture.caption) for picture, use in zip(found, wanted, strict=True) if use)
    tally.used = len(samples)
    report = tally.report()
    if not samples:
        counts = report.format_summary().removeprefix("data: ")
        raise UserError(f"data folder {redact(str(place))} has nothing to train on: {counts}; wanted are {WANTED}")
    return FolderPictures(files=files, selection=selection, samples=samples, report=report)


def _open_local(path: Path) -> LocalFiles:
    if not os.path.isdir(path):
        trouble = "is not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data folder {escape_line(path)} {trouble}; give a folder with {WANTED}")
    return LocalFiles(path)


@dataclass(frozen=True)
class _Found:
    name: str
    caption: str
    scores: tuple[float, ...]


def _inspect_all(
    files: FolderFiles, names: Sequence[str], described: Mapping[str, PictureMetadata], selection: Selection
) -> list[_Found | DroppedError]:
    def inspect(name: str) -> _Found | DroppedError:
        try:
            return _inspect(files, name, described.get(name), selection)
        except DroppedError as dropped:
            return dropped

    if isinstance(files, LocalFiles):
        return [inspect(name) for name in names]
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(inspect, names))


def _inspect(files: FolderFiles, name: str, described: PictureMetadata | None, selection: Selection) -> _Found:
    scores = described.scores if described else NO_SCORES
    # The caption comes first, because decoding costs more.
    caption = captions.clean(described.caption) if described else _read_caption(files, name, selection)
    if isinstance(files, LocalFiles):
        image = decode(files.read(name, selection.limits.max_bytes + 1), selection.limits)
        scores = (*scores[:-2], *map(float, image.size))  # the last two scores are the sides
    return _Found(name, caption, scores)


def _read_caption(files: FolderFiles, name: str, selection: Selection) -> str:
    path = str(PurePosixPath(name).with_suffix(".txt"))
    if selection.captions or not files.has(path):
        raise DroppedError(Reason.NO_CAPTION)
    return captions.parse_text(files.read(path, captions.MAX_TEXT_BYTES))


def _read_metadata(
    files: FolderFiles, names: Collection[str], tally: Tally, wanted: Sequence[str]
) -> dict[str, PictureMetadata]:
    """Reads `metadata.jsonl`, if there is one, into a table by path; lines that cannot be used are counted."""
    if not files.has(METADATA):
        return {}
    try:
        lines = files.read(METADATA, _MAX_METADATA).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except DroppedError as dropped:
        raise UserError(f"{escape_line(files.name)}/{METADATA} cannot be read; mend or remove it") from dropped
    already_counted = frozenset(tally.names[Reason.UNSUPPORTED])
    described: dict[str, PictureMetadata] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, metadata = _parse_line(line, wanted)
            if name in described:
                raise DroppedError(Reason.REPEATED_LINE)
            if name not in names and name not in already_counted:
                raise DroppedError(Reason.MISSING)
            described[name] = metadata
        except DroppedError as dropped:
            tally.drop(dropped.reason, f"{METADATA} line {number}")
    return described


def _parse_line(line: bytes, wanted: Sequence[str]) -> tuple[str, PictureMetadata]:
    try:
        fields = captions.parse_json(line)
        name, text = fields["file_name"], captions.find_field(fields, wanted)
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError("no text")
        (name + text).encode("utf-8")  # refuses halves of surrogate pairs
    except (DroppedError, ValueError, TypeError, KeyError) as error:
        raise DroppedError(Reason.BAD_LINE) from error
    if leaves_folder(name):
        raise DroppedError(Reason.OUTSIDE)
    return str(PurePosixPath(name)), PictureMetadata(text, read_scores(fields))
