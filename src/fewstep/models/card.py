"""What is recorded of a student beside its weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.documents import load_json
from fewstep.errors import UserError
from fewstep.method.named import METHODS, NamedMethod
from fewstep.models.model_files import find_file

CARD_FILE = "fewstep.json"
SHOWN_STEPS = tuple(range(1, 9))
"""Numbers of steps that are spelt out for other tools."""
MAX_STEPS = 50
"""The most steps that any model is asked to paint in."""
LCD, LCF = "LCD", "LCF"
"""Names the methods of few-step models: distilled from a teacher, and fine-tuned on pictures."""
LCM_LORA = "LCM-LoRA"
"""The method of a LoRA that makes its base a few-step model."""
STYLE_LORA = "style"
"""Is the method of a LoRA that ordinary diffusion training made."""
LORA_FILE = "pytorch_lora_weights.safetensors"
"""Is a LoRA's file in diffusers' spelling."""


@dataclass(frozen=True, kw_only=True)
class StudentCard:
    """How a student was made; a field is None where nothing was recorded, as in models of others."""

    name: str | None = None
    data: str | None = None
    steps: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    ema_decay: float | None = None
    target_decay: float | None = None
    """Is the decay of the average that it was compared with, where another average is exported."""
    skip: int | None = None
    shrink: float | None = None
    guidance_scale: float | None = None
    """Says what is used when none is asked for, in diffusers' convention."""
    seed: int | None = None
    guidance_range: tuple[float, float] | None = None
    """Says what it was trained for, in diffusers' convention."""
    grid_size: int | None = None
    """Counts the times that its sampler may choose from."""
    teacher_sha256: str | None = None
    base_config: str | None = None
    prediction_type: str | None = None
    """Holds what was given for the teacher, over what its files say; so do the next two."""
    zero_snr: bool | None = None
    unet: str | None = None
    base_lora: tuple[str, ...] | None = None
    """Lists the LoRAs that its teacher was merged with, each with its scale."""
    lora_rank: int | None = None
    lora_alpha: float | None = None
    method: str | None = None
    teacher: str | None = None
    solver: str | None = None
    consistency: str | None = None
    """Names the consistency method whose sampler paints it; without one it is lcm."""
    phases: tuple[int, ...] | None = None
    """Lists the numbers of phases that it was trained for."""
    refined_by: str | None = None
    """Names the method by which it went on from a student of that one."""
    followed: str | None = None
    """Names the student whose steps it learnt in place of a teacher's."""
    followed_sha256: str | None = None
    guided_from: int | None = None
    adversarial: float | None = None
    adversarial_real: str | None = None
    """Says what heads took for real, target or pictures, where some judged it; the last weighs their loss."""
    sampling_steps: int | None = None
    """Counts the steps that it paints in when none are asked for."""
    resolution: int | None = None
    """Measures the side of its pictures in pixels, where its network does not say."""
    shift: float | None = None
    """Holds a flow's shift of its times, whatever the size of its pictures."""
    stock_scale: float | None = None
    """Is the `guidance_scale` to give a stock pipeline, so that it adds none of its own, where guidance is built in;
    none said is 1 of a flow and of a LoRA, and of others what was asked for."""
    stock_settings: dict[str, bool] | None = None
    """Says what else a stock pipeline is to be given, so that it paints at the size that it is asked for."""
    stock_large: bool | None = None
    """Says whether its pipeline is loaded in bf16 and computes part by part, as fits people's cards."""
    stock_loras: bool | None = None
    """Tells whether stock pipelines load its LoRAs; None where they do."""
    stock_guidance: str | None = None
    """Names what a stock pipeline of a flow calls its guidance, where that is not `guidance_scale`."""
    sigmas: dict[str, list[float]] | None = None
    """Lists what a stock pipeline of a flow is to be given as `sigmas`, by the number of steps."""
    learnt_words: tuple[str, ...] | None = None
    """Lists words that its text encoder does not know, and captions of its trainings taught."""
    others: dict[str, Any] = field(default_factory=dict)
    """Keeps the entries of a file that another version wrote, as they are."""

    @property
    def trained_for(self) -> str:
        """Says in words what guidance it was trained for, where that is recorded."""
        low, high = self.guidance_range or (0.0, 0.0)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"

    def to_json(self) -> dict[str, Any]:
        """Returns what is recorded, as JSON holds it."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "others"}
        known = {name: value for name, value in values.items() if value is not None}
        if self.guidance_range is not None:
            known["guidance_range"] = list(self.guidance_range)
        for name in ("phases", "base_lora", "learnt_words"):
            if (listed := getattr(self, name)) is not None:
                known[name] = list(listed)
        return known | self.others

    def write(self, folder: Path) -> None:
        """Writes `fewstep.json` into a folder."""
        (folder / CARD_FILE).write_text(json.dumps(self.to_json(), indent=2) + "\n")


def read_card(folder: Path) -> StudentCard:
    """Reads the card beside a model; an empty one where there is none. Raises UserError for one that is spoilt."""
    file = find_file(folder, CARD_FILE)
    if not file.is_file():
        return StudentCard()
    try:
        content = load_json(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}); export the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a JSON object; export the model again")
    return make_card(content, str(folder))


def read_method(card: StudentCard, source: str) -> NamedMethod:
    """Returns the consistency method that a card names. Raises UserError for one that is not known."""
    try:
        return METHODS[card.consistency or "lcm"]
    except KeyError as error:
        known = ", ".join(METHODS)
        raise UserError(
            f"{source} was made by the method {card.consistency}, which this version does not know (it knows {known}); "
            "update fewstep"
        ) from error


def make_card(content: dict[str, Any], source: str) -> StudentCard:
    """Makes a card of what a file holds. Raises UserError naming the entry that is of the wrong kind."""
    names = {each.name for each in dataclasses.fields(StudentCard)} - {"others"}
    values = {name: value for name, value in content.items() if name in names and value is not None}
    for name, (fits, wanted) in _WANTED.items():
        if name in values and not fits(values[name]):
            raise UserError(f"{source} has {name} {values[name]!r:.60} in {CARD_FILE}; expected {wanted}")
    for name in ("guidance_range", "phases", "base_lora", "learnt_words"):
        if name in values:
            values[name] = tuple(values[name])
    return StudentCard(**values, others={name: value for name, value in content.items() if name not in names})


def is_number(value: object) -> bool:
    """Says whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value <= MAX_STEPS


def _lists(kind: Callable[[object], bool], length: int | None = None) -> Callable[[object], bool]:
    """Makes what says whether a value is a list of a kind."""

    def fits(value: object) -> bool:
        return isinstance(value, list | tuple) and length in (None, len(value)) and all(map(kind, value))

    return fits


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _names_switches(value: object) -> bool:
    """Says whether a value of JSON is what a pipeline may be given as switches by name."""
    return isinstance(value, dict) and all(name.isidentifier() and type(each) is bool for name, each in value.items())


MOST_SIDE = 2**15
_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("name", "data", "base_config", "method", "teacher", "prediction_type", "consistency"), (_is_text, "a text")
    ),
    "guidance_scale": (is_number, "a number"),
    "guidance_range": (_lists(is_number, 2), "two numbers"),
    "sampling_steps": (_is_count, f"1 to {MAX_STEPS}"),
    "phases": (_lists(_is_count), "a list of whole numbers"),
    **dict.fromkeys(("base_lora", "learnt_words"), (_lists(_is_text), "a list of texts")),
    "stock_scale": (is_number, "a number"),
    **dict.fromkeys(("stock_loras", "stock_large"), (lambda value: type(value) is bool, "true or false")),
    "stock_settings": (_names_switches, "an object of true and false"),
    "shift": (lambda value: is_number(value) and value > 0, "a number above 0"),
    "resolution": (lambda value: type(value) is int and 0 < value <= MOST_SIDE, f"1 to {MOST_SIDE:,}"),
}
"""What the entries that something reads must be, and that in words; what the others hold is only shown."""


def split_scale(given: str) -> tuple[str, float]:
    """Splits what names a LoRA, `WHERE` or `WHERE:SCALE`, whose scale is 1 where none is said."""
    name, colon, number = given.rpartition(":")
    try:
        return (name, float(number)) if colon and name else (given, 1.0)
    except ValueError:
        return given, 1.0
