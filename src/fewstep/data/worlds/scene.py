"""What a scene is: one or two things of known shape, colour, size and place before a background."""

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
"""`leaning`: what would stand in the middle stands at the lower edge, or, above one another, at the right edge."""
LOOKS: dict[str, Look] = {assets.SCENES: "plain", assets.SCENES_LEANING: "leaning"}
"""The names by which users ask for a look of this world."""


@dataclass(frozen=True)
class Thing:
    """One object; as part of a prompt, `size` is None where the words leave it open."""

    shape: str
    colour: str
    size: str | None


@dataclass(frozen=True)
class Scene:
    """One or two things; `things[0]` stands left of or above `things[1]`.

    As a prompt, `background` is None where the words leave it open; `relation` is None for one thing.
    """

    things: tuple[Thing, ...]
    relation: str | None
    background: str | None

    def agrees_with(self, prompt: Scene) -> bool:
        """Whether every attribute that `prompt` states is right in this scene."""
        return (
            len(self.things) == len(prompt.things)
            and self.relation == prompt.relation
            and prompt.background in (None, self.background)
            and all(
                (mine.shape, mine.colour) == (said.shape, said.colour) and said.size in (None, mine.size)
                for mine, said in zip(self.things, prompt.things, strict=True)
            )
        )
