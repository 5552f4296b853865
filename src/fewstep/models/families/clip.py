"""Prompts as CLIP's text encoders read them: one, or two side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig

from fewstep.diffusion.prediction import Cond
from fewstep.models.conditioner import TextEncoder

CLIP_TOKENS = 77
CLIP_L: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "projection_dim": 768,
}  # fmt: skip
CLIP_G: dict[str, Any] = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip


@dataclass(frozen=True)
class ClipConditioner:
    """Conditions of one CLIP text encoder, `{"text": [b, tokens, width]}`; of two, their penultimate layers side by
    side, and the second one's `"pooled"` `[b, width]`; with `"sizes"` `[b, 6]` where the network takes them."""

    first: TextEncoder
    second: TextEncoder | None = None
    takes_sizes: bool = False
    zero_null: bool = False
    """Whether ∅ is all zeros; else it is the empty prompt."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        second = {} if self.second is None else {"text_encoder_2": self.second.network}
        return {"text_encoder": self.first.network, **second}

    @property
    def readers(self) -> tuple[Any, ...]:
        return (self.first,) if self.second is None else (self.first, self.second)

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> ClipConditioner:
        first = dataclasses.replace(self.first, network=encoders["text_encoder"])
        second = self.second and dataclasses.replace(self.second, network=encoders["text_encoder_2"])
        return dataclasses.replace(self, first=first, second=second)

    @property
    def limit(self) -> int:
        return int(self.first.tokenizer.model_max_length) - 2  # less its begin and end

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        with torch.autocast(self._device.type, enabled=False):
            return self._encode_text(prompts)

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:
        return {"sizes": torch.tensor(sizes, device=self._device).float()} if self.takes_sizes else {}

    @property
    def _device(self) -> torch.device:
        device: torch.device = next(self.first.network.parameters()).device
        return device

    def _encode_text(self, prompts: Sequence[str]) -> Cond:
        if self.second is None:
            text: Tensor = self.first.run(prompts, hidden_states=False)[0]
            return {"text": text}
        first, second = (each.run(prompts, hidden_states=True) for each in (self.first, self.second))
        text = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"text": text, "pooled": second.text_embeds}

    def null(self) -> Cond:
        cond = self.encode([""])
        return {name: torch.zeros_like(value) for name, value in cond.items()} if self.zero_null else cond

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        encoders = dict(zip(self.encoders, (self.first, self.second), strict=False))
        for part, own in vectors.items():
            encoder = encoders[part]
            assert encoder is not None
            encoder.add_word(word, own)

    def count_tokens(self, prompt: str) -> int:
        return min(self.first.counts(prompt) - self.first.counts(""), self.limit)

    def truncates(self, prompt: str) -> bool:
        return self.first.counts(prompt) > int(self.first.tokenizer.model_max_length)


def shape_clip(size: Mapping[str, Any]) -> CLIPTextConfig:
    """Returns the configuration of a released CLIP text encoder."""
    return CLIPTextConfig(vocab_size=49408, max_position_embeddings=CLIP_TOKENS, **size)
