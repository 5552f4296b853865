"""Checks what a client asks for against what the model allows, and turns it into pictures to paint."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from PIL import Image

from fewstep.data.draws import check_seed
from fewstep.data.masks import Fill
from fewstep.errors import UserError
from fewstep.models.card import MAX_STEPS
from fewstep.models.pipeline import NO_PROMPT, Pipeline
from fewstep.serve.documents import check_letters
from fewstep.serve.errors import RefusedError
from fewstep.serve.jobs import PictureSpec
from fewstep.serve.settings import ServerSettings

STRENGTHS = {"whole": 0.6, "masked": 1.0}
"""Says how much of a picture to start from changes where the client does not: of all of it, and of what a mask marks.
A1111's API has its own."""
_RANDOM_SEEDS = 2**32
"""Counts the seeds of which one is drawn where a client names none."""


@dataclass(frozen=True, kw_only=True)
class PaintRequest:
    """What a client asks for, in diffusers' convention; None where it leaves that to the server."""

    prompt: str
    negative_prompt: str = ""
    n: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    size: str | None = None
    """`WIDTHxHEIGHT`, or auto; the nearest that the model paints is taken."""
    sides: tuple[int, int] | None = None
    """Height and width of a second pass, in place of `size`; they need not be among those."""
    loras: Mapping[str, float] = field(default_factory=dict)
    text_loras: Mapping[str, float] = field(default_factory=dict)
    """Scales on text encoders, where they differ."""
    start: Image.Image | None = None
    mask: Image.Image | None = None
    """White where `start` may be painted anew, of its size."""
    fill: Fill = "original"
    strength: float | None = None
    """How much of `start` changes; by default one of `STRENGTHS`."""
    previews: bool = False
    told: Mapping[str, str] = field(default_factory=dict)
    """Further settings that the picture's text names."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What the client calls its fields, by the names here, where it calls them otherwise."""

    def name_of(self, name: str) -> str:
        """Returns what the client calls a field."""
        return self.names.get(name, name)


@dataclass(frozen=True)
class AcceptedRequest:
    """A request that the model can paint."""

    request: PaintRequest
    specs: list[PictureSpec]
    notes: list[str]
    """Notes for the client."""
    on_words: str = ""
    """The one of them that names words of the prompt which the model never learnt, if it has any."""


class Acceptance:
    """Checks requests for one model."""

    def __init__(
        self, pipeline: Pipeline, settings: ServerSettings, loras: Mapping[str, float],
        lora_aliases: Mapping[str, str], model_aliases: tuple[str, ...],
    ) -> None:  # fmt: skip
        """Takes every registered LoRA's scale where the client gives none, other names for LoRAs and for the model."""
        self.pipeline, self.settings, self.loras = pipeline, settings, dict(loras)
        self.lora_aliases, self.model_aliases = dict(lora_aliases), model_aliases
        self.sizes = _list_sizes(pipeline.model.resolution)

    @property
    def most_steps(self) -> int:
        return min(MAX_STEPS, self.pipeline.grid_size)

    def check_model(self, name: str | None) -> None:
        """Raises RefusedError for another model than this one."""
        own = self.pipeline.name
        if name not in (None, "", own, *self.model_aliases):
            known = " and ".join(repr(each) for each in (own, *self.model_aliases))
            raise RefusedError(
                f"model {name!r} is not here; there is {known}; who starts the server gives it other names by --alias",
                param="model", status=404, code="model_not_found",
            )  # fmt: skip

    def accept(self, request: PaintRequest) -> AcceptedRequest:
        """Checks a request. Raises RefusedError, which names the field, its limit and what to do."""
        notes = list[str]()
        self._check_texts(request, notes)
        vocabulary = self.pipeline.vocabulary
        on_words = "" if vocabulary is None else vocabulary.explain([request.prompt], self.pipeline.name) or ""
        if on_words:
            notes.append(on_words)
        check_between(request.name_of("n"), request.n, 1, self.settings.pictures)
        steps = self.pipeline.steps if request.steps is None else request.steps
        check_between(request.name_of("steps"), steps, 1, self.most_steps)
        steps, strength = self._fit_steps(request, steps, notes)
        seed = _choose_seed(request)
        size = request.sides or self.choose_size(request.size, notes)
        self.check_work(size, request.n * steps)
        omega = self.pipeline.model.family.omega_of(self._choose_guidance(request, notes))
        loras = self._choose_scales(request.loras, self.loras)
        on_text = self._choose_scales(request.text_loras, dict(loras))
        spec = PictureSpec(
            prompt=request.prompt, seed=seed, steps=steps, omega=omega, size=size, loras=loras,
            text_loras=None if on_text == loras else on_text, start=request.start, mask=request.mask,
            fill=request.fill, strength=strength, previews=request.previews,
        )  # fmt: skip
        specs = [replace(spec, seed=seed + i) for i in range(request.n)]
        return AcceptedRequest(request, specs, notes, on_words)

    def check_work(self, size: tuple[int, int], steps: int) -> None:
        """Raises RefusedError where so many steps, of all pictures together, are more work than allowed."""
        height, width = size
        work = height * width * steps
        if work > self.settings.work:
            raise RefusedError(
                f"{steps} steps of {width}x{height} are {work} pixels to compute; the limit is {self.settings.work}: "
                "ask for fewer pictures, fewer steps or a smaller size", param="n",
            )  # fmt: skip

    def find_lora(self, name: str) -> str:
        """Returns a LoRA's own name. Raises RefusedError where none has that name."""
        if name in self.loras:
            return name
        folded = {each.casefold(): own for each, own in self.lora_aliases.items()}
        folded |= {each.casefold(): each for each in self.loras}
        found = self.lora_aliases.get(name) or folded.get(name.casefold())
        if found is None:
            known = ", ".join(self.loras) or "none"
            raise RefusedError(f"lora {name!r} is not here; there are: {known}", param="loras")
        return found

    def _check_texts(self, request: PaintRequest, notes: list[str]) -> None:
        limit = self.settings.prompt_letters
        for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            theirs = request.name_of(name)
            if len(text) > limit:
                raise RefusedError(f"{theirs} has {len(text)} letters; send at most {limit}", param=theirs)
            check_letters(theirs, text)
        if not request.prompt.strip():
            notes.append(NO_PROMPT)
        if self.pipeline.model.conditioner.truncates(request.prompt):
            most = self.pipeline.model.conditioner.limit
            notes.append(f"the model reads the first {most} tokens of the prompt and ignores the rest")
        if request.negative_prompt:
            notes.append("guidance is built into this model: the negative prompt has no effect")

    def _fit_steps(self, request: PaintRequest, steps: int, notes: list[str]) -> tuple[int, float]:
        """Returns the steps, and the strength, that there is room for in the part of the schedule of that strength."""
        if request.start is None:
            return steps, 1.0
        usual = STRENGTHS["whole" if request.mask is None else "masked"]
        wanted, name = usual if request.strength is None else request.strength, request.name_of("strength")
        check_between(name, wanted, 0, 1)
        strength = wanted
        if self.pipeline.most_steps(strength) < 1:
            strength = next(i / 100 for i in range(1, 101) if self.pipeline.most_steps(i / 100) >= 1)
            notes.append(f"{name} is {wanted:g}; {strength:g} was taken, the least that this model has")
        most = self.pipeline.most_steps(strength)
        if steps > most:
            theirs = request.name_of("steps")
            notes.append(f"{theirs} is {steps}; {name} {strength:g} has room for {most}, which were taken")
        return min(steps, most), strength

    def choose_size(self, size: str | None, notes: list[str]) -> tuple[int, int]:
        """Returns the nearest height and width that the model paints, and notes where it is another."""
        if size in (None, "", "auto"):
            return self.sizes[0]
        sides = size.lower().split("x")
        if len(sides) != 2 or not all(each.isascii() and each.isdigit() and len(each) < 6 for each in sides):
            raise RefusedError(f"size is {size[:40]!r}; give WIDTHxHEIGHT in pixels, or auto", param="size")
        width, height = map(int, sides)
        for name, side in (("height", height), ("width", width)):
            if not 1 <= side <= 8192:
                raise RefusedError(f"{name} is {side}; allowed: 1 to 8192", param=name)
        nearest = min(self.sizes, key=lambda own: abs(own[0] - height) + abs(own[1] - width))
        if nearest != (height, width):
            name = f"{nearest[1]}x{nearest[0]}"
            notes.append(f"size is {width}x{height}; this model paints {name}, which is nearest")
        return nearest

    def _choose_guidance(self, request: PaintRequest, notes: list[str]) -> float:
        own, asked, name = self.pipeline.guidance_scale, request.guidance_scale, request.name_of("guidance_scale")
        if asked is None:
            return own
        off = self.pipeline.model.family.guidance_of(0.0)
        if not off <= asked <= 100:
            raise RefusedError(f"{name} is {asked:g}; allowed: {off:g} (none) to 100", param=name)
        if not self.pipeline.takes_guidance:
            if asked not in (off, 1.0, own):
                notes.append(f"guidance is built into this model: {name} {asked:g} has no effect")
            return own
        low, high = self.pipeline.model.card.guidance_range or (asked, asked)
        if not low <= asked <= high:
            notes.append(f"{name} is {asked:g}; this model was trained for {self.pipeline.model.card.trained_for}")
        return asked

    def _choose_scales(
        self, asked: Mapping[str, float], otherwise: Mapping[str, float]
    ) -> tuple[tuple[str, float], ...]:  # fmt: skip
        given = {self.find_lora(name): (name, scale) for name, scale in asked.items()}
        for name, scale in given.values():
            if not -4 <= scale <= 4:
                raise RefusedError(f"the scale of lora {name!r} is {scale:g}; allowed: -4 to 4", param="loras")
        return tuple((name, float(given[name][1] if name in given else scale)) for name, scale in otherwise.items())


def _choose_seed(request: PaintRequest) -> int:
    if request.seed is None:
        return random.randrange(_RANDOM_SEEDS)
    try:
        check_seed(request.seed, request.n)
    except UserError as error:
        raise RefusedError(str(error), param="seed") from error
    return request.seed


def check_between(name: str, value: float, low: float, high: float) -> None:
    """Raises RefusedError where a value is not within bounds."""
    if not low <= value <= high:
        said = f"{value:g}" if isinstance(value, float) else value
        raise RefusedError(f"{name} is {said}; allowed: {low} to {high}", param=name)


def _list_sizes(resolution: int) -> list[tuple[int, int]]:
    """Lists (height, width) that the model paints, its own first; large models also paint smaller and oblong ones."""
    own = (resolution, resolution)
    if resolution < 256:
        return [own]
    smaller, half = resolution * 3 // 4 // 64 * 64, resolution // 2 // 64 * 64
    return [own, (resolution, smaller), (smaller, resolution), (smaller, smaller), (half, half)]
