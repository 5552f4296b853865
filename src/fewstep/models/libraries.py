"""diffusers and peft, imported as the commands want them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator

PRELOAD = ("fewstep.models.without_bitsandbytes",)
"""The module that a process of our own imports first, which does so."""


def import_without_bitsandbytes() -> None:
    """Imports diffusers and peft, which take bitsandbytes for not installed from then on; others can import it.

    They would import it, two seconds, to load quantised networks, of which there are none here. Neither has a setting
    for that. Does nothing where bitsandbytes is imported already. For processes of our own: a program that calls
    fewstep may have quantised networks.
    """
    if "bitsandbytes" in sys.modules:
        return
    # None is Python's own mark of a module that cannot be imported (docs.python.org/3/reference/import.html, 5.3.1).
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]  # typeshed leaves the mark out
    try:
        import diffusers  # noqa: F401  # asks as it is imported, as does peft
        from peft.import_utils import is_bnb_available

        is_bnb_available()  # asked again at the first adapter; peft remembers the answer
    finally:
        del sys.modules["bitsandbytes"]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keeps diffusers and transformers from notes and bars about themselves, while it lasts."""
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in ("diffusers", "transformers")]
    levels = [each.get_verbosity() for each in libraries]
    bars = [each.is_progress_bar_enabled() for each in libraries]
    try:
        for each in libraries:
            each.set_verbosity_error()
            each.disable_progress_bar()
        yield
    finally:
        for each, level, shown in zip(libraries, levels, bars, strict=True):
            each.set_verbosity(level)
            if shown:
                each.enable_progress_bar()
