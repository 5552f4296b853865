"""Prompts as Stable Diffusion 3 reads them: two CLIP encoders side by side, and T5 after them, which may be absent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewstep.diffusion.prediction import Cond
from fewstep.models.conditioner import TextEncoder
from fewstep.models.families.t5 import T5Encoder

T5_TOKENS = 256
"""How many of T5's tokens stock pipelines read."""


@dataclass(frozen=True)
class TripleConditioner:
    """`{"text": [b, 77 + 256, width], "pooled": [b, both CLIPs' widths]}` (arXiv 2403.03206, section 4)."""

    first: TextEncoder
    second: TextEncoder
    third: T5Encoder | None
    width: int
    """Is T5's width, to which CLIP's is filled up with zeros."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        third = {} if self.third is None else {"text_encoder_3": self.third.network}
        return {"text_encoder": self.first.network, "text_encoder_2": self.second.network, **third}

    @property
    def readers(self) -> tuple[Any, ...]:
        return tuple(each for each in (self.first, self.second, self.third) if each is not None)

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> TripleConditioner:
        first = dataclasses.replace(self.first, network=encoders["text_encoder"])
        second = dataclasses.replace(self.second, network=encoders["text_encoder_2"])
        third = self.third and dataclasses.replace(self.third, network=encoders["text_encoder_3"])
        return dataclasses.replace(self, first=first, second=second, third=third)

    @property
    def limit(self) -> int:
        if self.third is not None:
            return self.third.limit
        return int(self.first.tokenizer.model_max_length) - 2  # less its begin and end

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Cond:
        device = next(self.first.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            outputs = [each.run(prompts, hidden_states=True) for each in (self.first, self.second)]
            clip = torch.cat([each.hidden_states[-2] for each in outputs], dim=-1)
            pooled = torch.cat([each.text_embeds for each in outputs], dim=-1)
            clip = functional.pad(clip, (0, self.width - clip.shape[-1]))
            if self.third is None:
                t5 = clip.new_zeros(len(clip), T5_TOKENS, self.width)
            else:
                t5 = self.third.run(prompts).to(clip.dtype)
        return {"text": torch.cat([clip, t5], dim=1), "pooled": pooled}

    def tell_sizes(self, sizes: Sequence[Sequence[int]]) -> Cond:  # noqa: ARG002  # this network is told none
        return {}

    def null(self) -> Cond:
        return self.encode([""])

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        for part, own in vectors.items():
            {"text_encoder": self.first, "text_encoder_2": self.second}[part].add_word(word, own)

    def count_tokens(self, prompt: str) -> int:
        reader = self.third or self.first
        return min(reader.counts(prompt) - reader.counts(""), self.limit)

    def truncates(self, prompt: str) -> bool:
        if self.third is not None:
            return self.third.truncates(prompt)
        return self.first.counts(prompt) > int(self.first.tokenizer.model_max_length)
