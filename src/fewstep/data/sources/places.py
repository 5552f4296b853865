"""Where data lies: local paths and fsspec URLs, found, looked at and read alike, with patience for the network."""

from __future__ import annotations

import asyncio
import errno
import glob
import itertools
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec
from fsspec.utils import get_protocol

from fewstep.data.sources.base import shown
from fewstep.errors import UserError

T = TypeVar("T")

WAITS = (0.5, 2.0, 8.0)
"""Seconds before the second, third and fourth try of what the network refused."""
_AT_ONCE = 32
_FINAL = frozenset((400, 401, 403))
_GONE = frozenset((404, 410))
_FULL = frozenset((errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)))
_STAMPS = (
    "ETag", "etag", "md5Hash", "blob_id", "Content-MD5", "mtime", "LastModified", "last_modified", "Last-Modified",
    "updated", "created",
)  # fmt: skip
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1_000_000


@dataclass(frozen=True)
class Seen:
    """What a file is now: with another stamp it is another file."""

    size: int
    """In bytes; −1 where a server does not say."""
    stamp: str


def is_remote(url: str) -> bool:
    return get_protocol(url) not in ("file", "local")


def local_path(url: str) -> str:
    return re.sub(r"^(file|local)://", "", url)


def readable(url: str) -> str:
    """The URL for people to read, without what may be secret in it."""
    parts = urlsplit(url) if is_remote(url) else None
    if parts is None:
        return shown(url)
    return shown(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def file_part(url: str) -> str:
    """The URL without query, so that its end is the file's name."""
    return url.partition("?")[0] if is_remote(url) else url


def leads_out(path: str) -> bool:
    """Whether a relative path, by the rules of any system, would end outside the folder that it is relative to."""
    return path[:1] in ("/", "\\") or path[1:2] == ":" or ".." in path.replace("\\", "/").split("/")


def expand(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` written out, in order; what exists as it stands is left as it is."""
    if os.path.exists(local_path(pattern)):
        return [pattern]
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _choices(part) for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST_NAMES:
        raise UserError(f"{readable(pattern)} stands for {count:,} names; {_MOST_NAMES:,} is the most")
    return ["".join(names) for names in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if not match:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= _MOST_NAMES:
        raise UserError(f"{{{inside}}} is no range; the second number must be the larger, by less than {_MOST_NAMES:,}")
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]


def filesystem(url: str) -> tuple[Any, str]:
    """The file system behind a URL, and the path in it."""
    protocol = get_protocol(url)
    # aiohttp gives a whole download five minutes unless told otherwise; here only silence is limited.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    plain = {"Accept-Encoding": "identity"}  # so that sizes are those of the files
    patience = {"client_kwargs": {"timeout": timeout, "headers": plain}}
    try:
        system, path = fsspec.core.url_to_fs(url, **(patience if protocol in ("http", "https") else {}))
    except ValueError as error:
        raise UserError(f"{readable(url)} cannot be opened: {error}") from error
    except ImportError as error:
        raise UserError(f"{readable(url)} cannot be opened: {error} (with pip)") from error
    return system, path


def patiently(url: str, action: Callable[[], T]) -> T:
    """What `action` gives, tried again when the network fails. Raises UserError, or what means that it is not there."""
    for tries, wait in enumerate((*WAITS, None), start=1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every backend of fsspec raises the errors of its own library
            if is_absent(error) or getattr(error, "errno", 0) in _FULL:
                raise
            if wait is None or getattr(error, "status", 0) in _FINAL or isinstance(error, PermissionError):
                raise UserError(
                    f"{readable(url)} cannot be read ({_said(error)}, {tries} {'try' if tries == 1 else 'tries'}); "
                    "check that it is there for you to read and that the network works, then start again"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_absent(error: Exception) -> bool:
    """Whether the file is not there; fsspec's HTTP says so of every failure, and why in the cause."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientError | asyncio.TimeoutError):
        return getattr(cause, "status", 0) in _GONE
    return True


def _said(error: Exception) -> str:
    error = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    status = getattr(error, "status", "")
    text = re.sub(r"\?\S+|(?<=//)[^/@\s]+@", "", " ".join(str(getattr(error, "message", "") or error).split()))
    return shown(" ".join(str(part) for part in (type(error).__name__, status, text[:200]) if part))


def look_up(urls: Sequence[str]) -> dict[str, Seen]:
    """What each file is now; those that are not there are left out."""
    found: dict[str, Seen] = {}
    far = []
    for url in urls:
        if is_remote(url):
            far.append(url)
            continue
        try:
            status = os.stat(local_path(url))
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found[url] = seen_locally(status)
    by_parent: dict[str, list[str]] = {}
    for url in far:
        by_parent.setdefault(url.rpartition("/")[0], []).append(url)
    for parent, children in by_parent.items():
        if get_protocol(parent) in ("http", "https"):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                answers = zip(children, pool.map(_look_at, children), strict=True)
                found.update({url: seen for url, seen in answers if seen})
        elif len(children) == 1:
            found.update({url: seen for url in children if (seen := _look_at(url))})
        else:
            found |= _look_into(parent, children)
    return found


def _look_at(url: str) -> Seen | None:
    fs, path = filesystem(url)
    fresh = {"refresh": True} if get_protocol(url) == "hf" else {}  # which would list the whole folder anew
    if not fresh:
        fs.invalidate_cache()
    try:
        return _seen(patiently(url, lambda: fs.info(path, **fresh)))
    except FileNotFoundError:
        return None


def _look_into(parent: str, children: Iterable[str]) -> dict[str, Seen]:
    """One listing instead of a question for every file."""
    fs, path = filesystem(parent)
    fs.invalidate_cache()
    try:
        entries = patiently(parent, lambda: fs.ls(path, detail=True))
    except FileNotFoundError:
        return {}
    by_name = {PurePosixPath(entry["name"]).name: entry for entry in entries}
    return {url: _seen(by_name[name]) for url in children if (name := url.rpartition("/")[2]) in by_name}


def _seen(info: dict[str, Any]) -> Seen:
    size = -1 if info.get("size") is None else int(info["size"])
    mark = next((info[name] for name in _STAMPS if info.get(name)), "")
    if isinstance(mark, datetime):  # a file system may give one time in two ways
        mark = mark.timestamp()
    return Seen(size, f"{size}-{mark:.6f}" if isinstance(mark, float) else f"{size}-{mark}")


def seen_locally(status: os.stat_result) -> Seen:
    return Seen(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def find_files(url: str) -> list[str]:
    """The names of all files in a remote folder and below, relative to it; of a web server, those it links to."""
    fs, path = filesystem(url)
    listing = (lambda: fs.ls(path, detail=False)) if get_protocol(url) in ("http", "https") else (lambda: fs.find(path))
    try:
        found = patiently(url, listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    root = path.rstrip("/") + "/"
    names = [name[len(root) :] if name.startswith(root) else name for name in map(str, found)]
    return sorted(name for name in names if name and not name.endswith("/"))


def match(pattern: str) -> list[str]:
    """The files that a pattern with `*`, `?` or `[…]` stands for, sorted."""
    if not is_remote(pattern):
        return sorted(glob.glob(local_path(pattern), recursive=True))
    fs, path = filesystem(pattern)
    try:
        return sorted(fs.unstrip_protocol(name) for name in patiently(pattern, lambda: fs.glob(path)))
    except FileNotFoundError:
        return []


def read_bytes(url: str, most: int) -> bytes:
    """The first `most` bytes of a remote file."""
    fs, path = filesystem(url)
    return bytes(patiently(url, lambda: fs.cat_file(path, start=0, end=most))[:most])


def download(url: str, target: str) -> None:
    fs, path = filesystem(url)
    patiently(url, lambda: fs.get_file(path, target))
