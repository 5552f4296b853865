"""How `fewstep bench` measures: subjects in turn, parts by stopwatch, work by count, hardware by its matrix rate."""

from __future__ import annotations

import contextlib
import platform
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fewstep.errors import UserError
from fewstep.models.options import DeviceOptions


@dataclass(frozen=True, kw_only=True)
class Comparison(DeviceOptions):
    """What the `fewstep bench` commands share."""

    compare: bool = False
    """Also time the plain arrangement of the field's libraries, on the same weights and draws, in turn with
    fewstep's."""
    rounds: int = 9
    """Counts the timed rounds of each subject."""
    warm_up: int = 2
    """Rounds of each subject before the timed ones."""
    json: Path | None = None
    """File to write the figures to."""
    against: Path | None = None
    """File that --json wrote for the same comparison earlier; the command fails if a ratio has fallen below 0.9 of the
    one there."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warm_up < 1:
            raise UserError(f"rounds is {self.rounds} and warm_up {self.warm_up}; both must be at least 1")
        if self.against and not self.compare:
            raise UserError("against compares ratios; give --compare too")


@dataclass(frozen=True)
class Spread:
    """Seconds of one thing, measured several times."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def ends(self) -> tuple[float, float]:
        return min(self.seconds), max(self.seconds)


def wait_for(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def in_turn(
    subjects: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: int = 1
) -> dict[str, Spread]:
    """Seconds of each subject, one after the other in every round and in turned order in every other one, so that what
    slows the machine slows all of them."""
    for act in subjects.values():
        for _ in range(warm_up):
            act()
    names = list(subjects)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names if turn % 2 else reversed(names):
            wait_for(device)
            begun = time.perf_counter()
            subjects[name]()
            wait_for(device)
            seconds[name].append(time.perf_counter() - begun)
    return {name: Spread(tuple(values)) for name, values in seconds.items()}


class Stopwatch:
    """Seconds of named parts while it is `on`; waiting for the device at each end, which a whole update does not."""

    def __init__(self, device: torch.device) -> None:
        self.on = False
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if not self.on:
            yield
            return
        wait_for(self._device)
        begun = time.perf_counter()
        yield
        wait_for(self._device)
        self.seconds[name] += time.perf_counter() - begun

    def around(self, name: str, act: Callable[..., Any], without_gradient: str = "") -> Callable[..., Any]:
        """Times `act` as a part of that name; where no graph is built, of the other one if it is given."""

        def timed(*arguments: Any) -> Any:
            with self(without_gradient if without_gradient and not torch.is_grad_enabled() else name):
                return act(*arguments)

        return timed

    def per_round(self, act: Callable[[], object], rounds: int) -> dict[str, float]:
        """Returns the mean seconds of every part over so many rounds of `act`."""
        self.on, self.seconds = True, defaultdict(float)
        for _ in range(rounds):
            act()
        self.on = False
        return {name: value / rounds for name, value in self.seconds.items()}


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that are alive, now and at most. (torch's own MemTracker refuses frozen weights.)"""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no annotations
        self.now = self.most = 0
        self._seen: set[int] = set()

    @classmethod
    def with_weights(cls, modules: Iterable[nn.Module]) -> Self:
        """Makes one that has seen all that the modules hold."""
        live = cls()
        for module in modules:
            for tensor in (*module.parameters(), *module.buffers()):
                live.see(tensor)
        return live

    def see(self, tensor: Tensor) -> None:
        """Counts it until its end."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.remove(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.see(tensor)
        return result


class Work(TorchDispatchMode):
    """Floating-point operations of matrix products, convolutions and attention.

    torch's own FlopCounterMode takes operations apart to count them, which changes what is alive meanwhile; its
    formulas are used.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own has no annotations
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        elif func.overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
            self.flops += sdpa_flop_count(*(each.shape for each in args[:3]))
        elif func.overloadpacket is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
            self.flops += sdpa_backward_flop_count(*(each.shape for each in args[:4]))
        return result


def most_bytes(act: Callable[[], object], held: Iterable[Tensor]) -> int:
    """Returns the most bytes at any moment of `act`, of tensors `held` before it and of those that it makes."""
    live = LiveBytes()
    with live:
        for tensor in held:
            live.see(tensor)
        act()
    return live.most


def count_flops(act: Callable[[], object]) -> int:
    """Counts what its convolutions, matrix products and attention do; a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False)
    with counter:
        act()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Measures the most floating-point operations a second that products of large square matrices reach here."""
    side = 8192 if device.type == "cuda" else 1536
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        wait_for(device)
        begun = time.perf_counter()
        left @ right
        wait_for(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best


def machine(device: torch.device) -> dict[str, Any]:
    """Says what the figures are of."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _name_processor()
    return {"device": name, "threads": torch.get_num_threads()}


def _name_processor() -> str:
    """Its name, where the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
