"""Copies of true files, one of them damaged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from corpus import Corpus
from mutations import OUTSIDE, Mutation

from fewstep.errors import show


def point_outside(corpus: Corpus, content: bytes) -> bytes:
    """Puts the path of what nothing may be read of where content names it."""
    return content.replace(OUTSIDE.encode(), os.fsencode(corpus.outside))


def copy_folder(
    corpus: Corpus, name: str, target: Path, rng: Random, mutations: dict[str, Mutation], *, many: bool = False
) -> Path:
    """Copies a folder, as links of the same disk, and damages one of the files that fit `mutations`, or several."""
    source = corpus / name
    target.mkdir(parents=True, exist_ok=True)
    found = []
    for file in sorted(source.rglob("*")):
        place = target / file.relative_to(source)
        if file.is_dir():
            place.mkdir(exist_ok=True)
            continue
        mutation = next((each for end, each in mutations.items() if file.name.endswith(end)), None)
        if mutation is None:
            os.link(file, place)
        else:
            shutil.copyfile(file, place)
            found.append((place, mutation))
    for place, mutation in rng.sample(found, min(len(found), rng.choice((1, 1, 2)) if many else 1)):
        if rng.random() < 0.02:
            place.unlink()
            continue
        place.write_bytes(point_outside(corpus, mutation(rng, place.read_bytes())))
    return target


def take_file(corpus: Corpus, name: str, folder: Path, rng: Random, mutation: Mutation) -> Path:
    """Writes a damaged copy of one file."""
    source = corpus / name
    target = folder / source.name
    target.write_bytes(point_outside(corpus, mutation(rng, source.read_bytes())))
    return target


def leave(_: Random, data: bytes) -> bytes:
    """Changes nothing."""
    return data


def exhaust(lines: Iterator[str]) -> None:
    """Takes the lines that a command would print, as a terminal would."""
    for line in lines:
        show(line).encode()
