"""A pipeline for a transformer that is told where each of its answers shall land.

A copy lies beside the weights of such a model, for `DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder,
trust_remote_code=True)`.
What embeds the place to land lies beside it, in `end.safetensors`: transformers have no place of their own for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch.nn import functional

FILE, KEYS = "end.safetensors", "fewstep_lora_end."
EMBEDDING = "time_text_embed"
"""The transformer's embedding of time."""
OFFSET, FACTOR = 0.0, 1000.0
"""What that is given of a noise share σ: offset + factor · σ."""


class AnyStepPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Paints in as many steps as `sigmas` has values; where it is not a flow's, in as many as it is asked for."""

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        place = Path(self.config._name_or_path)
        file = place / FILE if place.is_dir() else hf_hub_download(str(place), FILE)
        end = {name.removeprefix(KEYS): value for name, value in load_file(file).items()}

        def tell(embedding: Any, given: Any, answer: torch.Tensor) -> torch.Tensor:
            time = torch.full_like(given[0], self._find_end(given[0]))
            own = getattr(embedding, "time_proj", None)
            waves = embedding.timestep_embedding(time, embedding.frequency_embedding_size) if own is None else own(time)
            held = {name: value.to(answer) for name, value in end.items()}
            hidden = functional.linear(waves.to(answer), held["linear_1.weight"], held.get("linear_1.bias"))
            hidden = functional.silu(hidden)
            return answer + functional.linear(hidden, held["linear_2.weight"], held.get("linear_2.bias"))

        hook = self.transformer.get_submodule(EMBEDDING).register_forward_hook(tell)
        try:
            return super().__call__(*arguments, **named)
        finally:
            hook.remove()

    def _find_end(self, time: torch.Tensor) -> float:
        """Returns what the embedding is given of where the step from `time` lands; the last one of DDIM's, at 0."""
        if hasattr(self.scheduler, "sigmas"):
            return OFFSET + FACTOR * float(self.scheduler.sigmas[(self.scheduler.step_index or 0) + 1])
        times = [float(each) for each in self.scheduler.timesteps]
        return [*times[1:], 0.0][times.index(float(time.flatten()[0]))]
