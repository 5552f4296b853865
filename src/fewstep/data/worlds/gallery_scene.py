"""What a picture of the gallery shows, what a caption asks for, and the exact distribution of what it leaves open."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fewstep.data.worlds.gallery_art import find_kind, group_by_kind, list_names

SIZES = ("small", "big")
GROUNDS = ("plain", "gradient", "meadow", "night", "checks", "sand")
ARRANGEMENTS = {
    1: ("middle", "left", "right", "top", "bottom"),
    2: ("side by side", "above"),
    3: ("one above two", "two above one"),
}
"""Lists them by the number of things, which are named from top to bottom, in a row from left to right."""
NEXT_TO = "next to"
"""What a caption asks for that leaves open which of two things side by side is the left one."""

Distribution = dict[str, float]


@dataclass(frozen=True)
class GalleryThing:
    """One thing by its name and size."""

    name: str
    size: str


@dataclass(frozen=True)
class GalleryScene:
    """One to three different things in an arrangement on a ground."""

    things: tuple[GalleryThing, ...]
    arrangement: str
    ground: str


@dataclass(frozen=True)
class Asked:
    """One thing as a caption asks for it: by name, by kind, or neither; `size` is None where that is left open."""

    name: str | None = None
    kind: str | None = None
    size: str | None = None

    def fits(self, thing: GalleryThing) -> bool:
        """Tells whether that thing would do."""
        return (
            self.name in (None, thing.name)
            and self.kind in (None, find_kind(thing.name))
            and self.size in (None, thing.size)
        )

    @property
    def label(self) -> str:
        """Returns what tells this thing from the others that a caption asks for."""
        return self.name or self.kind or "thing"


@dataclass(frozen=True)
class GalleryPrompt:
    """What a caption states. All of its things are asked for by name, or all by kind, or all by neither.

    `things` stand in the order of the arrangement if that is stated, in any order otherwise; None if not even their
    number is stated.
    """

    things: tuple[Asked, ...] | None
    arrangement: str | None
    ground: str | None

    def agrees_with(self, scene: GalleryScene) -> bool:
        """Tells whether the scene shows all that this prompt states."""
        if self.ground not in (None, scene.ground):
            return False
        return self.things is None or next(_match(self, scene), None) is not None


def list_layouts(prompt: GalleryPrompt) -> list[tuple[str, tuple[int, ...]]]:
    """Returns the arrangements that would do, each with the order in which the asked things then stand.

    A row under or above a third thing may be in either order, since no caption tells.
    """
    count = len(prompt.things or ())
    if prompt.arrangement == NEXT_TO:
        return [("side by side", (0, 1)), ("side by side", (1, 0))]
    if prompt.arrangement is None:
        return list(itertools.product(ARRANGEMENTS[count], itertools.permutations(range(count))))
    orders = {"one above two": [(0, 1, 2), (0, 2, 1)], "two above one": [(0, 1, 2), (1, 0, 2)]}
    return [(prompt.arrangement, order) for order in orders.get(prompt.arrangement, [tuple(range(count))])]


def _match(prompt: GalleryPrompt, scene: GalleryScene) -> Iterator[tuple[Asked, ...]]:
    """Yields every way to tell which asked thing each thing of the scene is."""
    asked = prompt.things or ()
    if len(asked) != len(scene.things):
        return
    for arrangement, order in list_layouts(prompt):
        found = tuple(asked[i] for i in order)
        if arrangement == scene.arrangement and all(map(Asked.fits, found, scene.things)):
            yield found


# Every prompt leaves a uniform choice among the scenes that agree with it, since things, sizes, arrangement and ground
# are drawn independently and uniformly, and a caption's words depend on nothing but what it states. The laws below are
# the marginals of that choice. With no number of things stated, each of the numbers has a third.

AXES = ("thing", "size", "place", "ground")


def find_law(prompt: GalleryPrompt) -> dict[str, Distribution]:
    """Returns the exact distribution of each of AXES over the scenes that agree with `prompt`.

    `thing` and `size` count the things of a scene in equal parts; `place` is the arrangement together with which of
    the asked things stands where.
    """
    ground = {name: 1 / len(GROUNDS) for name in GROUNDS} if prompt.ground is None else {prompt.ground: 1.0}
    if prompt.things is None:
        counted = [find_law(GalleryPrompt((Asked(),) * count, None, None)) for count in ARRANGEMENTS]
        return {axis: _mix([law[axis] for law in counted]) for axis in AXES[:3]} | {"ground": ground}
    things = [spread_evenly(each.name, group_by_kind().get(each.kind or "", list_names())) for each in prompt.things]
    sizes = [spread_evenly(each.size, SIZES) for each in prompt.things]
    labels = [each.label for each in prompt.things]
    places = Counter(
        _name_place(arrangement, [labels[i] for i in order]) for arrangement, order in list_layouts(prompt)
    )
    place = {name: count / places.total() for name, count in places.items()}
    return {"thing": _mix(things), "size": _mix(sizes), "place": place, "ground": ground}


def sort_cells(prompt: GalleryPrompt, scene: GalleryScene) -> dict[str, Distribution] | None:
    """Returns where `scene` falls on each of AXES, in the terms of `find_law`; None if it disagrees with `prompt`."""
    if not prompt.agrees_with(scene):
        return None
    # Things that a prompt tells apart are matched in one way only, the others have the same label in every way.
    asked = (Asked(),) * len(scene.things) if prompt.things is None else next(_match(prompt, scene))
    return {
        "thing": _mix([{thing.name: 1.0} for thing in scene.things]),
        "size": _mix([{thing.size: 1.0} for thing in scene.things]),
        "place": {_name_place(scene.arrangement, [each.label for each in asked]): 1.0},
        "ground": {scene.ground: 1.0},
    }


def _name_place(arrangement: str, labels: list[str]) -> str:
    return f"{arrangement}: {', '.join(labels)}"


def spread_evenly(stated: str | None, options: tuple[str, ...]) -> Distribution:
    """Returns the law of an attribute: what is stated, or each of the options alike."""
    return {stated: 1.0} if stated is not None else {option: 1 / len(options) for option in options}


def _mix(parts: list[Distribution]) -> Distribution:
    mixed: Counter[str] = Counter()
    for part in parts:
        for name, share in part.items():
            mixed[name] += share / len(parts)  # type: ignore[assignment]  # a Counter holds shares as well
    return dict(mixed)
