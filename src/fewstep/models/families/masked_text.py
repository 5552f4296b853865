"""Prompts read in small letters, padded, with a mask of what is no padding."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.conditioner import TOKENIZING

TOKENS = 300


@dataclass(frozen=True)
class MaskedConditioner:
    """`{"text": [b, 300, width], "mask": [b, 300]}`; padding has text too, which the mask keeps from being read."""

    tokenizer: Any
    network: Any
    instruction: str = ""
    """What stands before a prompt as it is read, and not before the empty condition."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.network}

    @property
    def readers(self) -> tuple[Any, ...]:
        return (self,)

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> MaskedConditioner:
        return dataclasses.replace(self, network=encoders["text_encoder"])

    @cached_property
    def _before(self) -> int:
        """Counts the tokens of a prompt that is empty."""
        return self._counts("")

    @property
    def limit(self) -> int:
        """Returns how many tokens of a prompt are read, less those that all have: of an instruction, two are kept."""
        return TOKENS - (2 if self.instruction else self._before)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        whole = self._read([self.instruction + _tidy(prompt) for prompt in prompts], self._before + self.limit)
        # Of an instruction its begin and its end are kept; without one, this is all.
        return {name: torch.cat([each[:, :1], each[:, 1 - TOKENS :]], dim=1) for name, each in whole.items()}

    def _read(self, texts: Sequence[str], length: int) -> Cond:
        with TOKENIZING:
            tokens = self.tokenizer(
                list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
        tokens = tokens.to(next(self.network.parameters()).device)
        # A language model would keep what it needs to go on writing, in gigabytes.
        writes = "use_cache" in inspect.signature(type(self.network).forward).parameters
        more = {"use_cache": False} if writes else {}
        with torch.autocast(tokens.input_ids.device.type, enabled=False):
            text = self.network(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, **more)[0]
        return {"text": text, "mask": tokens.attention_mask.to(text.dtype)}

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:  # noqa: ARG002  # no such network is told them
        return {}

    @torch.no_grad()
    def null(self) -> Cond:
        return self._read([""], TOKENS)

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        raise UserError(f"{word} is a word for CLIP ({', '.join(vectors)}), which this model does not read by")

    def _counts(self, prompt: str) -> int:
        with TOKENIZING:
            return len(self.tokenizer(self.instruction + _tidy(prompt)).input_ids)

    def count_tokens(self, prompt: str) -> int:
        return max(0, min(self._counts(prompt) - self._before, self.limit))

    def truncates(self, prompt: str) -> bool:
        return self._counts(prompt) > self._before + self.limit


def _tidy(prompt: str) -> str:
    """Returns a prompt as the stock pipelines have it read."""
    return prompt.lower().strip()
