"""Sends files to a repository of the Hub, with true words where that fails."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fewstep.errors import UserError
from fewstep.models.hub import TRIES, find_endpoint, find_status, list_causes

T = TypeVar("T")


def check_account(repo: str) -> None:
    """Raises UserError where nobody is logged in, or the name is none of a repository, before any work is done."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        named = re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is not None
        validate_repo_id(repo)
    except HFValidationError:
        named = False
    if not named:
        raise UserError(f"{repo!r:.80} is no name that a repository could have; give OWNER/NAME")
    _explained(repo, lambda: HfApi().whoami())


def send(repo: str, files: Mapping[str, Path | bytes], *, public: bool, message: str) -> str:
    """Sends files, by their names there, in one commit, and returns the repository's address.

    A repository that is not there is made, private or `public`. Raises UserError where one that is there is open to all
    and that is not wanted, and for whatever the Hub or the way to it refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    def act() -> str:
        api = HfApi()
        try:
            if not api.model_info(repo).private and not public:
                raise UserError(f"{repo} is there and open to all; give --public, or another name")
        except RepositoryNotFoundError:
            api.create_repo(repo, private=not public)
        added = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(repo, added, commit_message=message)
        return f"{find_endpoint()}/{repo}"

    return _explained(repo, act)


def _explained(repo: str, act: Callable[[], T]) -> T:
    os.environ.setdefault(TRIES, "3")
    try:
        return act()
    except UserError:
        raise
    except Exception as error:  # the client, its HTTP libraries and the disk each raise their own
        raise UserError(_explain(repo, error)) from error


def _explain(repo: str, error: Exception) -> str:
    kinds = [type(each).__name__ for each in list_causes(error)]
    status = find_status(error)
    if "HFValidationError" in kinds:
        return f"{repo} is no name that a repository could have; give OWNER/NAME"
    if "LocalTokenNotFoundError" in kinds or status == 401:
        return f"nothing was sent: {find_endpoint()} does not know you; `hf auth login`, or set HF_TOKEN"
    if status is not None:
        said: Any = getattr(error, "server_message", None) or {
            403: "your token may not write there: take one with write access, or another owner",
            409: "it is there already",
        }.get(status, "try again later")
        return f"{repo} could not be sent: {find_endpoint()} answers {status}; {said}"
    reason = " ".join(str(error).split())[:200]
    return f"{repo} could not be sent to {find_endpoint()} ({kinds[0]}: {reason}); check the connection"
