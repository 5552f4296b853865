"""An embedding of time and pooled text that is told a second time: where the answer shall land."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fewstep.models.network import EndEmbedding


def tell_end(embedding: Any) -> EndEmbedding:
    """Makes diffusers' embedding of time and text take times `[2, b]`, t and e; returns what embeds e."""
    mlp = getattr(embedding, "timestep_embedder", None)
    layers = (embedding.mlp[0], embedding.mlp[2]) if mlp is None else (mlp.linear_1, mlp.linear_2)
    hung = EndEmbedding(*layers)
    if isinstance(embedding, _Told):
        embedding.end = hung
        return hung
    kind = type(embedding)
    # A class of its own in the same place: names of weights stay, and copies of the module are told too.
    embedding.__class__ = type(f"Told{kind.__name__}", (_Told, kind), {})
    embedding.end = hung
    return hung


def name_first_layer(embedding: Any) -> str:
    """Returns what diffusers' embedding calls the first layer of its time's MLP."""
    return "timestep_embedder.linear_1" if hasattr(embedding, "timestep_embedder") else "mlp.0"


class _Told:
    """Goes before diffusers' own class."""

    end: EndEmbedding

    def forward(self, times: Tensor, *rest: Any, **more: Any) -> Tensor:
        """Takes t and e `[2, b]`, or t `[b]` alone where nobody is told."""
        if times.ndim == 1:
            plain: Tensor = super().forward(times, *rest, **more)  # type: ignore[misc]  # as below
            return plain
        t, e = times
        answer: Tensor = super().forward(t, *rest, **more)  # type: ignore[misc]  # of the class that this goes before
        told: Tensor = self.end(self._read_time(e))
        return answer + told.to(answer.dtype)

    def _read_time(self, time: Tensor) -> Tensor:
        """Returns waves of a time `[b, width]`, as the network has them of its own."""
        own: Any = self
        if hasattr(own, "time_proj"):
            waves: Tensor = own.time_proj(time)
        else:
            waves = own.timestep_embedding(time, own.frequency_embedding_size)
        return waves
