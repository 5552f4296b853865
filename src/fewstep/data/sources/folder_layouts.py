"""What the names of subfolders say: splits, and how often the pictures in them come in an epoch."""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Iterable, Sequence

from fewstep.data.sources.base import escape_line

_TRAIN = frozenset(("train", "training"))
_SPLITS = _TRAIN | {"test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"}
_SHARD_OF_SPLIT = re.compile(r"([a-z]+)[-_.]\d+")
_MOST_TOLD = 8
"""Folders that one line names."""
_REPEATS = re.compile(r"([1-9]\d{0,2})_(.*\S.*)")


def find_unread_splits(metadata: Iterable[str]) -> tuple[str, list[str]]:
    """Finds, of folders with metadata of their own, the one that is trained on and the other splits beside it.

    Returns no names where there is nothing to choose: one folder alone, or one without a folder of training.
    """
    folders = [posixpath.dirname(place) for place in metadata]
    splits = [folder for folder in folders if posixpath.basename(folder).lower() in _SPLITS]
    train = [folder for folder in splits if posixpath.basename(folder).lower() in _TRAIN]
    if len(train) != 1 or len(splits) != len(folders):
        return "", []
    return train[0], [folder for folder in splits if folder not in train]


def name_splits(names: Iterable[str]) -> list[str]:
    """Lists the splits that the paths of pictures or shards name, where they name several."""
    folders, found = set(), set()
    for name in names:
        folder, _, file = name.lower().rpartition("/")
        folders.add(folder)
        if shard := _SHARD_OF_SPLIT.match(file):
            found.add(shard[1])
    found.update(part for folder in folders for part in folder.split("/"))
    splits = found & _SPLITS
    return sorted(splits) if len(splits) > 1 else []


def find_repeats(pictures: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Returns number and words of each folder, where all pictures lie in folders such as `10_cat`; else nothing."""
    found: dict[str, tuple[int, str]] = {}
    for folder, _ in itertools.groupby(pictures, lambda name: name.partition("/")[0] if "/" in name else ""):
        match = _REPEATS.fullmatch(folder)
        if match is None:
            return {}
        found[folder] = int(match[1]), match[2].strip()
    return found


def describe_repeats(repeats: Sequence[tuple[int, str, int]]) -> str:
    """Describes repeats, names and numbers of pictures of folders in one line."""
    parts = [f"{times} times the {count} of {escape_line(folder)}" for times, folder, count in repeats[:_MOST_TOLD]]
    more = f" and so on, {len(repeats)} folders in all" if len(repeats) > _MOST_TOLD else ""
    return f"an epoch has {', '.join(parts)}{more} (--no-folder-repeats: each picture once)"
