"""Lists and reads files by local path or fsspec URL, with retries where the network fails."""

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
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import fsspec
from fsspec.utils import get_protocol

from fewstep.data.sources.base import escape_line
from fewstep.errors import UserError

T = TypeVar("T")

WAITS = (0.5, 2.0, 8.0)
"""Seconds before the second, third and fourth try of a request that failed."""
_AT_ONCE = 32
_INFINITIVES = {"read": "read", "written": "write"}
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
class FileVersion:
    """The content of a file at some time: another tag means other content."""

    size: int
    """Bytes; −1 where a server does not say."""
    tag: str


def is_remote(url: str) -> bool:
    return get_protocol(url) not in ("file", "local")


def is_web(url: str) -> bool:
    return get_protocol(url) in ("http", "https")


def local_path(url: str) -> str:
    return re.sub(r"^(file|local)://", "", url)


def redact(url: str) -> str:
    """Returns the URL for messages, without credentials, query and fragment, which may hold secrets."""
    parts = urlsplit(url) if is_remote(url) else None
    if parts is None:
        return escape_line(url)
    return escape_line(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def find_folder(url: str) -> str:
    """Returns the folder of a file, with the query that the file's URL has."""
    if not is_remote(url):
        return os.path.dirname(local_path(url)) or "."
    end = len(strip_query(url))
    return url[:end].rpartition("/")[0] + url[end:]


def strip_query(url: str) -> str:
    """Returns the URL without its query, so that it ends with the file's name."""
    return url.partition("?")[0] if is_remote(url) else url


def expand_braces(pattern: str) -> list[str]:
    """Writes out `a-{000..002}.tar` and `{a,b}.tar`, in order; a path that exists is returned unchanged."""
    if os.path.exists(local_path(pattern)):
        return [pattern]
    parts = _BRACES.split(pattern)
    choices = [[part] if i % 2 == 0 else _list_choices(part) for i, part in enumerate(parts)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > _MOST_NAMES:
        raise UserError(f"{redact(pattern)} expands to {count:,} names; {_MOST_NAMES:,} is the most")
    return ["".join(names) for names in itertools.product(*choices)]


def _list_choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if not match:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = match.groups()
    if int(last) < int(first) or int(last) - int(first) >= _MOST_NAMES:
        raise UserError(
            f"{{{inside}}} is not a range; the second number must be the larger, by less than {_MOST_NAMES:,}"
        )
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return [f"{number:0{width}}" for number in range(int(first), int(last) + 1)]


def open_filesystem(url: str) -> tuple[Any, str]:
    """Returns the fsspec file system of a URL, and the path in it. Raises UserError where fsspec cannot open it."""
    protocol = get_protocol(url)
    # By default aiohttp stops a download after five minutes; here only silence is limited.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
    headers = {"Accept-Encoding": "identity"}  # so that sizes are those of the files
    options = {"client_kwargs": {"timeout": timeout, "headers": headers}}
    try:
        system, path = fsspec.core.url_to_fs(url, **(options if protocol in ("http", "https") else {}))
    except ValueError as error:
        raise UserError(f"{redact(url)} cannot be opened: {error}") from error
    except ImportError as error:
        raise UserError(f"{redact(url)} cannot be opened: {error} (with pip)") from error
    return system, path


def retry(url: str, action: Callable[[], T], verb: str = "read") -> T:
    """Calls `action`, which reads or does another `verb`, again when the network fails, and returns its result.

    Raises UserError in the end; errors that mean "not found" or "disk full" are raised as they are.
    """
    for tries, wait in enumerate((*WAITS, None), start=1):
        try:
            return action()
        except UserError:
            raise
        except Exception as error:  # every backend of fsspec raises the errors of its own library
            if is_not_found(error) or getattr(error, "errno", 0) in _FULL:
                raise
            if wait is None or getattr(error, "status", 0) in _FINAL or isinstance(error, PermissionError):
                failed = f"{_describe_error(error)}, {tries} {'try' if tries == 1 else 'tries'}"
                raise UserError(
                    f"{redact(url)} cannot be {verb} ({failed}); "
                    f"check that it is there for you to {_INFINITIVES[verb]} and that the network works, "
                    "then start again"
                ) from error
            time.sleep(wait)
    raise AssertionError("unreachable")


def is_not_found(error: Exception) -> bool:
    """Tells whether a file does not exist. Over HTTP, fsspec raises FileNotFoundError for every failure."""
    if not isinstance(error, FileNotFoundError):
        return False
    cause = error.__cause__
    if isinstance(cause, aiohttp.ClientError | asyncio.TimeoutError):
        return getattr(cause, "status", 0) in _GONE
    return True


def _describe_error(error: Exception) -> str:
    error = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError) else error
    status = getattr(error, "status", "")
    text = re.sub(r"\?\S+|(?<=//)[^/@\s]+@", "", " ".join(str(getattr(error, "message", "") or error).split()))
    return escape_line(" ".join(str(part) for part in (type(error).__name__, status, text[:200]) if part))


def find_versions(urls: Sequence[str]) -> dict[str, FileVersion]:
    """Returns the current version of each file; files that do not exist are left out."""
    found: dict[str, FileVersion] = {}
    remote = []
    for url in urls:
        if is_remote(url):
            remote.append(url)
            continue
        try:
            status = os.stat(local_path(url))
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode):
            found[url] = read_local_version(status)
    by_parent: dict[str, list[str]] = {}
    for url in remote:
        by_parent.setdefault(url.rpartition("/")[0], []).append(url)
    for parent, children in by_parent.items():
        if is_web(parent):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                answers = zip(children, pool.map(_find_version, children), strict=True)
                found.update({url: version for url, version in answers if version})
        elif len(children) == 1:
            found.update({url: version for url in children if (version := _find_version(url))})
        else:
            found |= _list_versions(parent, children)
    return found


def _find_version(url: str) -> FileVersion | None:
    fs, path = open_filesystem(url)
    fresh = {"refresh": True} if get_protocol(url) == "hf" else {}
    if not fresh:  # Hugging Face would list the whole folder anew
        fs.invalidate_cache()
    try:
        return _read_version(retry(url, lambda: fs.info(path, **fresh)))
    except FileNotFoundError:
        return None


def _list_versions(parent: str, children: Iterable[str]) -> dict[str, FileVersion]:
    """Asks for one listing instead of every file."""
    fs, path = open_filesystem(parent)
    fs.invalidate_cache()
    try:
        entries = retry(parent, lambda: fs.ls(path, detail=True))
    except FileNotFoundError:
        return {}
    by_name = {PurePosixPath(entry["name"]).name: entry for entry in entries}
    return {url: _read_version(by_name[name]) for url in children if (name := url.rpartition("/")[2]) in by_name}


def _read_version(info: dict[str, Any]) -> FileVersion:
    size = -1 if info.get("size") is None else int(info["size"])
    mark = next((info[name] for name in _STAMPS if info.get(name)), "")
    if isinstance(mark, datetime):  # some file systems give a datetime, others seconds
        mark = mark.timestamp()
    return FileVersion(size, f"{size}-{mark:.6f}" if isinstance(mark, float) else f"{size}-{mark}")


def read_local_version(status: os.stat_result) -> FileVersion:
    return FileVersion(status.st_size, f"{status.st_size}-{status.st_mtime_ns}")


def list_files(url: str) -> list[str]:
    """Lists all files below a remote folder, relative to it; of a web server, those that the page links to."""
    fs, path = open_filesystem(url)
    listing = (lambda: fs.ls(path, detail=False)) if is_web(url) else (lambda: fs.find(path))
    try:
        found = retry(url, listing)
    except (FileNotFoundError, NotADirectoryError):
        return []
    root = path.rstrip("/") + "/"
    names = [name[len(root) :] if name.startswith(root) else name for name in map(str, found)]
    return sorted(name for name in names if name and not name.endswith("/"))


def expand_wildcards(pattern: str) -> list[str]:
    """Returns the files that match a pattern with `*`, `?` or `[…]`, sorted; `**` does not go into linked folders."""
    if not is_remote(pattern):
        folder, rest = split_pattern(local_path(pattern))
        if "**" in rest:  # glob's own follows links, for ever where they lead back
            return sorted(map(str, Path(folder).glob(f"{rest}/*" if rest.endswith("**") else rest)))
        return sorted(glob.glob(local_path(pattern)))
    fs, path = open_filesystem(pattern)
    try:
        return sorted(fs.unstrip_protocol(name) for name in retry(pattern, lambda: fs.glob(path)))
    except FileNotFoundError:
        return []


def split_pattern(pattern: str) -> tuple[str, str]:
    """Returns the folder in which all files lie that match a pattern here, and the pattern in it."""
    parts = pattern.split("/")
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part) or place == len(parts) - 1)
    return "/".join(parts[:fixed]) or ("/" if pattern.startswith("/") else "."), "/".join(parts[fixed:])


def read_bytes(url: str, most: int) -> bytes:
    """Reads the first `most` bytes of a remote file."""
    fs, path = open_filesystem(url)
    return bytes(retry(url, lambda: fs.cat_file(path, start=0, end=most))[:most])


def download(url: str, target: str) -> None:
    fs, path = open_filesystem(url)
    retry(url, lambda: fs.get_file(path, target))
