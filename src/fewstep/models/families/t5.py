"""Prompts as T5 reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.models.conditioner import TOKENIZING


@dataclass(frozen=True)
class T5Encoder:
    """T5's encoder with its tokenizer. Padding is read as any token is: there is no mask."""

    tokenizer: Any
    network: Any
    length: int
    """How many tokens it reads, and pads prompts to."""

    def run(self, prompts: Sequence[str]) -> Tensor:
        """Returns `[b, length, width]`."""
        with TOKENIZING:
            tokens = self.tokenizer(
                list(prompts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            )
        text: Tensor = self.network(tokens.input_ids.to(next(self.network.parameters()).device))[0]
        return text

    def counts(self, prompt: str) -> int:
        """Returns how many tokens a prompt has, its end among them."""
        with TOKENIZING:
            return len(self.tokenizer(prompt).input_ids)

    def truncates(self, prompt: str) -> bool:
        """Says whether the end of a prompt is not read."""
        return self.counts(prompt) > self.length

    @property
    def limit(self) -> int:
        """Returns how many tokens of a prompt are read, less its end."""
        return self.length - 1
