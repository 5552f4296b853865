"""What 8-bit activations are scaled by: the inputs that a network has while it paints some prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from fewstep.documents import name_encoding
from fewstep.errors import UserError
from fewstep.models.family import LatentModel
from fewstep.roots import open_regular

SCENES = (
    "a small red star above a blue ring on a white background", "a pink heart", "a large green circle",
    "a yellow square left of a red triangle", "a purple diamond on a black background", "a small green cross",
    "an orange ring above a large cyan heart", "a blue star",
)  # fmt: skip
"""Are for models that know the bundled world's words alone."""
PHOTOGRAPHS = (
    "a portrait of an old fisherman, natural light", "a red car on a wet street at night", "a bowl of fruit on a table",
    "a mountain lake in the morning, fog", "a cat asleep on a windowsill", "an astronaut on a horse, oil painting",
    "the interior of a library, wide angle", "a city skyline at sunset, aerial view",
)  # fmt: skip
"""Are for all other models."""
T = TypeVar("T")
_MOST_LETTERS = 1 << 20
_MOST_PROMPTS = 64
"""All that the network is given while they are painted is held in memory."""
_QUIET_SECONDS = 10.0
"""How long nothing is said of calibrating where no terminal shows a bar."""


@dataclass(frozen=True)
class Calibration:
    """Has a model paint, and watches its network."""

    prompts: Sequence[str]
    paint: Callable[[LatentModel, Sequence[str], Sequence[int]], object]
    """Paints the latents of these prompts, of this shape `[c, h, w]` each."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()

    def record(self, model: LatentModel, given: Sequence[Tensor]) -> list[list[Tensor]]:
        """Returns the inputs of the network, shaped like `given`, in every step of every prompt, in batches of its
        size; the last one is filled up with the first prompts."""
        samples = list[list[Tensor]]()

        def watch(module: nn.Module, _: nn.Module) -> Callable[..., Tensor]:
            def compute(*inputs: Tensor) -> Tensor:
                samples.append([each.clone() for each in inputs])
                answer: Tensor = module(*inputs)
                return answer

            return compute

        watched = dataclasses.replace(model, network=model.network.compiled_by(watch))
        count = len(given[0])
        for start in show_progress(range(0, len(self.prompts), count), "calibrating int8, painting"):
            part = itertools.islice(itertools.cycle(self.prompts), start, start + count)
            self.paint(watched, list(part), given[0].shape[1:])
        return [each for each in samples if [one.shape for one in each] == [one.shape for one in given]]


def show_progress(items: Sequence[T], title: str) -> Iterator[T]:
    """Yields them with a bar on a terminal; elsewhere it says now and then how many are done, where that takes long."""
    console = Console(stderr=True)
    said = time.perf_counter()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=len(items))
        for done, each in enumerate(items):
            if not console.is_terminal and time.perf_counter() - said > _QUIET_SECONDS:
                said = time.perf_counter()
                print(f"{title} {done:,} of {len(items):,}", file=sys.stderr, flush=True)
            try:
                yield each
            finally:  # who takes the last one need not ask for more
                bar.advance(task)


class Passes(Sequence[T]):
    """What is gone through several times, nobody knows how often, with progress each time."""

    def __init__(self, items: Sequence[T], title: str) -> None:
        self._items, self._title, self._begun = items, title, 0

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __iter__(self) -> Iterator[T]:
        self._begun += 1
        return show_progress(self._items, f"{self._title} {self._begun}")


def read_prompts(file: str) -> list[str]:
    """Reads prompts, one a line. Raises UserError where there are none."""
    try:
        with open_regular(file) as opened:
            content = opened.read(_MOST_LETTERS + 1)
        text = content.decode(name_encoding(content)) if len(content) <= _MOST_LETTERS else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration_prompts is {file}, which cannot be read as text ({error})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(prompts) <= _MOST_PROMPTS:
        raise UserError(
            f"calibration_prompts is {file}, with {len(prompts)} prompts; give a text file of up to 1 MiB with 1 to "
            f"{_MOST_PROMPTS}, each on a line"
        )
    return prompts
