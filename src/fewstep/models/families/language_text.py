"""Prompts as language models read them: within a turn of a conversation, padded, with a mask."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.models.conditioner import TOKENIZING


@dataclass(frozen=True)
class LanguageEncoder:
    """A language model whose hidden states are the text."""

    tokenizer: Any
    network: Any
    form: str
    """What is read of a prompt, which stands for {} in it."""
    length: int
    """How many tokens are read, and padded to."""

    def run(self, prompts: Sequence[str]) -> tuple[Any, Tensor]:
        """Returns transformers' output with all hidden states, and the mask `[b, length]` of what is no padding."""
        given = [self.form.replace("{}", prompt) for prompt in prompts]
        with TOKENIZING:
            tokens = self.tokenizer(
                given, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
            )
        tokens = tokens.to(next(self.network.parameters()).device)
        # Asked as a whole, since hooks bring the whole to a card; of the words that it would say next, for one alone.
        few = {"logits_to_keep": 1} if hasattr(self.network, "lm_head") else {}
        output = self.network(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask.bool(), output_hidden_states=True, **few
        )
        return output, tokens.attention_mask

    def counts(self, prompt: str) -> int:
        """Returns how many tokens a prompt has, those of its turn among them."""
        with TOKENIZING:
            return len(self.tokenizer(self.form.replace("{}", prompt)).input_ids)

    @property
    def limit(self) -> int:
        """Returns how many tokens of a prompt are read."""
        return self.length - self.counts("")

    def truncates(self, prompt: str) -> bool:
        """Says whether the end of a prompt is not read."""
        return self.counts(prompt) > self.length


QWEN_TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""A question to Qwen3, which may think before it answers."""
QWEN_ANSWER = QWEN_TURN + "<think>\n\n</think>\n\n"
"""One that it is to answer at once."""


def pad(text: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Returns hidden states `[b, n, width]`, zero where nothing is read, and `"mask"` `[b, n]` that says where."""
    held = mask.to(text.dtype)
    return {"text": torch.where(held[..., None] > 0, text, 0.0), "mask": held}


@dataclass(frozen=True)
class LanguageConditioner(ABC):
    """Reads prompts with a language model; a family says which of its hidden states are the condition."""

    reader: LanguageEncoder

    @abstractmethod
    def pick(self, output: Any, mask: Tensor) -> Cond:
        """Returns the condition, of what `LanguageEncoder.run` returns."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        return {"text_encoder": self.reader.network}

    @property
    def readers(self) -> tuple[Any, ...]:
        return (self.reader,)

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> Self:
        return dataclasses.replace(self, reader=dataclasses.replace(self.reader, network=encoders["text_encoder"]))

    @property
    def limit(self) -> int:
        return self.reader.limit

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        device = next(self.reader.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            output, mask = self.reader.run(prompts)
        return self.pick(output, mask)

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:  # noqa: ARG002  # these networks are told none
        return {}

    def null(self) -> Cond:
        return self.encode([""])

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        raise UserError(f"{word} is a word for CLIP ({', '.join(vectors)}), which this model does not read by")

    def count_tokens(self, prompt: str) -> int:
        return min(self.reader.counts(prompt) - self.reader.counts(""), self.limit)

    def truncates(self, prompt: str) -> bool:
        return self.reader.truncates(prompt)
