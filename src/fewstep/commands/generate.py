"""`fewstep generate`: paints pictures with a few-step model, as PNGs that hold their settings."""

from __future__ import annotations

import dataclasses
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from fewstep import __version__
from fewstep.data.draws import check_seed
from fewstep.data.infotext import Infotext, build_png_info, warn_of_commands
from fewstep.data.pictures import FORMATS
from fewstep.errors import UserError, show
from fewstep.files import create_new
from fewstep.models.card import MAX_STEPS
from fewstep.models.lora.source import parse_lora
from fewstep.models.options import PainterOptions
from fewstep.models.pipeline import Pipeline, check_options
from fewstep.roots import open_regular
from fewstep.runs.unfinished import load_painter
from fewstep.train.config import check_at_least, check_between, check_values


@dataclass(frozen=True, kw_only=True)
class Generate(PainterOptions):
    """Paints pictures with a few-step model."""

    prompt: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Prompt to paint; may be given several times. The bundled models know circles, squares, triangles, stars, rings,
    diamonds, crosses and hearts, one or two, in eight colours and two sizes, left of or above each other, on white,
    grey or black; words that they do not know are named."""
    negative_prompt: str = ""
    """What not to paint. Models that have guidance built in ignore it, with a warning."""
    steps: Annotated[int | None, tyro.conf.arg(aliases=["--num-inference-steps"])] = None
    """Network evaluations per picture. By default the number that the model was made for, or 4 if it names none."""
    guidance_scale: float | None = None
    """Guidance scale: 1 is no guidance, and more follows the prompt more strictly (diffusers' number). A few-step model
    was trained for a range, outside of which it warns, and has a default in it; `fewstep inspect` prints both. Where
    guidance is built in, no other value has an effect."""
    init_image: Path | None = None
    """Picture to start from; its middle square is taken. By default pictures start from noise."""
    strength: float = 0.8
    """How much to change --init-image: above 0, up to 1, which keeps nothing of it."""
    mask: Path | None = None
    """Picture of the size of --init-image that is white where painting may change it; the rest stays as it is. Where it
    has transparent parts, what is opaque is painted. By default everything is painted."""
    mask_blur: float = 4.0
    """Pixels by which the edges of --mask are blurred; 0 leaves them sharp."""
    seed: int = 0
    """Seed of the first picture; picture i has a generator of its own, of seed + i."""
    count: Annotated[int, tyro.conf.arg(aliases=["--num-images-per-prompt"])] = 1
    """Pictures per prompt."""
    batch_size: int = 16
    """Pictures painted together. It changes speed and memory, but no picture."""
    out: Path = Path("pictures")
    """Folder for the pictures, which are PNG files."""

    def __post_init__(self) -> None:
        check_values(self)
        self.check_engine()
        if self.steps is not None:
            check_between(self, 1, MAX_STEPS, "steps")
        check_at_least(self, 1, "count", "batch_size")
        for text in (*self.prompt, self.negative_prompt):
            if any("\ud800" <= letter <= "\udfff" for letter in text):
                raise UserError(f"the prompt {ascii(text)[:80]} is not UTF-8; give it as UTF-8")
        if self.out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp") and not self.out.is_dir():
            raise UserError(f"out is {self.out}; give a folder: each picture is named by its prompt and seed")
        check_seed(self.seed, max(1, self.count * len(self.prompt)))
        if self.init_image is None and self.strength != Generate.strength:
            raise UserError(f"strength is {self.strength:g} without a picture to start from; give --init-image too")
        if self.init_image is None and self.mask is not None:
            raise UserError("mask says what to paint of a picture; give the picture with --init-image too")
        if self.mask is None and self.mask_blur != Generate.mask_blur:
            raise UserError(f"mask_blur is {self.mask_blur:g} without a mask; give --mask too")
        if not 0 <= self.mask_blur <= 256:
            raise UserError(f"mask_blur is {self.mask_blur:g}; allowed: 0 to 256")
        if not 0 < self.strength <= 1:
            raise UserError(f"strength is {self.strength:g}; allowed: above 0, up to 1")
        if self.guidance_scale is not None and self.guidance_scale < 1:
            raise UserError(
                f"guidance_scale is {self.guidance_scale:g}; it must be at least 1, which means no guidance"
            )


def generate(config: Generate) -> None:
    """Writes one PNG for each picture and prints its name."""
    if not config.prompt:
        raise UserError('nothing to paint: give --prompt "a red star", or the prompt alone')
    init_image = None if config.init_image is None else read_picture(config.init_image)
    mask = None if config.mask is None else read_picture(config.mask, "RGBA")
    check_options(config)
    pipeline = load_painter(
        config.model, config.device, [parse_lora(given) for given in config.lora], config.base_config,
        engine=config.engine, tiny_decoder=config.tiny_decoder, overrides=config, precision=config.precision,
        offload=config.offload, allow_download=config.allow_download, calibration_prompts=config.calibration_prompts,
    )  # fmt: skip
    pipeline.use_sampler(config.sampler)
    pipeline.compile(config.compile)
    strength = config.strength if init_image else 1.0
    steps = max(1, min(pipeline.steps, pipeline.most_steps(strength))) if config.steps is None else config.steps
    config = dataclasses.replace(config, steps=steps)
    # Refuses steps that this model does not allow, before any work.
    pipeline.jumps(steps, strength)
    prompts = [prompt for prompt in config.prompt for _ in range(config.count)]
    for message in dict.fromkeys(each for prompt in config.prompt for each in warn_of_commands(prompt)):
        print(show(f"warning: {message}"), file=sys.stderr, flush=True)
    said: set[str] = set()
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(prompts), config.batch_size):
            part, seed = prompts[first : first + config.batch_size], config.seed + first
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", UserWarning)
                images = pipeline(
                    part, steps=steps, seed=seed, guidance_scale=config.guidance_scale,
                    negative_prompt=config.negative_prompt, init_image=init_image, strength=config.strength, mask=mask,
                    mask_blur=config.mask_blur, batch_size=config.batch_size,
                )  # fmt: skip
            _tell(caught, said)
            # At once: what is painted stays, whatever becomes of the rest.
            for i, (image, prompt) in enumerate(zip(images, part, strict=True)):
                with create_new(_list_names(config.out, prompt, seed + i)) as file:
                    image.save(file, "png", pnginfo=write_parameters(config, pipeline, prompt, seed + i, image))
                print(show(file.name), flush=True)
    except OSError as error:
        raise UserError(
            f"{config.out} cannot be written ({error.strerror}); fix that, or choose another --out"
        ) from error


def _tell(caught: Sequence[warnings.WarningMessage], said: set[str]) -> None:
    """Prints the warnings that were not `said` yet."""
    told = dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning)
    for message in told:
        if message not in said:
            print(show(f"warning: {message}"), file=sys.stderr, flush=True)
    said.update(told)


def write_parameters(config: Generate, pipeline: Pipeline, prompt: str, seed: int, image: Image.Image) -> PngInfo:
    """Returns the settings of a picture as AUTOMATIC1111's `parameters` text, which many tools read."""
    scale = pipeline.guidance_scale if config.guidance_scale is None else config.guidance_scale
    settings = {
        "Steps": str(config.steps),
        "Sampler": pipeline.method.label,
        "CFG scale": f"{scale:g}",
        "Seed": str(seed),
        "Size": f"{image.width}x{image.height}",
        "Model": pipeline.name,
        "Model path": config.model,
        **({"Model config": config.base_config} if config.base_config else {}),
        **{f"Model {name.replace('_', ' ')}": str(value) for name, value in config.stated().items()},
        **({} if config.init_image is None else _describe_start(config)),
        **({"Tiny decoder": config.tiny_decoder} if config.tiny_decoder else {}),
        **({"Engine": config.engine} if config.engine != "torch" else {}),
        **({"Compile": config.compile} if config.compile != "off" else {}),
        **({"Precision": pipeline.precision} if pipeline.precision != "fp32" else {}),
        **{f"Lora {i}": given for i, given in enumerate(config.lora, 1)},
        "Version": f"fewstep {__version__}",
    }
    return build_png_info(str(Infotext(prompt, config.negative_prompt, settings)))


def _describe_start(config: Generate) -> dict[str, str]:
    mask = {"Mask": str(config.mask), "Mask blur": f"{config.mask_blur:g}"} if config.mask is not None else {}
    return {"Denoising strength": f"{config.strength:g}", "Init image": str(config.init_image), **mask}


_MOST_PIXELS = 10_000**2
"""Bounds a picture to start from."""


def read_picture(path: Path, mode: Literal["RGB", "RGBA"] = "RGB") -> Image.Image:
    """Reads a picture in that mode, turned the way its camera recorded. Raises UserError where it cannot be read."""
    try:
        with open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise ValueError("it is too large")
            return ImageOps.exif_transpose(image).convert(mode)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; give a picture that does") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data
        raise UserError(
            f"{path} cannot be read as a picture; give a PNG, JPEG or WebP of at most 100 megapixels"
        ) from error


def _list_names(folder: Path, prompt: str, seed: int) -> Iterator[Path]:
    words = re.sub(r"[^\w]+", "-", prompt.lower()).strip("-")
    slug = words[:60] if len(words) <= 60 or "-" not in words[:61] else words[:61].rpartition("-")[0]
    slug = slug or "picture"
    return (folder / f"{slug}-seed{seed}{'' if n == 1 else f'-{n}'}.png" for n in range(1, 1_000_000))
