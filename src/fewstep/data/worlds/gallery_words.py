"""The words of the gallery's captions, as a person picks them."""

from __future__ import annotations

from fewstep.data.worlds.gallery_art import group_by_kind

_SIZES = ("small", "big")
_RELATIONS = ("left of", "right of", "above", "below", "next to", "in the middle", "on the left", "at the top")
_GROUNDS = ("on a plain background", "on a gradient", "in a meadow", "at night", "on checks", "on sand")


def list_gallery_words() -> dict[str, list[str]]:
    """Returns them in groups: sizes, places, grounds, kinds, and the things of each kind."""
    kinds = group_by_kind()
    groups = {"sizes": _SIZES, "places": _RELATIONS, "grounds": _GROUNDS, "kinds": tuple(kinds)}
    return {name: list(words) for name, words in {**groups, **kinds}.items()}
