"""How far long work has come, for a program that wants to know: reported where the work is, heard where it was asked
for."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Progress:
    """How far some work has come."""

    work: str
    """What is done: `encoding`; `distil`, `fine-tune` or `style`, updates of a training; `evaluation`, rows of the
    table; `preparation`, shards."""
    done: int
    total: int
    values: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    """What was measured meanwhile, as metrics.jsonl has it, at the updates that it has a line for."""


Listener = Callable[[Progress], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(work: str, done: int, total: int, values: Mapping[str, float] | None = None) -> None:
    """Tells whoever listens; costs nothing where nobody does."""
    if (listener := _listener.get()) is not None:
        listener(Progress(work, done, total, MappingProxyType(dict(values or {}))))


@contextlib.contextmanager
def listen(listener: Listener | None, *, quiet: bool = False) -> Iterator[None]:
    """Has `listener` called with every report of what goes on in it; `quiet`, nothing else is written to stdout and
    stderr meanwhile, but by the listener itself. An exception of the listener ends the work."""
    with contextlib.ExitStack() as stack:
        heard = listener
        if quiet:
            streams = sys.stdout, sys.stderr
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
            heard = None if listener is None else _with_streams(listener, *streams)
        token = _listener.set(heard)
        stack.callback(_listener.reset, token)
        yield


def _with_streams(listener: Listener, out: object, err: object) -> Listener:
    """Lets a listener write where it would."""

    def call(progress: Progress) -> None:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
            listener(progress)

    return call
