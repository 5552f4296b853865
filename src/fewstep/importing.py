"""Imports that the garbage collector does not interrupt."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Collects no garbage while it lasts.

    To import torch, diffusers and transformers makes millions of objects that stay, and Python looks through all of
    them for garbage again and again: a third of the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
