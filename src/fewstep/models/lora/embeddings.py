"""Embeddings that a LoRA's file carries along: words for prompts, learnt with it (textual inversion)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from fewstep.errors import UserError
from fewstep.models.family import LoraLayout
from fewstep.models.lora.fitting import read_values
from fewstep.models.lora.spelling import EMBEDDING

_MOST_WORDS = 256
_MOST_VECTORS = 75
"""A text encoder reads 77 tokens, the first and the last of which are its own."""
Embeddings = dict[str, dict[str, Tensor]]
"""Holds vectors `[tokens, width]` by the word, then by the text encoder."""


def read_embeddings(
    path: Path, tensors: Mapping[str, Tensor], parts: Mapping[str, nn.Module], layout: LoraLayout
) -> Embeddings:
    """Reads tensors called `bundle_emb.WORD.KIND`. Raises UserError for what no text encoder here takes."""
    if len(tensors) > _MOST_WORDS:
        raise UserError(f"{path} brings {len(tensors):,} embeddings; {_MOST_WORDS} is the most that is taken")
    found: Embeddings = {}
    for key, tensor in tensors.items():
        word, _, kind = key.removeprefix(EMBEDDING).partition(".")
        part = layout.embedding_parts.get(kind.split(".")[0])
        if not word or part is None or part not in parts:
            known = ", ".join(kind for kind, part in layout.embedding_parts.items() if part in parts)
            raise UserError(
                f"{path} brings an embedding as {key}, which no text encoder of this base takes; known kinds: "
                f"{known}: it may be for another family"
            )
        if part in found.setdefault(word, {}):
            raise UserError(f"{path} is ambiguous: it brings the embedding {word} for {part} twice")
        vectors = read_values(path, key, tensor)
        vectors = vectors.unsqueeze(0) if vectors.ndim == 1 else vectors
        width = parts[part].get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if vectors.ndim != 2 or not len(vectors) or vectors.shape[1] != width:
            raise UserError(
                f"{path} does not fit this base: its embedding {word} is {tuple(tensor.shape)} and {part} takes "
                f"(tokens, {width})"
            )
        if len(vectors) > _MOST_VECTORS:
            raise UserError(
                f"{path} brings {len(vectors):,} vectors for {word!r:.60}, and a prompt has room for {_MOST_VECTORS}"
            )
        found[word][part] = vectors
    return found
