"""The parts of a diffusers folder, loaded in fp32 from safetensors alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from fewstep.errors import UserError


def load_weights(kind: Any, folder: Path) -> Any:
    """Loads a network of a class of diffusers or transformers, frozen. Raises UserError naming what does not fit."""
    weights = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".ckpt", ".pt"))
    safe = [name for name in weights if name.endswith(".safetensors")]
    if not safe:
        found = f"found {', '.join(weights)}, a pickle" if weights else "found none"
        raise UserError(f"{folder} has no safetensors weights ({found}); only safetensors are read, convert them first")
    variant = None if any(".fp16." not in name for name in safe) else "fp16"
    try:
        part = kind.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True, variant=variant)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _not_loaded(folder, kind, error) from error
    return part.eval().requires_grad_(False)


def load_tokenizer(kind: Any, folder: Path) -> Any:
    """Loads a tokenizer of a class of transformers. Raises UserError."""
    try:
        return kind.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise _not_loaded(folder, kind, error) from error


def _not_loaded(folder: Path, kind: type, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:200]
    return UserError(f"{folder} cannot be loaded as {kind.__name__}: {reason}")
