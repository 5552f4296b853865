"""Lets messages call a setting as a person did, where it has several names."""

from __future__ import annotations

import contextlib
import re
import typing
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from fewstep.errors import UserError


@contextlib.contextmanager
def name_as_given(kind: type, given: Iterable[str]) -> Iterator[None]:
    """Puts the names that a person gave for a configuration's own in a UserError.

    `given` has the words of a command line, or the keys of a file.
    """
    try:
        yield
    except UserError as error:
        words = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in given}
        for other, own in _list_others(kind):
            if other in words:  # only where it stands as a setting: `steps is 0`, `--change steps`
                said = re.sub(rf"(--change .*?)?(?<![\w/\\.-]){own}\b(?(1)|(?= is ))", rf"\g<1>{other}", str(error))
                error.args = (said,)
        raise


def list_aliases(hint: Any) -> list[str]:
    """Returns what else an option is called."""
    extras = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return [alias for extra in extras for alias in (getattr(extra, "aliases", None) or ())]


def _list_others(kind: type) -> Iterator[tuple[str, str]]:
    """Yields every other name of a setting, with its own."""
    yield from getattr(kind, "also_named", {}).items()
    for own, hint in typing.get_type_hints(kind, include_extras=True).items():
        for alias in list_aliases(hint):
            yield alias.removeprefix("--").replace("-", "_"), own
