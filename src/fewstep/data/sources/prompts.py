"""Prompts of a text file, a line each, as a source: for what asks for captions alone."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from PIL import Image

from fewstep.data.sources.base import Example, SourceReport, Tally
from fewstep.data.sources.captions import MAX_CHARACTERS
from fewstep.data.sources.filters import Reason
from fewstep.documents import load_bytes, name_encoding
from fewstep.errors import UserError

SUFFIX = ".txt"
_MOST_BYTES = 2**30


def is_prompt_file(data: str) -> bool:
    """Tells whether `--data` names a file of prompts."""
    return data.lower().endswith(SUFFIX) and not os.path.isdir(data)


def open_prompts(data: str, side: int) -> PromptFile:
    """Opens such a file, and prints how many prompts are used and how many lines are empty."""
    source = PromptFile(Path(data), side)
    print(source.report.format_report().replace("picture", "line"), flush=True)
    return source


class PromptFile:
    """One shard, whose pictures are grey: nobody is to look at them."""

    def __init__(self, path: Path, side: int) -> None:
        """`side` is that of the grey pictures. Raises UserError where the file holds no prompt that can be used."""
        self._path, self._side, tally = path, side, Tally()
        self._prompts: list[tuple[int, str]] = []
        for number, line in enumerate(_read_lines(path), 1):
            prompt = " ".join(line.split())[:MAX_CHARACTERS].rstrip()
            if prompt:
                self._prompts.append((number, prompt))
            else:
                tally.drop(Reason.EMPTY_CAPTION, f"line {number}")
        if not self._prompts:
            raise UserError(f"{path} has no prompt; expected one on each line")
        tally.used = len(self._prompts)
        self.report: SourceReport = tally.report()
        self.shard_sizes = (len(self._prompts),)

    @property
    def contents_sha256(self) -> str:
        """Hashes the prompts that are used, with their lines."""
        return hashlib.sha256(repr(self._prompts).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._prompts)

    def key(self, index: int) -> str:
        return f"{self._path.name}:{self._prompts[index][0]}"

    def shard_name(self, shard: int) -> str:  # noqa: ARG002  # there is one
        return self._path.name

    def caption(self, index: int) -> str:
        return self._prompts[index][1]

    def read(self, index: int) -> Example:
        return Example(self._grey, self.caption(index))

    @functools.cached_property
    def _grey(self) -> Image.Image:
        return Image.new("RGB", (self._side, self._side), (128, 128, 128))


def _read_lines(path: Path) -> list[str]:
    """Reads them. Raises UserError."""
    try:
        content = load_bytes(path, _MOST_BYTES)
        return content.decode(name_encoding(content)).removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({why}); give a text file of prompts") from error
