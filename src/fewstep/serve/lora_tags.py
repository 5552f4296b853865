"""A1111's tags in prompts: `<lora:NAME:0.8>`, `<lora:NAME:TEXT:NETWORK>`, or with the two scales by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from fewstep.data.infotext import READ_AS_WORDS, has_commands
from fewstep.serve.errors import RefusedError
from fewstep.serve.fields import read_rules

_TAG = re.compile(r"<(\w+):([^<>]*)>")
_KINDS = ("lora", "lyco")


@dataclass
class TaggedPrompt:
    """A prompt without its tags, and what these asked for."""

    text: str
    loras: dict[str, float] = field(default_factory=dict)
    """Scale on the network by the LoRA's name."""
    text_loras: dict[str, float] = field(default_factory=dict)
    """Is the scale on text encoders."""
    notes: list[str] = field(default_factory=list)


def split_tags(prompt: str, *, heed: bool = True) -> TaggedPrompt:
    """Takes the tags out of a prompt; if they are not to be heeded, without effect.

    Raises RefusedError for one that is not read whole.
    """
    found = TaggedPrompt(_TAG.sub("", prompt).strip() if _TAG.search(prompt) else prompt)
    for kind, inside in _TAG.findall(prompt) if heed else ():
        if kind.lower() not in _KINDS:
            found.notes.append(f"<{kind}:{inside[:40]}> is not known here and has no effect")
            continue
        name, text_scale, scale = _read_tag(inside)
        if name in found.loras:
            found.notes.append(f"<lora:{name}:…> stands there more than once; the last one counts")
        found.loras[name], found.text_loras[name] = scale, text_scale
    if has_commands(found.text):
        found.notes.append(READ_AS_WORDS)
    return found


def _read_tag(inside: str) -> tuple[str, float, float]:
    """Returns name, scale on text encoders, and scale on the network, in the order of A1111's tags."""
    name, *rest = inside.split(":")
    positional = [each for each in rest if "=" not in each]
    named = dict(each.split("=", 1) for each in rest if "=" in each)
    on_text, on_network = read_rules("lora tag")
    if not name or len(positional) > 2 or set(named) - {on_text, on_network}:
        raise RefusedError(
            f"<lora:{inside[:80]}> is not read; give <lora:NAME:SCALE>, <lora:NAME:TEXT:NETWORK>, or {on_text}= and "
            f"{on_network}=", param="prompt",
        )  # fmt: skip
    first = _read_scale(name, positional[0]) if positional and positional[0] else 1.0
    text_scale = _read_scale(name, named[on_text]) if on_text in named else first
    scale = _read_scale(name, positional[1]) if len(positional) > 1 else text_scale
    return name, text_scale, _read_scale(name, named[on_network]) if on_network in named else scale


def _read_scale(name: str, text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise RefusedError(f"the scale of lora {name!r} is {text[:40]!r}; expected a number", param="prompt")
    return scale
