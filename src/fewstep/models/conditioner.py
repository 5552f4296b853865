"""Prompts, and sizes where a model is told them, as the conditions that its network takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond

_TOKENIZING = threading.Lock()
"""A fast tokenizer remembers the last padding and truncation that it was called with, for all threads."""


class Conditioner(Protocol):
    """Turns what a model is asked for into what its network is conditioned on."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text encoders, under the names that LoRA files use."""
        ...

    @property
    def limit(self) -> int:
        """How many tokens of a prompt are read."""
        ...

    def encode(self, prompts: Sequence[str]) -> Cond:
        """Returns conditions `[b, …]` of prompts; what does not fit is cut off."""
        ...

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:
        """Returns the conditions of `Square.sizes`; none where the network is not told them."""
        ...

    def null(self) -> Cond:
        """Returns ∅, batch of one: what guidance leads away from."""
        ...

    def truncates(self, prompt: str) -> bool:
        """Says whether the end of `prompt` is not read."""
        ...


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text encoder with its tokenizer."""

    tokenizer: Any
    network: Any

    def run(self, prompts: Sequence[str], *, hidden_states: bool) -> Any:
        """Returns transformers' output for prompts padded to the tokenizer's length."""
        with _TOKENIZING:
            tokens = self.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
        tokens = tokens.to(next(self.network.parameters()).device)
        # The few text encoders that want a mask say so, as diffusers has it.
        mask = tokens.attention_mask if getattr(self.network.config, "use_attention_mask", False) else None
        return self.network(tokens.input_ids, attention_mask=mask, output_hidden_states=hidden_states)


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

    def truncates(self, prompt: str) -> bool:
        tokenizer = self.first.tokenizer
        with _TOKENIZING:
            return len(tokenizer(prompt).input_ids) > int(tokenizer.model_max_length)
