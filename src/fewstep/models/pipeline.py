"""Painting with a few-step model: `pipe = fewstep.load(folder); images = pipe("a red star", steps=4, seed=7)`."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fewstep import assets
from fewstep.data.draws import check_seed
from fewstep.data.masks import feather, read_mask
from fewstep.data.pictures import to_images
from fewstep.data.sources.fitting import fit_square
from fewstep.diffusion.prediction import Cond
from fewstep.errors import UserError
from fewstep.method.landing import ConsistencyFunction
from fewstep.method.named import SAMPLERS
from fewstep.method.sampling import sample_consistency
from fewstep.models.card import CARD_FILE, MAX_STEPS, read_method
from fewstep.models.family import LatentModel
from fewstep.models.loading import pick_device
from fewstep.models.lora.few_step import DEFAULT_STEPS
from fewstep.models.model_places import name_model
from fewstep.models.options import Compile, PainterOptions
from fewstep.models.start import Start
from fewstep.models.vocabulary import find_vocabulary
from fewstep.precision import name_dtype

DIFFUSERS_GUIDANCE_SCALE = 8.5  # LatentConsistencyModelPipeline's default, for models that record none
NO_PROMPT = "the prompt is empty: what is painted is left to the model"
logger = logging.getLogger(__name__)


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Callable[[], Tensor]:
    """Draws standard normal fp32 `[len(seeds), *shape]` at every call, each picture from its own CPU generator.

    The same numbers that a diffusers pipeline draws when given these generators.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def draw() -> Tensor:
        return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators]).to(device)

    return draw


class Pipeline:
    """A loaded few-step model."""

    def __init__(self, model: LatentModel) -> None:
        self.takes_guidance = model.network.takes_omega
        """Whether guidance is an input; with an LCM-LoRA it is built in at one scale."""
        if not model.is_few_step:
            raise UserError(
                f"{assets.find_name(model.source)} is a teacher, not a few-step model, and no LCM-LoRA was given with "
                "it (a style LoRA is not one): give one with --lora, or a few-step model (bundled is "
                f"{assets.SCENES_LCM}), or make one with `fewstep distill --teacher`"
            )
        self.model = model
        self.name = model.card.name or name_model(model.source)
        self.method = read_method(model.card, model.source)
        """The consistency method that made it, whose sampler paints it."""
        if self.method.told_end != model.network.takes_end:
            raise UserError(
                f"{model.source} has {'an' if model.network.takes_end else 'no'} input for where to land and "
                f"{CARD_FILE} beside it says that {self.method.name} made it; export the model again"
            )
        self.grid_size = model.read_grid_size()
        """How many times its sampler may choose from."""
        scale, steps = model.card.guidance_scale, model.card.sampling_steps
        self.guidance_scale = DIFFUSERS_GUIDANCE_SCALE if scale is None else scale
        """Used when none is given, in diffusers' convention."""
        self.steps = DEFAULT_STEPS if steps is None else steps
        """Used when none are given."""
        self.vocabulary = find_vocabulary(model.conditioner, model.card.learnt_words or ())
        """The words that can be asked for; None where the model reads any."""
        self.precision = name_dtype(model.network.backbone.dtype)
        """What the network is kept and computes in."""

    def __call__(  # noqa: PLR0913  # one call that takes all, as diffusers' pipelines are
        self,
        prompt: str | Sequence[str],
        *,
        steps: int | None = None,
        seed: int = 0,
        count: int = 1,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        init_image: Image.Image | None = None,
        strength: float = 0.8,
        mask: Image.Image | None = None,
        mask_blur: float = 4.0,
        batch_size: int = 16,
        on_step: Callable[[int, int], None] | None = None,
    ) -> list[Image.Image]:
        """Paints `count` pictures of every prompt, prompt by prompt.

        Picture i has a CPU generator of its own, seeded with seed + i, and does not depend on `batch_size`.
        `guidance_scale` is diffusers' (ω + 1). With `init_image`, cut to a square of the model's size, painting starts
        from it, the further from it the greater `strength` in (0, 1]. With a `mask` of its shape too, only what is
        white there is painted; its edges are blurred by `mask_blur` pixels. `on_step(done, total)` is called after each
        evaluation of the network, of those that all batches take. Raises UserError for steps not allowed.
        """
        if negative_prompt:
            warnings.warn("this model has guidance built in and ignores the negative prompt", stacklevel=2)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prompts = [each for each in prompts for _ in range(count)]
        check_seed(seed, max(1, len(prompts)))
        for each in dict.fromkeys(prompts):
            if not each.strip():
                warnings.warn(NO_PROMPT, stacklevel=2)
            if self.model.conditioner.truncates(each):
                limit = self.model.conditioner.limit
                warnings.warn(
                    f"the model reads the first {limit} tokens of {each!r} and ignores the rest", stacklevel=2
                )
        if self.vocabulary is not None and (
            said := self.vocabulary.explain(prompts, assets.find_name(self.model.source))
        ):
            warnings.warn(said, stacklevel=2)
        scale = self.guidance_scale if guidance_scale is None else guidance_scale
        low, high = self.model.card.guidance_range or (scale, scale)
        off = self.model.family.guidance_of(0.0)
        if not self.takes_guidance and guidance_scale not in (None, off, 1.0, self.guidance_scale):
            warnings.warn(f"guidance is built into this model; guidance_scale {scale:g} has no effect", stacklevel=2)
        elif self.takes_guidance and not low <= scale <= high:
            trained = self.model.card.trained_for
            warnings.warn(f"guidance_scale is {scale:g}; this model was trained for {trained}", stacklevel=2)
        begin = self._make_start(init_image, mask, mask_blur)
        own = self.steps if begin is None else max(1, min(self.steps, self.most_steps(strength)))
        count, omega = own if steps is None else steps, self.model.family.omega_of(scale)
        images: list[Image.Image] = []
        total, done = count * math.ceil(len(prompts) / batch_size), 0

        def count_step() -> None:
            nonlocal done
            done += 1
            if on_step is not None:
                on_step(done, total)

        for start in range(0, len(prompts), batch_size):
            part = prompts[start : start + batch_size]
            seeds = range(seed + start, seed + start + len(part))
            cond = self.model.conditioner.encode(part)
            z_0 = self.latents(cond, seeds, count, omega, start=begin, strength=strength, count=count_step)
            painted = self.to_images(self.model.codec.decode(z_0))
            images += painted if begin is None else [begin.lay_over(image) for image in painted]
        return images

    def to_images(self, pixels: Tensor) -> list[Image.Image]:
        """Converts decoded pixels `[b, 3, h, w]` to pictures. Raises UserError where one is not finite, and would be
        black: it names the weights that are not, or says that numbers overflow."""
        if pixels.isfinite().all():
            return to_images(pixels)
        if broken := self.model.find_broken():
            why = f"its weights are broken: NaN or infinity in {broken}; fetch the model again, or export it anew"
        else:
            why = f"numbers overflow in {self.precision}; give --precision bf16 or fp32, or LoRAs at smaller scales"
        raise UserError(f"{assets.find_name(self.model.source)} paints no picture but NaN or infinity: {why}")

    def compile(self, how: Compile) -> None:
        """Has torch.compile compute the network's repeated blocks from now on. Raises UserError where it cannot."""
        if how != "off":
            compiling: Any = importlib.import_module("fewstep.models.compiling")  # few pictures are painted so
            network = self.model.network
            compiling.compile_blocks([network], how, self.model.device, network.backbone.dtype)

    def use_sampler(self, asked: str) -> None:
        """Paints from now on by the sampler that is asked for, as `--sampler` names it; `auto` leaves it as it is.

        Raises UserError for one that is not known.
        """
        if (gamma := read_sampler(asked)) is not None:
            self.method = self.method.with_sampler(gamma)

    def _make_start(self, image: Image.Image | None, mask: Image.Image | None, blur: float) -> Start | None:
        """Cuts a picture, and its mask with it, to what this model paints. Raises UserError where they do not fit."""
        if image is None:
            if mask is not None:
                raise UserError("a mask says what to paint of a picture; give the picture to start from too")
            return None
        square = fit_square(image.convert("RGB"), self.model.resolution)
        if mask is None:
            return Start(square)
        if mask.size != image.size:
            sizes = f"{mask.width}x{mask.height} and the picture {image.width}x{image.height}"
            raise UserError(f"the mask is {sizes}; give one of the picture's size")
        return Start(square, feather(fit_square(read_mask(mask), self.model.resolution), blur, blur))

    @torch.no_grad()
    def latents(
        self, cond: Cond, seeds: Sequence[int], steps: int, omega: float, *, start: Start | None = None,
        strength: float = 1.0, count: Callable[[], None] = lambda: None, shape: Sequence[int] = (),
    ) -> Tensor:  # fmt: skip
        """Paints z_0 `[b, c, h, w]` for conditions `[b, …]`, one seed a picture; ω in the paper's convention. `shape`
        is that of a picture's latents where it is not the model's own."""
        model = self.model
        draw = seeded_noise(seeds, shape or model.codec.shape(model.resolution), model.device)
        omegas = torch.full((len(seeds),), omega, device=model.device)
        z, kept = (None, None) if start is None else start.encode(model.codec, draw)
        times, ends = self.jumps(steps, strength if start is not None else 1.0)
        return sample_consistency(self.consistency_function(cond, omegas), times, draw, z, ends, kept, count)

    def consistency_function(self, cond: Cond, omega: Tensor) -> ConsistencyFunction:
        """Returns f under a condition `[b, …]` and ω `[b]`."""
        return ConsistencyFunction(
            self.model.network, cond, omega, self.model.schedule, self.method.landing, self.method.told_end
        )

    def most_steps(self, strength: float = 1.0) -> int:
        """Returns how many evaluations fit into that part of the schedule; none do where it is very small."""
        if self.method.gamma == 1:
            return min(MAX_STEPS, int(self.grid_size * strength))
        return min(MAX_STEPS, max(1, int(self.model.schedule.num_steps * strength) - 1))

    def jumps(self, steps: int, strength: float = 1.0) -> tuple[Sequence[int], Sequence[int]]:
        """Returns the times at which `steps` evaluations stand, latest first, and where each of them lands."""
        if not 0 < strength <= 1:
            raise UserError(f"strength is {strength:g}; allowed: above 0, up to 1")
        most = self.most_steps(strength)
        if not 1 <= steps <= most:
            part = "" if strength == 1 else f" at strength {strength:g}"
            raise UserError(f"steps is {steps}; this model allows 1 to {most}{part}")
        return self.method.sampling(self.model.schedule, self.grid_size, steps, strength)


def read_sampler(asked: str) -> float | None:
    """Returns the share of fresh noise that a sampler takes; None for `auto`. Raises UserError for one that is not
    known."""
    if asked == "auto":
        return None
    try:
        gamma = SAMPLERS[asked] if asked in SAMPLERS else float(asked)
    except ValueError:
        gamma = math.nan
    if not 0 <= gamma <= 1:
        known = ", ".join(("auto", *SAMPLERS))
        raise UserError(f"sampler is {asked!r:.60}; known: {known}, and numbers from 0 to 1")
    return gamma


def check_options(options: PainterOptions) -> None:
    """Raises UserError for a sampler that there is not, or where nothing can be compiled: of no model, so before one is
    loaded."""
    read_sampler(options.sampler)
    if options.compile != "off":
        compiling: Any = importlib.import_module("fewstep.models.compiling")
        compiling.check_compile(options.compile, pick_device(options.device))
