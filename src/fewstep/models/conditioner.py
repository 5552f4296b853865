"""Prompts, and sizes where a model is told them, as the conditions that its network takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

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

    def counts(self, prompt: str) -> int:
        """Returns how many tokens a prompt has, its begin and end among them."""
        with _TOKENIZING:
            return len(self.tokenizer(prompt).input_ids)
