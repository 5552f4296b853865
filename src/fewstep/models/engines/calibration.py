"""What 8-bit activations are scaled by: the inputs that a network has while it paints some prompts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.models.family import LatentModel

SCENES = (
    "a small red star above a blue ring on a white background", "a pink heart", "a large green circle",
    "a yellow square left of a red triangle", "a purple moon on a black background", "a small white cross",
    "an orange ring above a large cyan heart", "a blue star",
)  # fmt: skip
"""For models that know the bundled world's words alone."""
PHOTOGRAPHS = (
    "a portrait of an old fisherman, natural light", "a red car on a wet street at night", "a bowl of fruit on a table",
    "a mountain lake in the morning, fog", "a cat asleep on a windowsill", "an astronaut on a horse, oil painting",
    "the interior of a library, wide angle", "a city skyline at sunset, aerial view",
)  # fmt: skip
"""For all other models."""
_MOST_LETTERS = 1 << 20


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
        for start in range(0, len(self.prompts), count):
            part = itertools.islice(itertools.cycle(self.prompts), start, start + count)
            self.paint(watched, list(part), given[0].shape[1:])
        return [each for each in samples if [one.shape for one in each] == [one.shape for one in given]]


def read_prompts(file: str) -> list[str]:
    """Reads prompts, one a line. Raises UserError where there are none."""
    try:
        text = Path(file).read_text("utf-8") if Path(file).stat().st_size <= _MOST_LETTERS else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"calibration_prompts is {file}, which cannot be read as text ({error})") from error
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise UserError(f"calibration_prompts is {file}; give a text file of up to 1 MiB with a prompt on every line")
    return prompts
