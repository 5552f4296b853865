"""Actors of a ray cluster, which share independent jobs as workers do; any of them may be killed and come back."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fewstep.errors import UserError

_MOST_LOSSES = 8
"""Actors that a job may end before it is the job that must be at fault."""
_AHEAD = 3
"""Jobs that helpers are given before the first of them is used."""
_PATIENCE = 4.0
"""Seconds that helpers are waited for at first; who comes later is asked from then on."""
_PAUSE = 0.5
"""Seconds between two looks at actors that were lost."""


@dataclass(frozen=True)
class ActorSettings:
    """What an actor is made of, and what it takes of a machine."""

    make: str
    """`module:name` of what makes its runner, imported only there."""
    arguments: tuple[Any, ...]
    gpus: float = 0.0


@dataclass(frozen=True)
class Failure:
    """Carries what a runner raised, in words or whole."""

    error: Exception


@dataclass(frozen=True)
class Greeting:
    """What an actor says once it holds its runner."""

    node: str
    versions: dict[str, str]
    plan: Any
    """What its runner has to do, if it has a `plan`: alike in all actors."""
    said: str
    """What making the runner printed."""


class _Actor:
    """Holds a runner. Whatever it raises is returned, so that what ray raises means that the actor is lost."""

    def __init__(self, settings: ActorSettings, folder: str) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # as in a worker, before torch is imported: more would round otherwise
        with contextlib.suppress(OSError):
            os.chdir(folder)  # so that relative paths mean the same where they are there
        self._settings, self._runner, self._said = settings, None, ""

    def greet(self) -> Greeting | Failure:
        try:
            if self._runner is None:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    self._runner = _find(self._settings.make)(*self._settings.arguments)
                self._said = printed.getvalue()
            return Greeting(name_machine(), list_versions(), getattr(self._runner, "plan", None), self._said)
        except Exception as error:
            return _pack(error)

    def run(self, job: Any) -> Any:
        if isinstance(greeting := self.greet(), Failure):
            return greeting
        try:
            return self._runner.run(job)  # type: ignore[attr-defined]  # made by greet
        except Exception as error:
            return _pack(error)


def name_machine() -> str:
    """Returns the address of the machine in its ray cluster."""
    import ray

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def list_versions() -> dict[str, str]:
    """Returns the versions that what an actor makes depends on."""
    return {name: version(name) for name in ("fewstep", "torch")}


def _pack(error: Exception) -> Failure:
    error.add_note("in an actor:\n" + "".join(traceback.format_exception(error)))
    error.__cause__ = error.__context__ = None  # which may be of types that only the actor knows
    return Failure(error)


def _find(place: str) -> Callable[..., Any]:
    module, _, name = place.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


class Crew:
    """Some actors, of whom it is known which can be asked now. It may be passed to other actors."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self.handles = list(handles)
        self._gone = 0
        self._ready: dict[Any, Greeting] = {}
        self._greetings: dict[Any, Any] = {}
        for handle in self.handles:
            self._ask(handle)

    def __reduce__(self) -> tuple[type[Crew], tuple[list[Any]]]:
        return type(self), (self.handles,)

    def _ask(self, handle: Any) -> None:
        self._greetings[handle.greet.remote()] = handle

    def lose(self, handle: Any) -> None:
        """Remembers that it cannot be asked until it greets again."""
        if self._ready.pop(handle, None) is not None:
            self._ask(handle)

    def look(self, seconds: float = 0.0) -> dict[Any, Greeting]:
        """Returns the actors that can be asked, after waiting so long for another. Raises what kept one from its
        runner, and UserError where it is of another version."""
        import ray

        if self._greetings:
            for ref in ray.wait(list(self._greetings), num_returns=len(self._greetings), timeout=seconds)[0]:
                self._hear(ray, ref)
        return self._ready

    def _hear(self, ray: Any, ref: Any) -> None:
        handle = self._greetings.pop(ref)
        try:
            greeting = ray.get(ref)
        except ray.exceptions.ActorDiedError as error:
            self._gone += 1
            if "creation task" in str(error) or self._gone == len(self.handles):
                raise UserError(f"actors of the ray cluster cannot be made, or end ({_shorten(error)})") from error
        except ray.exceptions.RayError:
            self._ask(handle)
        else:
            if isinstance(greeting, Failure):
                raise greeting.error
            for name, held in list_versions().items():
                if greeting.versions[name] != held:
                    raise UserError(
                        f"machine {greeting.node} of the ray cluster has {name} {greeting.versions[name]}, this one "
                        f"{held}; install the same everywhere"
                    )
            self._ready[handle] = greeting


def _shorten(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class Helpers:
    """Actors who do jobs for another actor, in order and ahead; what none of them can be asked for is left to it."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles, self._turn = list(handles), 0
        self._crew: Crew | None = None

    def __reduce__(self) -> tuple[type[Helpers], tuple[list[Any]]]:
        return type(self), (self._handles,)

    def run_in_order(self, jobs: Iterable[Any]) -> Iterator[Any]:
        """Yields what became of each job, and None for one that no helper did."""
        waiting: deque[tuple[Any, Any, Any]] = deque()
        for job in jobs:
            waiting.append((job, *self._give(job)))
            if len(waiting) >= _AHEAD:
                yield self._take(*waiting.popleft())
        for given in waiting:
            yield self._take(*given)

    def _give(self, job: Any) -> tuple[Any, Any]:
        if self._crew is None:
            self._crew = Crew(self._handles)
            self._crew.look(_PATIENCE)
        if not (ready := list(self._crew.look())):
            return None, None
        handle = ready[self._turn % len(ready)]
        self._turn += 1
        return handle, handle.run.remote(job)

    def _take(self, job: Any, handle: Any, ref: Any) -> Any:
        import ray

        while ref is not None:
            try:
                result = ray.get(ref)
            except ray.exceptions.RayError:
                assert self._crew is not None  # since it gave the job
                self._crew.lose(handle)
                handle, ref = self._give(job)  # to another, if there is one
            else:
                if isinstance(result, Failure):
                    raise result.error
                return result
        return None


class RayWorkers:
    """Actors with a runner each, and helpers of theirs. Jobs are given to whoever is free, and given to another where
    an actor is lost; ray makes lost ones again, on the machines that are left or come."""

    def __init__(
        self, ray: Any, settings: ActorSettings, count: int, helpers: tuple[ActorSettings, int] | None = None,
        plan: Any = None,
    ) -> None:  # fmt: skip
        """`plan` is what all runners must have; without it, what the first has."""
        self._ray, self._plan = ray, plan
        self._handles: list[Any] = []
        arguments = settings.arguments
        if helpers is not None and helpers[1]:
            arguments += (Helpers([self._make(helpers[0]) for _ in range(helpers[1])]),)
        own = ActorSettings(settings.make, arguments, settings.gpus)
        self._crew = Crew([self._make(own) for _ in range(count)])

    def _make(self, settings: ActorSettings) -> Any:
        remote = self._ray.remote(num_cpus=1, num_gpus=settings.gpus, max_restarts=-1, max_task_retries=0)(_Actor)
        handle = remote.remote(settings, os.getcwd())
        self._handles.append(handle)
        return handle

    def greet(self) -> Greeting:
        """Waits for the first actor. Raises UserError where it cannot do its work."""
        while not (ready := self._crew.look(_PAUSE)):
            time.sleep(_PAUSE / 10)
        return next(iter(ready.values()))

    def run(self, jobs: Sequence[Any], commit: Callable[[Any, Any], None] = lambda _job, _result: None) -> list[Any]:
        """Runs all jobs, and returns what the runners did, in order; `commit` is called in this process with each job
        and its result, once. Raises what a runner raised, and UserError where a job ends every actor."""
        wanted, plan = deque(enumerate(jobs)), self._plan or self.greet().plan
        results: dict[int, Any] = {}
        losses: Counter[int] = Counter()
        running: dict[Any, tuple[Any, int, Any]] = {}
        checked: dict[Any, Greeting] = {}
        while len(results) < len(jobs):
            ready = self._crew.look()
            for handle, greeting in ready.items():
                if checked.get(handle) is not greeting and greeting.plan != plan:
                    raise UserError(
                        f"machine {greeting.node} of the ray cluster would make something else than "
                        f"others ({_differ(greeting.plan, plan)}); give --precision and --device, and the same "
                        "files everywhere"
                    )
                checked[handle] = greeting
            busy = {handle for handle, _, _ in running.values()}
            for handle in [each for each in ready if each not in busy][: len(wanted)]:
                number, job = wanted.popleft()
                running[handle.run.remote(job)] = handle, number, job
            if not running:
                self._crew.look(_PAUSE)
                time.sleep(_PAUSE / 10)  # lost ones say at once that they are
                continue
            for ref in self._ray.wait(list(running), num_returns=1, timeout=_PAUSE)[0]:
                handle, number, job = running.pop(ref)
                try:
                    result = self._ray.get(ref)
                except self._ray.exceptions.RayError as error:
                    self._crew.lose(handle)
                    losses[number] += 1
                    if losses[number] == _MOST_LOSSES:
                        raise UserError(
                            f"{_MOST_LOSSES} actors were lost at the same part, perhaps for lack of memory "
                            f"({_shorten(error)}); the same command goes on"
                        ) from error
                    print("note: an actor was lost; another makes its part", file=sys.stderr, flush=True)
                    wanted.appendleft((number, job))
                    continue
                if isinstance(result, Failure):
                    raise result.error
                commit(job, result)
                results[number] = result
        return [results[number] for number in range(len(jobs))]

    def close(self) -> None:
        """Ends the actors."""
        for handle in self._handles:
            with contextlib.suppress(Exception):
                self._ray.kill(handle)


def _differ(one: Any, other: Any) -> str:
    """Names what differs in two plans."""
    left, right = (getattr(each, "made_of", each) for each in (one, other))
    if isinstance(left, dict) and isinstance(right, dict):
        names = sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
        return ", ".join(f"{name} {left.get(name)!r:.80}, not {right.get(name)!r:.80}" for name in names[:2])
    return f"{left!r:.80}, not {right!r:.80}"
