"""Prompts, and sizes where a model is told them, as the conditions that its network takes."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tokenizers import AddedToken
from torch import Tensor, nn

from fewstep.diffusion.prediction import Cond

TOKENIZING = threading.Lock()
"""A fast tokenizer remembers the last padding and truncation that it was called with, for all threads."""
_EMBEDDING = threading.Lock()
"""A hook on an encoder's table is for the prompts of one thread."""


class Conditioner(Protocol):
    """Turns what a model is asked for into what its network is conditioned on."""

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Returns the text encoders, under the names that LoRA files use."""
        ...

    @property
    def readers(self) -> tuple[Any, ...]:
        """Returns those who read prompts, each with its `tokenizer`, and the `words` that were added, if any."""
        ...

    def with_encoders(self, encoders: Mapping[str, nn.Module]) -> Conditioner:
        """Returns the same with other text encoders, named as `encoders` names them."""
        ...

    @property
    def limit(self) -> int:
        """Returns how many tokens of a prompt are read."""
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

    def add_word(self, word: str, vectors: Mapping[str, Tensor]) -> None:
        """Makes prompts that have `word` in them be read with these vectors `[tokens, width]` of each text encoder."""
        ...

    def truncates(self, prompt: str) -> bool:
        """Says whether the end of `prompt` is not read."""
        ...

    def count_tokens(self, prompt: str) -> int:
        """Returns how many tokens of `prompt` are read."""
        ...


@dataclass(frozen=True)
class TextEncoder:
    """A CLIP text encoder with its tokenizer."""

    tokenizer: Any
    network: Any
    words: dict[str, Tensor] = field(default_factory=dict)
    """Vectors `[tokens, width]` of words that were learnt for it, by the word in small letters."""

    def add_word(self, word: str, vectors: Tensor) -> None:
        """Reads `word`, whatever its letters' case, as these vectors from now on."""
        self.words[word.lower()] = vectors
        names = [AddedToken(name, normalized=False, lstrip=True, rstrip=True) for name in _name_tokens(word, vectors)]
        self.tokenizer.add_tokens(names)

    def run(self, prompts: Sequence[str], *, hidden_states: bool) -> Any:
        """Returns transformers' output for prompts padded to the tokenizer's length."""
        given = [self._expand(prompt) for prompt in prompts]
        with TOKENIZING:
            tokens = self.tokenizer(given, padding="max_length", truncation=True, return_tensors="pt")
        tokens = tokens.to(next(self.network.parameters()).device)
        # The few text encoders that want a mask say so, as diffusers has it.
        mask = tokens.attention_mask if getattr(self.network.config, "use_attention_mask", False) else None
        with self._with_vectors(tokens.input_ids) as ids:
            return self.network(ids, attention_mask=mask, output_hidden_states=hidden_states)

    def counts(self, prompt: str) -> int:
        """Returns how many tokens a prompt has, its begin and end among them."""
        with TOKENIZING:
            return len(self.tokenizer(self._expand(prompt)).input_ids)

    def _expand(self, prompt: str) -> str:
        """Puts a token for each vector in the place of words that were added."""
        for word, vectors in self.words.items():
            tokens = " ".join(_name_tokens(word, vectors))
            prompt = re.sub(
                rf"(?<!\w){re.escape(word)}(?!\w)", tokens.replace("\\", r"\\"), prompt, flags=re.IGNORECASE
            )
        return prompt

    @contextlib.contextmanager
    def _with_vectors(self, ids: Tensor) -> Iterator[Tensor]:
        """Yields ids that the network has, with a hook that puts the vectors of added tokens in their places.

        No row is added to the network's table: its highest id is where some of CLIP's encoders look for the end.
        """
        rows = {
            int(self.tokenizer.convert_tokens_to_ids(name)): vector
            for word, vectors in self.words.items()
            for name, vector in zip(_name_tokens(word, vectors), vectors, strict=True)
        }
        places: list[tuple[Any, Tensor]] = []
        if rows:
            added = torch.isin(ids, torch.tensor(list(rows), device=ids.device))
            places = [(tuple(place), rows[int(ids[tuple(place)])]) for place in added.nonzero().tolist()]
            ids = ids.masked_fill(added, 0)

        def replace(_: nn.Module, __: Any, embedded: Tensor) -> Tensor:
            for place, vector in places:
                embedded[place] = vector.to(embedded)
            return embedded

        with _EMBEDDING if places else contextlib.nullcontext():
            hook = self.network.get_input_embeddings().register_forward_hook(replace) if places else None
            try:
                yield ids
            finally:
                if hook is not None:
                    hook.remove()


def _name_tokens(word: str, vectors: Tensor) -> list[str]:
    """Returns tokens that no prompt has by chance, one for each vector."""
    return [f"<|{word.lower()}-{number}|>" for number in range(len(vectors))]
