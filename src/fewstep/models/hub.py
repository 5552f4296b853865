"""Repositories of the Hub: what is needed of them, fetched once, with true words where that fails."""

from __future__ import annotations

import errno
import glob
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import UserError
from fewstep.models.model_files import END_FILE, SMALL_FILES
from fewstep.models.weight_files import choose_weights

logger = logging.getLogger(__name__)

TRIES = "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS"
"""How often the client of the Hub's storage asks again, in silence: 5 times by default, for minutes a file."""
Choose = Callable[[Sequence[str]], Iterable[str]]


def fetch_pipeline(source: str, parts: Sequence[str], *, without: Collection[str] = ()) -> Path:
    """Fetches a diffusers pipeline: its configurations, and of every part one variant of the weights.

    `without` are parts whose weights are not wanted. Raises UserError.
    """

    def choose(names: Sequence[str]) -> Iterator[str]:
        if "model_index.json" not in names:
            raise UserError(
                f"{source} holds no diffusers pipeline (it has no model_index.json); give one that does, or a UNet "
                "alone with --unet and its base as the model"
            )
        yield from (name for name in ("model_index.json", "fewstep.json", END_FILE) if name in names)
        for part in parts:
            yield from _list_wanted(names, f"{part}/", source, weights=part not in without)

    return fetch(source, choose)


def fetch_network(source: str) -> Path:
    """Fetches a repository that is a network alone: its configuration, and one variant of its weights."""
    return fetch(source, lambda names: _list_wanted(names, "", source, weights=True))


def fetch_configurations(source: str, parts: Sequence[str]) -> Path:
    """Fetches a pipeline's configurations and tokenizers, and no weights."""

    def choose(names: Sequence[str]) -> Iterator[str]:
        yield from (name for name in ("model_index.json",) if name in names)
        for part in parts:
            yield from _list_wanted(names, f"{part}/", source, weights=False)

    return fetch(source, choose)


def _list_wanted(names: Sequence[str], begin: str, source: str, *, weights: bool) -> Iterator[str]:
    held = [name.removeprefix(begin) for name in names if name.startswith(begin)]
    held = [name for name in held if "/" not in name]
    yield from (begin + name for name in held if name in SMALL_FILES)
    is_network = any(Path(name).suffix in (".safetensors", ".bin") for name in held)
    if weights and is_network:
        where = f"{source}/{begin}".rstrip("/")
        yield from (begin + name for name in choose_weights(held, where).names)


def fetch(source: str, choose: Choose) -> Path:
    """Fetches what is chosen of a repository's files, or finds it among what was fetched before. Raises UserError."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from tqdm import tqdm

    os.environ.setdefault(TRIES, "3")
    try:
        place: Path | None = None
        try:
            found = HfApi().model_info(source, timeout=constants.HF_HUB_ETAG_TIMEOUT).siblings
            names = [each.rfilename for each in found or ()]
        except Exception as error:
            if (place := _fetched_before(source, error)) is None:
                raise
            names = [file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file()]
        wanted = [glob.escape(name) for name in choose(names)]
        if place is not None:
            return place
        # Of its own, since the libraries' bars are off: they show one for every part that they load.
        bar = tqdm if sys.stderr.isatty() else None
        return Path(snapshot_download(source, allow_patterns=wanted, tqdm_class=bar))
    except UserError:
        raise
    except Exception as error:  # the Hub's client, its two HTTP libraries and the disk each raise their own
        raise UserError(_explain(source, error)) from error


def _fetched_before(source: str, error: Exception) -> Path | None:
    """Returns what lies here of a repository where the Hub does not answer; None where it says no, or nothing lies."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    if find_status(error) in (401, 403, 404) or isinstance(error, HFValidationError):
        return None
    kept = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=source, repo_type="model")
    revision = kept / "refs" / "main"
    if not revision.is_file():
        return None
    place = kept / "snapshots" / revision.read_text().strip()
    if not place.is_dir():
        return None
    logger.info(f"note: {source} is read as it was fetched before: no answer from the Hub")
    return place


def _explain(source: str, error: Exception) -> str:
    """Says in one line what stood in the way, and what to do."""
    kinds = [type(each).__name__ for each in list_causes(error)]
    for each in list_causes(error):
        if isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT):
            return (
                f"{source} does not fit: the disk of {_find_cache()} is full; make room, or set HF_HOME to another disk"
            )
        if isinstance(each, PermissionError):
            return f"{source} cannot be kept: {_find_cache()} cannot be written; set HF_HOME to a folder of yours"
    for words, said in _REASONS:
        if any(word in kind for word in words for kind in kinds):
            return f"{source} {said}".format(hub=find_endpoint(), source=source, proxy=_find_proxy() or "none is set")
    status = find_status(error)
    for low, high, said in _STATUS:
        if status is not None and low <= status <= high:
            longer = f" ({TRIES}=10 tries for longer)" if status >= 500 and _find_stored(error) else ""
            return f"{source} could not be fetched: {find_endpoint()} answers {status}; {said}{longer}"
    if proxy := _find_proxy():
        return f"{source} could not be fetched through the proxy {proxy} ({kinds[0]}); check it, or unset HTTPS_PROXY"
    reason = " ".join(str(error).split())[:120]
    return (
        f"{source} is not a folder here and could not be fetched from {find_endpoint()} ({kinds[0]}: {reason}); check "
        "the connection, or give a folder or file that is here"
    )


_REASONS: Sequence[tuple[Sequence[str], str]] = (
    (("HFValidationError",), "is neither here nor a name that the Hub could have; give a folder, a file or OWNER/NAME"),
    (
        ("GatedRepoError",),
        "is gated: accept its conditions at {hub}/{source}, then `hf auth login` (or set HF_TOKEN)",
    ),
    (
        ("RepositoryNotFoundError",),
        "is not a folder here, and {hub} has no such model or does not show it to you; check the name, or "
        "`hf auth login` for a private one",
    ),
    (
        ("OfflineModeIsEnabled",),
        "is not a folder here and could not be fetched from the Hub: HF_HUB_OFFLINE is set and it was not fetched "
        "before; unset that once, or give a folder or file that is here",
    ),
    (("ProxyError",), "could not be fetched: the proxy refuses ({proxy}); check HTTPS_PROXY"),
    (("SSL",), "could not be fetched: the certificate of {hub} is not trusted; check SSL_CERT_FILE and the proxy"),
    (
        ("Timeout",),
        "could not be fetched: {hub} does not answer in time; try again (what has come is kept), or set "
        "HF_HUB_DOWNLOAD_TIMEOUT and HF_HUB_ETAG_TIMEOUT to more seconds",
    ),
)  # fmt: skip
_STATUS = (
    (401, 401, "the token is not valid: `hf auth login`, or unset HF_TOKEN"),
    (403, 403, "your token may not read it: ask for access, or use another token"),
    (404, 404, "check the name"),
    (407, 407, "the proxy wants a name and a password: check HTTPS_PROXY"),
    (429, 429, "too many requests: wait a while, or `hf auth login`"),
    (500, 599, "the trouble is there: try again later, what has come is kept"),
)


def list_causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and those that it came from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def find_status(error: Exception) -> int | None:
    """Returns the status of the HTTP answer that an error came from, if it came from one."""
    for each in list_causes(error):
        response: Any = getattr(each, "response", None)
        if response is not None and isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
    return _find_stored(error)


def _find_stored(error: Exception) -> int | None:
    """Returns the status that the storage of large files answered, whose client is written in Rust, if it is that."""
    said = (re.search(r"HTTP status \w+ error \((\d{3})\b", str(each)) for each in list_causes(error))
    return next((int(each[1]) for each in said if each), None)


def _find_proxy() -> str:
    found = (os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    return next((each.rpartition("@")[2] for each in found if each), "")


def find_endpoint() -> str:
    """Returns the address of the Hub."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _find_cache() -> str:
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)
