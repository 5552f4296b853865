"""A scene: one or two things of known shape, colour and size, in a known relation, on a background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewstep import assets

SHAPES = ("circle", "square", "triangle", "star", "ring", "diamond", "cross", "heart")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("white", "grey", "black")
RELATIONS = ("left of", "above")

Look = Literal["plain", "leaning"]
"""`leaning` moves things from the middle to the lower edge, or to the right edge if one is above the other."""
LOOKS: dict[str, Look] = {assets.SCENES: "plain", assets.SCENES_LEANING: "leaning"}
"""The looks of this world, by the names that `--data` takes."""


@dataclass(frozen=True)
class Thing:
    """One object; in a prompt, `size` is None where the prompt leaves it open."""

    shape: str
    colour: str
    size: str | None


@dataclass(frozen=True)
class Scene:
    """One or two things; `things[0]` is left of or above `things[1]`.

    In a prompt, `background` is None where the prompt leaves it open; `relation` is None for one thing.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    def agrees_with(self, prompt: Scene) -> bool:
        """Tells whether every attribute that `prompt` states holds in this scene."""
        return (
            len(self.things) == len(prompt.things)
            and self.relation == prompt.relation
            and prompt.background in (None, self.background)
            and all(
                (mine.shape, mine.colour) == (asked.shape, asked.colour) and asked.size in (None, mine.size)
                for mine, asked in zip(self.things, prompt.things, strict=True)
            )
        )
