"""Which words a model's text encoder has learnt, where its tokenizer tells, and which of a prompt it has not.

A text encoder that was taught from scratch on a world's captions knows their words and no others; its tokenizer's
configuration lists them. One that lists none, as CLIP's and T5's do, is taken to read whatever it can spell.
"""

from __future__ import annotations

import difflib
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fewstep.documents import parse_json
from fewstep.errors import show
from fewstep.models.conditioner import Conditioner

WORDS, EXAMPLES = "learnt_words", "learnt_captions"
"""Entries of a tokenizer_config.json, which transformers keeps as they are when it saves a tokenizer again."""
_EXAMPLES = 3
_MOST_NAMED = 3
"""Unknown words that a message names; their nearest known ones are looked for one by one."""
_MOST_LISTED = 12
"""Known words that a message lists; of more it gives their number and examples."""
_MOST_SHOWN = 2
"""Examples in a message."""
_MOST_WORDS, _MOST_LETTERS = 20_000, 200
_ALIKE = 0.75
"""The least similarity, by difflib's measure, at which a known word is suggested: `gray` is that near to `grey`."""
_WORD = re.compile(r"[^\W_]+(?:['’.][^\W_]+)*")
_PIECE = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class Vocabulary:
    """Holds what can be asked of a model."""

    words: tuple[str, ...]
    """Holds them in lower case, sorted."""
    examples: tuple[str, ...] = ()
    """Holds captions of its training."""
    added: tuple[str, ...] = ()
    """Holds words that were learnt for it since; they may have any letters in them."""

    def find_unknown(self, prompts: Iterable[str]) -> list[str]:
        """Returns the words of prompts that were never learnt, each once, in small letters."""
        found: dict[str, None] = {}
        for prompt in prompts:
            text = unicodedata.normalize("NFC", prompt).lower()
            for added in self.added:
                text = re.sub(rf"(?<!\w){re.escape(added)}(?!\w)", " ", text, flags=re.IGNORECASE)
            found |= dict.fromkeys(word for word in _WORD.findall(text) if not self._knows(word))
        return list(found)

    def find_nearest(self, word: str) -> str | None:
        """Returns the known word that is spelt most like `word`, if any is near."""
        words = [each for each in self.words if len(each) > 2]  # who types `and` does not mean `an`
        near = difflib.get_close_matches(word[:40], words, 1, _ALIKE)
        return near[0] if near else None

    def explain(self, prompts: Iterable[str], model: str) -> str | None:
        """Returns one line that names the unknown words of prompts and says what can be asked; None where all are
        known. `model` is what a user types for the model whose words these are."""
        unknown = self.find_unknown(prompts)
        if not unknown:
            return None
        named = ", ".join(self._name(word) for word in unknown[:_MOST_NAMED])
        more = f" and {len(unknown) - _MOST_NAMED} more" if len(unknown) > _MOST_NAMED else ""
        noun = "words" if len(unknown) > 1 else "word"
        return f"this model's text encoder never learnt the {noun} {named}{more}; {self.describe(model)}"

    def describe(self, model: str) -> str:
        """Says what can be asked of `model`: all words, where they are few, or how to see them, and examples."""
        if len(self.words) <= _MOST_LISTED:
            known = f"it knows: {', '.join(self.words)}"
        else:
            known = f"it knows {len(self.words)} others, which `fewstep inspect {shlex.quote(model)}` lists"
        examples = ", ".join(f'"{each}"' for each in self.examples[:_MOST_SHOWN])
        return f"{known}; for example {examples}" if examples else known

    def _name(self, word: str) -> str:
        nearest = self.find_nearest(word)
        named = f'"{word[:40]}"'
        return named if nearest is None else f'{named} (did you mean "{nearest}"?)'

    def _knows(self, word: str) -> bool:
        return word in self._set or all(piece in self._set for piece in _PIECE.findall(word))

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.words)


def record_words(tokenizer: Any, captions: Sequence[str]) -> None:
    """Lists the words of all the captions that a text encoder learns from in its tokenizer, with some captions."""
    words = {word for caption in captions for word in _PIECE.findall(caption.lower())}
    shown = sorted({each for each in captions[:100] if each}, key=lambda caption: (len(caption), caption))
    tokenizer.init_kwargs[WORDS] = sorted(words)
    tokenizer.init_kwargs[EXAMPLES] = shown[:: max(1, len(shown) // _EXAMPLES)][:_EXAMPLES]


def parse_vocabulary(config: Mapping[str, Any]) -> Vocabulary | None:
    """Returns what a tokenizer's configuration lists, made sure of; None where it lists no words that are words."""
    words, examples = (parse_texts(config.get(name)) for name in (WORDS, EXAMPLES))
    if not words or not all(_PIECE.fullmatch(word) and word == word.lower() for word in words):
        return None
    return Vocabulary(tuple(sorted(words)), tuple(examples[:_EXAMPLES]))


def read_taught(text: str | None) -> list[str]:
    """Returns the words that the header of a LoRA says its captions taught; none where it lists none that are words."""
    try:
        return parse_texts(parse_json(text or "null"))
    except ValueError:
        return []


def parse_texts(given: object) -> list[str]:
    """Returns a list of short texts that can be shown, of what a file holds; an empty one where it is anything else."""
    texts = given if isinstance(given, list) and len(given) <= _MOST_WORDS else []
    right = all(isinstance(each, str) and len(each) <= _MOST_LETTERS and show(each) == each for each in texts)
    return texts if right else []


def find_vocabulary(conditioner: Conditioner, taught: Iterable[str] = ()) -> Vocabulary | None:
    """Returns the words that a model knows, with those that its trainings `taught`; None where one of those who read
    for it reads any word."""
    found = [parse_vocabulary(reader.tokenizer.init_kwargs) for reader in conditioner.readers]
    known = [each for each in found if each is not None]
    if not known or len(known) < len(found):
        return None
    added = {word for reader in conditioner.readers for word in getattr(reader, "words", ())}
    words = {word for each in known for word in each.words}
    words |= {piece for word in taught for piece in _PIECE.findall(word.lower())}
    return Vocabulary(tuple(sorted(words)), known[0].examples, tuple(sorted(added)))
