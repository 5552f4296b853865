"""diffusers and peft, imported as the commands want them."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator

PRELOAD = ("fewstep.models.without_extras",)
"""The module that a process of our own imports first, which does so."""
_EXTRAS = ("bitsandbytes", "scipy")
"""What the libraries import where it is installed, and fewstep has no use for: two seconds to load quantised networks,
and most of a second for samplers and losses of which there are none here."""


def import_without_extras() -> None:
    """Imports diffusers and peft, which take bitsandbytes and scipy for not installed from then on, as does
    transformers; others can import them.

    None of the three has a setting for that, and all run where neither is installed. What is imported already stays.
    For processes of our own: a program that calls fewstep may have a use for them.
    """
    hidden = [name for name in _EXTRAS if name not in sys.modules]
    # None is Python's own mark of a module that cannot be imported (docs.python.org/3/reference/import.html, 5.3.1).
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # typeshed leaves the mark out
    try:
        import diffusers  # noqa: F401  # asks as it is imported, as does peft
        from peft.import_utils import is_bnb_available
        from transformers.utils import is_scipy_available

        is_bnb_available()  # asked again at the first adapter; peft remembers the answer
        is_scipy_available()  # transformers remembers it too
    finally:
        for name in hidden:
            del sys.modules[name]


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
