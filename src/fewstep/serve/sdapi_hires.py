"""A1111's hires fix: a second pass from the enlarged first picture, or from its enlarged latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fewstep.serve.acceptance import AcceptedRequest, PaintRequest
from fewstep.serve.client_pictures import fit
from fewstep.serve.errors import RefusedError
from fewstep.serve.jobs import PictureSpec
from fewstep.serve.lora_tags import split_tags
from fewstep.serve.sdapi_fields import TextToImage
from fewstep.serve.service import PaintService

LATENT_MODES = {
    "Latent": ("bilinear", False), "Latent (antialiased)": ("bilinear", True), "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True), "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}  # fmt: skip
"""Ways to enlarge latents: torch's mode, and whether it filters."""
UPSCALERS = {"Lanczos": Image.Resampling.LANCZOS, "Nearest": Image.Resampling.NEAREST}
"""Ways to enlarge pixels."""
_MOST_SCALE = 4


def accept_second(service: PaintService, asked: TextToImage, first: AcceptedRequest) -> AcceptedRequest:
    """Checks the second pass of a request whose first is accepted. Raises RefusedError; notes go to the first."""
    height, width = _choose_sides(service, asked, first)
    tagged = split_tags(asked.hr_prompt, heed=not asked.disable_extra_networks) if asked.hr_prompt else None
    request, spec = first.request, first.specs[0]
    told = {"Hires resize": f"{width}x{height}", "Hires upscaler": asked.hr_upscaler}
    second = replace(
        request, sides=(height, width), seed=spec.seed, steps=asked.hr_second_pass_steps or spec.steps,
        prompt=request.prompt if tagged is None else tagged.text,
        loras=request.loras if tagged is None else tagged.loras,
        text_loras=request.text_loras if tagged is None else tagged.text_loras,
        negative_prompt=asked.hr_negative_prompt or request.negative_prompt,
        guidance_scale=request.guidance_scale if asked.hr_cfg is None else asked.hr_cfg,
        start=Image.new("RGB", (1, 1)), strength=asked.denoising_strength,
        names={**request.names, **_list_names(asked)},
    )  # fmt: skip
    accepted = service.accept(second)
    first.notes.extend(note for note in accepted.notes if note not in first.notes)
    if tagged is not None:
        first.notes.extend(tagged.notes)
    if asked.hr_upscaler not in (*LATENT_MODES, *UPSCALERS, "None"):
        first.notes.append(f"hr_upscaler {asked.hr_upscaler!r} is not here; Lanczos was taken")
    first_work = spec.size[0] * spec.size[1] * spec.steps * len(first.specs)
    steps = accepted.specs[0].steps * len(accepted.specs) + first_work // (height * width)
    service.acceptance.check_work((height, width), steps)
    told |= {"Hires steps": str(accepted.specs[0].steps), "Denoising strength": f"{accepted.specs[0].strength:g}"}
    return replace(accepted, request=_with_told(accepted.request, told))


def _list_names(asked: TextToImage) -> dict[str, str]:
    """Lists the fields that the second pass has of its own, by what they are called elsewhere."""
    own = {
        "steps": ("hr_second_pass_steps", asked.hr_second_pass_steps), "prompt": ("hr_prompt", asked.hr_prompt),
        "negative_prompt": ("hr_negative_prompt", asked.hr_negative_prompt),
        "guidance_scale": ("hr_cfg", asked.hr_cfg is not None),
    }  # fmt: skip
    return {name: theirs for name, (theirs, is_given) in own.items() if is_given}


def _with_told(request: PaintRequest, told: dict[str, str]) -> PaintRequest:
    return replace(request, told={**request.told, **told})


def enlarge(
    specs: Sequence[PictureSpec], images: Sequence[Image.Image], latents: Sequence[Tensor], upscaler: str, multiple: int
) -> list[PictureSpec]:  # fmt: skip
    """Returns the second pass's pictures to paint, each from its own first picture."""
    return [
        replace(spec, start=_enlarge_latents(z, spec.size, upscaler, multiple) if upscaler in LATENT_MODES
                else _enlarge_pixels(image, spec.size, upscaler))
        for spec, image, z in zip(specs, images, latents, strict=True)
    ]  # fmt: skip


def _enlarge_latents(z: Tensor, size: tuple[int, int], upscaler: str, multiple: int) -> Tensor:
    mode, antialias = LATENT_MODES[upscaler]
    height, width = (side // multiple for side in size)
    grown = max(height / z.shape[2], width / z.shape[3])
    whole = [max(height, round(z.shape[2] * grown)), max(width, round(z.shape[3] * grown))]
    top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
    return F.interpolate(z, whole, mode=mode, antialias=antialias)[:, :, top : top + height, left : left + width]


def _enlarge_pixels(image: Image.Image, size: tuple[int, int], upscaler: str) -> Image.Image:
    grown = max(size[0] / image.height, size[1] / image.width)
    whole = max(size[1], round(image.width * grown)), max(size[0], round(image.height * grown))
    return fit(image.resize(whole, UPSCALERS.get(upscaler, Image.Resampling.LANCZOS)), size, "cover")


def _choose_sides(service: PaintService, asked: TextToImage, first: AcceptedRequest) -> tuple[int, int]:
    """Returns height and width of the second pass, as multiples that the model can paint."""
    height, width = first.specs[0].size
    wanted = (asked.hr_resize_y, asked.hr_resize_x)
    if any(wanted):
        # One that is left out keeps the picture's shape.
        sides = (wanted[0] or round(wanted[1] * height / width), wanted[1] or round(wanted[0] * width / height))
    else:
        if not 1 <= asked.hr_scale <= _MOST_SCALE:
            raise RefusedError(f"hr_scale is {asked.hr_scale:g}; allowed: 1 to {_MOST_SCALE}", param="hr_scale")
        sides = (round(height * asked.hr_scale), round(width * asked.hr_scale))
    model = service.pipeline.model
    unit = 64 if model.resolution >= 256 else model.codec.multiple * 4
    most = _MOST_SCALE * model.resolution
    for name, side in zip(("hr_resize_y", "hr_resize_x"), sides, strict=True):
        if not unit <= side <= most:
            raise RefusedError(f"{name} is {side}; allowed: {unit} to {most}", param=name)
    even = sides[0] // unit * unit, sides[1] // unit * unit
    if even != sides:
        first.notes.append(f"the second pass would be {sides[1]}x{sides[0]}; {even[1]}x{even[0]} was painted")
    return even
