"""The fields of AUTOMATIC1111's requests that are obeyed, as its clients send them; `fields.yaml` has the others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _refuse_boolean(wanted: str) -> BeforeValidator:
    """Returns what keeps true from being read as 1; a text of digits is read, as that program does."""

    def check(value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError(wanted)
        return value

    return BeforeValidator(check)


Integer = Annotated[int, Field(ge=-(2**63), lt=2**63), _refuse_boolean("a whole number")]
Number = Annotated[float, Field(allow_inf_nan=False), _refuse_boolean("a number")]


class Nullable(BaseModel):
    """A request in which null stands for a field that is left out."""

    @model_validator(mode="before")
    @classmethod
    def _leave_out_nulls(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class PaintingFields(Nullable):
    """Fields of both ways to paint; any other field of A1111's is taken, and the answer notes what it would change."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)

    prompt: str = ""
    """May hold `<lora:NAME:0.8>`, `<lora:NAME:TEXT:NETWORK>` or `<lora:NAME:te=0.5:unet=0.8>`."""
    negative_prompt: str = ""
    seed: Integer = -1
    steps: Integer | None = None
    cfg_scale: Number | None = None
    width: Integer | None = None
    height: Integer | None = None
    batch_size: Integer = 1
    n_iter: Integer = 1
    denoising_strength: Number = 0.75
    override_settings: dict[str, Any] = {}
    disable_extra_networks: bool = False
    """Whether tags in the prompt are taken out without effect."""
    send_images: bool = True


class TextToImage(PaintingFields):
    """A request that starts from noise."""

    enable_hr: bool = False
    """Whether a second pass paints the picture larger, from the first one, at `denoising_strength`."""
    hr_scale: Number = 2.0
    hr_upscaler: str = "Latent"
    hr_second_pass_steps: Integer = 0
    """0 for as many as the first pass."""
    hr_resize_x: Integer = 0
    hr_resize_y: Integer = 0
    hr_prompt: str = ""
    hr_negative_prompt: str = ""
    hr_cfg: Number | None = None


class ImageToImage(PaintingFields):
    """A request that starts from a picture, whole or under a mask."""

    init_images: Annotated[list[str], Field(fail_fast=True)] = []
    resize_mode: Literal[0, 1, 2, 3] = 0
    """0 and 3 stretch the picture to the size, 1 cuts it to fit, 2 draws its edges out."""
    mask: str | None = None
    """Picture that is white where painting may change the other."""
    mask_blur: Integer | None = None
    mask_blur_x: Integer = 4
    mask_blur_y: Integer = 4
    inpainting_fill: Literal[0, 1, 2, 3] = 0
    """What stands under the mask at first: 0 colours around it, 1 the picture, 2 noise, 3 nothing."""
    inpaint_full_res: bool = True
    """Whether the masked part alone is painted, in the full size, and set into the picture."""
    inpaint_full_res_padding: Integer = 0
    inpainting_mask_invert: bool = False
    include_init_images: bool = False


class Options(Nullable):
    """The one option that is obeyed; what the others would change, the answer notes."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: str | None = None
