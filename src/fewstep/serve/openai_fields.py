"""The fields of OpenAI's image requests, with this server's own beside; `fields.yaml` says what becomes of which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from fewstep.serve.acceptance import check_between
from fewstep.serve.client_pictures import Format
from fewstep.serve.documents import parse_document
from fewstep.serve.errors import RefusedError
from fewstep.serve.fields import read_rules
from fewstep.serve.sdapi_fields import Integer, Nullable, Number
from fewstep.serve.validation import explain_invalid_fields

ResponseFormat = Literal["b64_json", "url"]


def bounds_in_schema(**bounds: Any) -> Any:
    """Writes bounds into the schema only: the service checks them, and says what to do."""
    return Field(json_schema_extra=bounds)


class ObeyedFields(Nullable):
    """A request of OpenAI's shape, with this server's own fields beside; null stands for a field that is left out.

    What of OpenAI's has no effect here is said in the answer's `notes`; a field that neither has is an error.
    """

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    prompt: Annotated[str, bounds_in_schema(maxLength=2000)]
    model: str | None = None
    n: Annotated[Integer, bounds_in_schema(minimum=1, maximum=8)] = 1
    size: Annotated[str, bounds_in_schema(enum=["auto"])] | None = None
    """`WIDTHxHEIGHT`, or auto; the nearest that the model paints is taken, with a note."""
    response_format: ResponseFormat | None = None
    """`url` keeps pictures for an hour, behind links."""
    output_format: Format = "png"
    output_compression: Annotated[Integer, bounds_in_schema(minimum=0, maximum=100)] | None = None
    """Quality of a JPEG or WebP."""
    stream: bool = False
    """Send server-sent events."""
    partial_images: Annotated[Integer, bounds_in_schema(minimum=0, maximum=8)] = 0
    """In a stream, the number of first steps that are sent as pictures too."""
    steps: Annotated[Integer, bounds_in_schema(minimum=1, maximum=50)] | None = None
    """The number of steps; by default what the model wants, which /api/model says."""
    seed: Annotated[Integer, bounds_in_schema(minimum=0)] | None = None
    """Seed of the first picture; picture i has seed + i. Random by default; the answer holds it."""
    guidance_scale: Annotated[Number, bounds_in_schema(minimum=1, maximum=100)] | None = None
    """diffusers' convention: the papers' ω + 1."""
    negative_prompt: str = ""
    loras: dict[str, Number] = Field(default={})
    """Scales of registered LoRAs, by name."""


def _list_others() -> dict[str, Any]:
    rules = read_rules("generations")
    return {name: (Any, None) for name, rule in rules.items() if rule.treatment != "obeyed"}


Generation: Any = create_model("Generation", __base__=ObeyedFields, __doc__=ObeyedFields.__doc__, **_list_others())
"""Those, and the fields that are noted, refused or harmless."""


def list_others(asked: ObeyedFields) -> Mapping[str, Any]:
    """Returns the fields that were given and are not obeyed."""
    return {name: value for name, value in asked.model_dump(exclude_unset=True).items() if name in _list_others()}


def check_answer(asked: ObeyedFields) -> None:
    """Raises RefusedError for an answer that cannot be given."""
    check_between("partial_images", asked.partial_images, 0, 8)
    if asked.output_compression is not None:
        check_between("output_compression", asked.output_compression, 0, 100)
    if asked.stream and asked.response_format == "url":
        raise RefusedError("a stream holds its pictures; leave response_format out", param="response_format")


def read_form(*, loras: str, **given: Any) -> ObeyedFields:
    """Reads the fields of a form, in which `loras` is JSON. Raises RefusedError."""
    scales = parse_document(loras, name="field loras") if loras else {}
    try:
        return ObeyedFields(loras=scales, **given)
    except ValidationError as error:
        raise explain_invalid_fields(error.errors()) from error
