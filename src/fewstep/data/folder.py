"""A user's own folder of captioned pictures, in which nothing is left out without being counted."""

from __future__ import annotations

import json
import os
import warnings
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps

from fewstep.errors import UserError

MAX_PIXELS = 64_000_000
"""Pictures with more pixels than this are not decoded, unless the caller sets another limit."""
METADATA = "metadata.jsonl"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
_OTHER_SUFFIXES = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".tif", ".tiff")
_WANTED = (
    f"pictures ({', '.join(SUFFIXES)}) in it or in the folders below, each with a caption in a .txt file "
    f"of the same name or in a {METADATA} with file_name and text in every line"
)


class Reason(StrEnum):
    """Why something that was found is not used; each thing found is counted under one reason at most."""

    BROKEN = "broken picture"
    TOO_LARGE = "too large"
    UNREADABLE = "unreadable file"
    UNSUPPORTED = "unsupported format"
    NO_CAPTION = "without caption"
    EMPTY_CAPTION = "empty caption"
    CAPTION_NOT_UTF8 = "caption not UTF-8"
    BAD_LINE = "bad metadata line"
    REPEATED_LINE = "repeated metadata line"
    MISSING = "missing picture"
    OUTSIDE = "outside the folder"
    NOT_SEARCHED = "unsearched folder"


_NOT_PICTURES = frozenset((Reason.BAD_LINE, Reason.REPEATED_LINE, Reason.MISSING, Reason.OUTSIDE, Reason.NOT_SEARCHED))


@dataclass(frozen=True)
class Example:
    """A square RGB picture and what it shows."""

    image: Image.Image
    caption: str


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What opening a folder found, and what became of it: found = used + all that was dropped."""

    found: int
    """Pictures, metadata lines that lead to no picture or to one already named, folders that were not searched."""
    used: int
    """Pictures with a caption."""
    dropped_files: dict[str, list[str]]
    """Under each reason, in order: paths inside the folder, or the number of the metadata line."""

    def __post_init__(self) -> None:
        if self.found != self.used + sum(self.dropped.values()):
            raise ValueError(f"{self.found} found is not {self.used} used and {self.dropped} dropped")

    @property
    def dropped(self) -> dict[str, int]:
        """How many were dropped for each reason that occurred."""
        return {reason: len(files) for reason, files in self.dropped_files.items()}

    def line(self) -> str:
        """For example `data: 12 pictures found, 9 used, 3 dropped (1 broken picture, 2 without caption)`."""
        noun = "picture" if self.found == 1 else "pictures"
        if not _NOT_PICTURES.isdisjoint(self.dropped):
            noun = "pictures and other entries"
        counts = f"data: {self.found} {noun} found, {self.used} used, {sum(self.dropped.values())} dropped"
        reasons = ", ".join(_counted(count, reason) for reason, count in self.dropped.items())
        return f"{counts} ({reasons})" if reasons else counts

    def examples(self, most: int = 3) -> list[str]:
        """A line for each reason, with the first few that it befell: `  broken picture: a.png, b.png and 4 more`."""
        lines = []
        for reason, files in self.dropped_files.items():
            more = f" and {len(files) - most} more" if len(files) > most else ""
            lines.append(f"  {reason}: {', '.join(files[:most])}{more}")
        return lines


def _counted(count: int, reason: str) -> str:
    countable = reason not in (Reason.TOO_LARGE, Reason.NO_CAPTION, Reason.CAPTION_NOT_UTF8, Reason.OUTSIDE)
    return f"{count} {reason}{'s' if countable and count > 1 else ''}"


@dataclass(frozen=True, kw_only=True)
class FolderPictures:
    """Captioned pictures of a folder, in the order of their paths; made by `open_folder`.

    Each picture is decoded anew when it is asked for: only paths and captions are kept in memory. Its shorter
    side is brought to `resolution` with Pillow's bicubic filter, which averages over the source pixels when it
    reduces (so nothing aliases), and the middle square is cut out.
    """

    path: Path
    resolution: int
    max_pixels: int
    samples: tuple[tuple[str, str], ...]
    """Path inside the folder and caption of every picture."""
    report: FolderReport

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example:
        file, caption = self.samples[index]
        try:
            image = _decode(self.path / file, self.resolution, self.max_pixels)
        except _DroppedError as dropped:
            raise UserError(
                f"picture {_shown(self.path / file)} was readable when its folder was opened and no longer is "
                f"({dropped.reason}); put it back, or start again without it"
            ) from dropped
        return Example(fit_square(image, self.resolution), caption)


_Dropped = defaultdict[str, list[str]]


class _DroppedError(Exception):
    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


def open_folder(path: Path, resolution: int, *, max_pixels: int = MAX_PIXELS) -> FolderPictures:
    """Finds every picture below `path`, decodes each once to see that it is whole, and reads the captions.

    A caption stands in a UTF-8 `.txt` file of the picture's name, or in `metadata.jsonl` at the top of the
    folder, which goes first where it names the picture. White space in it, line breaks included, becomes
    single spaces. Linked files are read; linked folders are not searched, but counted.
    """
    if resolution < 1:
        raise UserError(f"resolution is {resolution}; it must be at least 1")
    if not os.path.isdir(path):
        trouble = "is not a folder" if os.path.exists(path) else "does not exist"
        raise UserError(f"data folder {_shown(path)} {trouble}; give a folder with {_WANTED}")
    dropped: _Dropped = defaultdict(list)
    files = _search(path, dropped)
    captions = _read_metadata(path, frozenset(files), dropped)
    found = len(files) + sum(map(len, dropped.values()))
    samples = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `max_pixels` decides
        for file in files:
            try:
                # The caption first: it costs less than decoding.
                caption = _clean(captions[file]) if file in captions else _read_caption(path / file)
                _decode(path / file, resolution, max_pixels)
                samples.append((file, caption))
            except _DroppedError as error:
                dropped[error.reason].append(file)
    dropped_files = {str(reason): dropped[reason] for reason in Reason if dropped[reason]}
    report = FolderReport(found=found, used=len(samples), dropped_files=dropped_files)
    if not samples:
        outcome = report.line().removeprefix("data: ")
        raise UserError(f"data folder {_shown(path)} has nothing to train on: {outcome}; wanted are {_WANTED}")
    return FolderPictures(
        path=path, resolution=resolution, max_pixels=max_pixels, samples=tuple(samples), report=report
    )


def _search(root: Path, dropped: _Dropped) -> list[str]:
    """Paths of all pictures below `root`, relative to it, with forward slashes, sorted by code points."""
    files = []

    def not_listed(error: OSError) -> None:
        dropped[Reason.NOT_SEARCHED].append(Path(error.filename).relative_to(root).as_posix())

    for folder, subfolders, names in os.walk(root, onerror=not_listed):
        below = Path(folder).relative_to(root)
        linked = [name for name in subfolders if os.path.islink(os.path.join(folder, name))]
        dropped[Reason.NOT_SEARCHED] += [(below / name).as_posix() for name in linked]
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                files.append((below / name).as_posix())
            elif suffix in _OTHER_SUFFIXES:
                dropped[Reason.UNSUPPORTED].append((below / name).as_posix())
    for found in (files, *dropped.values()):  # the operating system lists in no order of its own
        found.sort()
    return files


def _read_metadata(root: Path, files: Collection[str], dropped: _Dropped) -> dict[str, str]:
    """Captions by path from `metadata.jsonl`, none without it; lines that give no caption are counted."""
    path = root / METADATA
    if not os.path.lexists(path):
        return {}
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise UserError(f"{_shown(path)} cannot be read ({error.strerror}); mend or remove it") from error
    already_counted = frozenset(dropped[Reason.UNSUPPORTED])
    captions: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            name, text = _parse_line(line)
            if name in captions:
                raise _DroppedError(Reason.REPEATED_LINE)
            if name not in files and name not in already_counted:
                raise _DroppedError(Reason.MISSING)
            captions[name] = text
        except _DroppedError as error:
            dropped[error.reason].append(f"{METADATA} line {number}")
    return captions


def _parse_line(line: bytes) -> tuple[str, str]:
    try:
        entry = json.loads(line.decode("utf-8"))
        name, text = entry["file_name"], entry["text"]
        (name + text).encode("utf-8")  # refuses what is not text, and halves of surrogate pairs
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _DroppedError(Reason.BAD_LINE) from error
    windows = PureWindowsPath(name)
    if windows.anchor or ".." in windows.parts:  # these parts end at both slashes
        raise _DroppedError(Reason.OUTSIDE)
    return str(PurePosixPath(name)), text


def _read_caption(picture: Path) -> str:
    path = picture.with_suffix(".txt")
    if not os.path.lexists(path):
        raise _DroppedError(Reason.NO_CAPTION)
    if not os.path.isfile(path):  # a pipe would block for ever
        raise _DroppedError(Reason.UNREADABLE)
    try:
        return _clean(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise _DroppedError(Reason.CAPTION_NOT_UTF8) from error
    except OSError as error:
        raise _DroppedError(Reason.UNREADABLE) from error


def _clean(text: str) -> str:
    caption = " ".join(text.split())
    if not caption:
        raise _DroppedError(Reason.EMPTY_CAPTION)
    return caption


def _decode(path: Path, resolution: int, max_pixels: int) -> Image.Image:
    """The picture, or its first frame, upright and in RGB. Colour profiles are not applied."""
    if not os.path.isfile(path):
        raise _DroppedError(Reason.UNREADABLE)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            short, long = sorted(image.size)
            # A very narrow picture grows past any bound when its shorter side is brought to `resolution`.
            if short * long > max_pixels or long * resolution**2 // short > max(MAX_PIXELS, resolution**2):
                raise _DroppedError(Reason.TOO_LARGE)
            return _to_rgb(ImageOps.exif_transpose(image))
    except (_DroppedError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _DroppedError(Reason.TOO_LARGE) from error
    except OSError as error:
        # Errors of the operating system have a number; those that Pillow raises on damaged data do not.
        raise _DroppedError(Reason.BROKEN if error.errno is None else Reason.UNREADABLE) from error
    except Exception as error:  # damaged data makes Pillow's decoders raise nearly anything
        raise _DroppedError(Reason.BROKEN) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own conversion would clip at 255 instead of scaling it.
        levels = np.asarray(image)
        grey = (levels / np.float32(257)).round().clip(0, 255).astype(np.uint8)
        grey[levels == image.info.get("transparency", -1)] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def fit_square(image: Image.Image, resolution: int) -> Image.Image:
    """The middle square after the shorter side was brought to `resolution` by Pillow's antialiased bicubic filter."""
    short = min(image.size)
    width, height = (round(side * resolution / short) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
    left, top = (width - resolution) // 2, (height - resolution) // 2
    return resized.crop((left, top, left + resolution, top + resolution))


def _shown(path: Path) -> str:
    """The path as it stands, or escaped where it would break the line or the terminal."""
    return str(path) if str(path).isprintable() else ascii(str(path))
