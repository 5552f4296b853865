"""A source of the captioned pictures in a folder; whatever cannot be used is counted."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.data.sources import captions
from fewstep.data.sources.base import DroppedError, Example, SourceReport, Tally, escape_line
from fewstep.data.sources.decoding import decode_to_fit
from fewstep.data.sources.filters import NO_SCORES, SCORES, Reason, read_scores
from fewstep.data.sources.folder_files import WANTED, FolderFiles, Listing, LocalFiles, RemoteFiles, open_files
from fewstep.data.sources.folder_layouts import describe_repeats, find_repeats, find_unread_splits, name_splits
from fewstep.data.sources.folder_metadata import FolderMetadata, read_metadata
from fewstep.data.sources.inspection import KeptViews, View, Views, in_threads, look_at_picture
from fewstep.data.sources.metadata import PictureMetadata
from fewstep.data.sources.remote import CacheSettings
from fewstep.data.sources.selection import Selection
from fewstep.data.sources.urls import redact
from fewstep.errors import UserError


class Found(NamedTuple):
    """A picture that was found, and where its caption is: in metadata, in a file, or given with the folder."""

    name: str
    metadata: PictureMetadata | None = None
    text: str = ""
    """The file that holds the caption; empty where there is none."""


class Sample(NamedTuple):
    """A picture that is used."""

    name: str
    captions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FolderPictures:
    """Captioned pictures of a folder in the order of their paths; `open_folder` makes one.

    Only paths and captions are in memory; `read` reads and decodes a picture.
    """

    files: FolderFiles
    selection: Selection
    samples: tuple[tuple[str, str], ...]
    """Has the path inside the folder, and the first caption, of every picture."""
    report: SourceReport
    others: Mapping[int, tuple[str, ...]]
    """Further captions of the pictures that have several, by their places in `samples`."""
    shards: tuple[tuple[str, int, int], ...]
    """Name, number of pictures, and repeats of the parts that the folder has, in order; usually one."""
    sizes: NDArray[np.float64]
    """Holds width and height of every picture `[n, 2]`; NaN where they are not known."""

    @property
    def shard_sizes(self) -> Sequence[int]:
        return tuple(size for _, size, _ in self.shards)

    @property
    def shard_repeats(self) -> Sequence[int]:
        return tuple(times for _, _, times in self.shards)

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        return self.samples[index][0]

    def shard_name(self, shard: int) -> str:
        return self.shards[shard][0]

    def caption(self, index: int) -> str:
        return self.samples[index][1]

    def measure(self) -> NDArray[np.int64]:
        """Returns width and height of every picture `[n, 2]`. Raises UserError where one is not known."""
        if (unknown := np.isnan(self.sizes).any(axis=1)).any():
            name = escape_line(self.key(int(unknown.argmax())))
            raise UserError(
                f"the sides of {name} are not known before it is fetched, nor is its bucket; give shards, a folder on "
                "this machine, metadata with width and height, or --buckets off"
            )
        return self.sizes.astype(np.int64)

    def read(self, index: int) -> Example:
        file, caption = self.samples[index]
        limits, filters = self.selection.limits, self.selection.filters
        try:
            image, reduced = decode_to_fit(self.files.read(file, limits.max_bytes + 1), limits)
        except DroppedError as dropped:
            raise DroppedError(dropped.reason, file) from dropped
        if reason := filters.refuse_size((image.width * reduced, image.height * reduced)):
            raise DroppedError(reason, file)
        return Example(image, caption, self.others.get(range(len(self))[index], ()), reduced)


def open_folder(
    place: Path | str, selection: Selection | None = None, cache: CacheSettings | None = None,
    listed: tuple[FolderFiles, Listing] | None = None,
) -> FolderPictures:  # fmt: skip
    """Finds every picture below `place`, a path or an fsspec URL, and reads the captions; `listed` is what lies there.

    Of local pictures headers and ends are read, once as long as they stay the same; remote ones are only listed. What
    else is broken in a picture is found by `read`. Raises UserError where no picture can be used.
    """
    selection = selection or Selection()
    files, listing = listed or list_folder(place, follow_links=selection.follow_links)
    tally = Tally(None)
    listing.count_left_out(tally)
    metadata = read_metadata(files, listing, tally, selection.captions)
    found = find_pictures(listing, metadata, tally, selection)
    samples, sizes = inspect(files, found, tally, selection, cache or CacheSettings())
    source = arrange(files, samples, sizes, tally, selection)
    if not samples:
        counts = source.report.format_summary().removeprefix("data: ")
        seen = [f"it has files ending in {listing.describe_endings()}"]
        seen += [f"{escape_line(place)} has the fields {', '.join(fields)[:300]}" for place, fields in
                 itertools.islice(metadata.columns.items(), 3)]  # fmt: skip
        raise UserError(
            f"data folder {redact(str(place))} has nothing to train on: {counts}; {'; '.join(seen)}; expected "
            f"{WANTED} (--caption-fields names another field){source.report.format_advice()}"
        )
    return source


def list_folder(place: Path | str, *, follow_links: bool = False) -> tuple[FolderFiles, Listing]:
    """Opens and lists a folder. Raises UserError where a path is none."""
    files = open_files(place, follow_links=follow_links)
    return files, files.list_all()


def find_pictures(listing: Listing, metadata: FolderMetadata, tally: Tally, selection: Selection) -> list[Found]:
    """Pairs the pictures of a folder with what holds their captions; of splits with metadata, only the training one.

    Where folders are called `10_cat` and none of the pictures in one has a caption, `cat` is theirs.
    """
    texts = listing.find_texts(captions.SUFFIXES[-1:] if selection.captions else captions.SUFFIXES)
    train, others = find_unread_splits(metadata.columns)
    names = listing.pictures
    if others:
        names = tuple(name for name in names if not name.startswith(tuple(f"{folder}/" for folder in others)))
        left = len(listing.pictures) - len(names)
        tally.notes.append(f"of the splits, {train} is read, and {left} pictures of {', '.join(others)} are not")
    elif splits := name_splits(names):
        tally.notes.append(f"the splits {', '.join(splits)} are all read; name the folder of one to read it alone")
    found = [
        Found(name, metadata.pictures.get(name), texts.get(name[: name.rindex(".")]) or texts.get(name, ""))
        for name in names
    ]
    repeats = {} if selection.captions else find_repeats(names)
    folders = itertools.groupby(enumerate(found) if repeats else (), lambda pair: pair[1].name.partition("/")[0])
    for folder, group in folders:
        places = [place for place, _ in group]
        if not any(found[place].metadata or found[place].text for place in places):
            words = repeats[folder][1].replace("_", " ")
            tally.notes.append(f"no picture in {escape_line(folder)} has a caption; theirs is {escape_line(words)}")
            for place in places:
                found[place] = Found(found[place].name, PictureMetadata(words, NO_SCORES))
    return found


def inspect(
    files: FolderFiles, found: Sequence[Found], tally: Tally, selection: Selection, cache: CacheSettings
) -> tuple[list[Sample], NDArray[np.float64]]:
    """Returns the pictures that can be used, and their widths and heights `[n, 2]`, NaN where not known; `tally`
    counts the others, and what is worth saying of these."""
    looks = (
        _look_locally(files, found, selection, cache) if isinstance(files, LocalFiles)
        else _look_remotely(files, found, selection)
    )  # fmt: skip
    return _select(found, looks, tally, selection)


def _select(
    found: Sequence[Found], looks: _Looks, tally: Tally, selection: Selection
) -> tuple[list[Sample], NDArray[np.float64]]:
    """Reads the captions and checks limits and filters, as `inspect` says."""
    samples: list[Sample] = []
    several_lines: list[bool] = []
    told_scores: list[tuple[float, ...]] = []
    places: list[int] = []
    refused = itertools.repeat("") if looks.pictures is None else looks.pictures.refuse(selection.limits)
    looked = zip(itertools.count(), refused)  # both without end, or one for each that may have a caption
    for each in found:
        place, why = next(looked) if _may_have_caption(each) else (-1, "")
        try:
            caption, known = each.metadata[:2] if each.metadata else _read_text(each, looks, selection)
            told = captions.read_all(caption, selection.lines)
            if why:
                raise DroppedError(why)
        except DroppedError as dropped:
            tally.drop(dropped.reason, each.name)
        else:
            samples.append(Sample(each.name, told))
            several_lines.append(captions.has_lines(caption))
            told_scores.append(known)
            places.append(place)
    scores = np.array(told_scores, dtype=np.float64).reshape(-1, len(SCORES))
    if looks.pictures is not None:
        scores[:, -2:] = np.stack([looks.pictures.width, looks.pictures.height], axis=1)[places]
    wanted = selection.select(scores, lambda row: samples[row].name, tally)
    if joined := int(np.array(several_lines, bool)[wanted].sum()) if selection.lines == "join" else 0:
        tally.told[captions.JOINED] += joined
    return [sample for sample, use in zip(samples, wanted, strict=True) if use], scores[wanted][:, -2:]


def arrange(
    files: FolderFiles, samples: Sequence[Sample], sizes: NDArray[np.float64], tally: Tally, selection: Selection
) -> FolderPictures:
    """Makes the source of these pictures, whose widths and heights are `sizes` `[n, 2]`. Folders that are
    repeated unequally become shards of their own."""
    tally.used = len(samples)
    repeats = find_repeats([sample.name for sample in samples]) if selection.repeats else {}
    shards: tuple[tuple[str, int, int], ...] = ((files.name, len(samples), 1),)
    if len({times for times, _ in repeats.values()}) > 1:
        groups = itertools.groupby(samples, lambda sample: sample.name.partition("/")[0])
        shards = tuple((folder, len(list(group)), repeats[folder][0]) for folder, group in groups)
        tally.notes.append(describe_repeats([(times, folder, count) for folder, count, times in shards]))
    return FolderPictures(
        files=files,
        selection=selection,
        samples=tuple((sample.name, sample.captions[0]) for sample in samples),
        report=tally.report(),
        others={i: sample.captions[1:] for i, sample in enumerate(samples) if len(sample.captions) > 1},
        shards=shards,
        sizes=sizes,
    )


@dataclass(frozen=True)
class _Looks:
    """Holds what was seen in the files of a folder."""

    texts: Mapping[str, tuple[str, str]]
    """Says of each file of captions why it cannot be used, and has its text."""
    pictures: Views | None
    """Says it of each picture that may have a caption, in order; of remote ones nothing is known."""


def _may_have_caption(found: Found) -> bool:
    return bool(found.text or found.metadata)


def _look_locally(files: LocalFiles, found: Sequence[Found], selection: Selection, cache: CacheSettings) -> _Looks:
    kept = KeptViews(files, cache.folder, selection.captions)
    names = _list_texts(found)
    read = kept.look_all(names, _reader_of_texts(files, selection), "captions")
    # Only those that can have a caption, because pictures cost more.
    pictures = [each.name for each in found if _may_have_caption(each)]
    views = kept.look_all(pictures, _look_at_picture_in(files), "pictures")
    kept.save()
    return _Looks(dict(zip(names, zip(read.reason, read.text, strict=True), strict=True)), views)


def _look_remotely(files: RemoteFiles, found: Sequence[Found], selection: Selection) -> _Looks:
    read_text = _reader_of_texts(files, selection)
    names = _list_texts(found)
    read = in_threads(lambda name: read_text(name, 0), names, "reading captions")
    return _Looks({name: (view.reason, view.text) for name, view in zip(names, read, strict=True)}, None)


def _list_texts(found: Sequence[Found]) -> list[str]:
    """Lists the files of captions, each once."""
    return [*dict.fromkeys(each.text for each in found if each.text and not each.metadata)]


def _look_at_picture_in(files: LocalFiles) -> Callable[[str, int], View]:
    def look(name: str, size: int) -> View:
        try:
            return look_at_picture(files.place.resolve(name), size)
        except DroppedError as dropped:  # a link since it was listed
            return View(reason=dropped.reason)

    return look


def _reader_of_texts(files: FolderFiles, selection: Selection) -> Callable[[str, int], View]:
    """Makes a function that reads the file of a caption: of JSON, the fields that matter."""
    fields = (*(selection.captions or (*captions.NAMES, *captions.OTHER_NAMES)), *itertools.chain(*SCORES.values()))
    kept = frozenset(name.lower() for name in fields)

    def read_text(name: str, _: int) -> View:
        try:
            if name.lower().endswith(".json"):
                told = captions.parse_json(files.read(name, captions.MAX_JSON_BYTES + 1))
                return View(text=json.dumps({field: value for field, value in told.items() if field in kept}))
            return View(text=captions.decode_text(files.read(name, captions.MAX_TEXT_BYTES)))
        except DroppedError as dropped:
            return View(reason=dropped.reason)

    return read_text


def _read_text(found: Found, looks: _Looks, selection: Selection) -> tuple[object, tuple[float, ...]]:
    """Returns what the file of a caption says, and its scores. Raises DroppedError where there is none."""
    reason, text = looks.texts.get(found.text, (Reason.NO_CAPTION, ""))
    if reason:
        raise DroppedError(reason)
    if not found.text.lower().endswith(".json"):
        return text, NO_SCORES
    fields = json.loads(text)
    return captions.find_field(fields, selection.captions), read_scores(fields)
