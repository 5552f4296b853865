"""`fewstep train-teacher`: trains the bundled teacher and its reader from scratch, in two hours on two CPU cores."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from fewstep.data.draws import check_seed
from fewstep.data.pictures import to_pixels
from fewstep.data.worlds.scenes import Scenes
from fewstep.diffusion.schedule import Tabulated
from fewstep.errors import UserError
from fewstep.evaluate.reader import Reader, save_reader
from fewstep.files import read_safetensors, write_whole
from fewstep.models import scenes_model
from fewstep.runs.folder import claim_run_folder
from fewstep.teacher.reader_task import ReaderTask
from fewstep.teacher.tasks import STATED, AutoencoderTask, CaptionTask, DiffusionTask, list_answers
from fewstep.train.config import LoopConfig, check_at_least
from fewstep.train.loop import fit

TOKENIZER_CAPTIONS = 5000


def _autoencoder() -> LoopConfig:
    return LoopConfig(steps=2000, lr=1.5e-3, lr_decay="cosine", warmup_steps=100, ema_decay=0.995, precision="bf16")


def _polish() -> LoopConfig:
    return LoopConfig(
        steps=3600, batch_size=16, lr=1.2e-3, lr_decay="cosine", warmup_steps=100, ema_decay=0.998, precision="bf16"
    )


def _reader() -> LoopConfig:
    return LoopConfig(steps=3000, batch_size=64, lr=1.5e-3, lr_decay="cosine", warmup_steps=100, ema_decay=0.995)


def _text() -> LoopConfig:
    return LoopConfig(steps=1500, batch_size=64, lr=2e-3, lr_decay="cosine", warmup_steps=200, ema_decay=0.99)


def _diffusion() -> LoopConfig:
    return LoopConfig(steps=8000, lr=1.5e-3, lr_decay="cosine", warmup_steps=600, ema_decay=0.999)


def _finish() -> LoopConfig:
    return LoopConfig(steps=4500, lr=1e-3, lr_decay="cosine", warmup_steps=100, ema_decay=0.999)


def _touch_up() -> LoopConfig:
    return LoopConfig(steps=2400, batch_size=64, lr=1.2e-3, lr_decay="cosine", warmup_steps=100, ema_decay=0.999)


@dataclass(frozen=True, kw_only=True)
class TrainTeacher:
    """Trains the scenes teacher (autoencoder, text encoder, UNet) and the reader."""

    out: Path = Path("runs/teacher")
    """Run folder; the package bundles its `pipeline/` and `reader/`. Give the same command again to resume an
    interrupted run."""
    pictures: int = 40_000
    """Number of scenes that the UNet is trained on."""
    autoencoder: LoopConfig = field(default_factory=_autoencoder)
    """First training of the autoencoder."""
    polish: LoopConfig = field(default_factory=_polish)
    """Second training of the autoencoder, from the average of the first."""
    reader: LoopConfig = field(default_factory=_reader)
    """Training of the reader, which scores pictures."""
    text: LoopConfig = field(default_factory=_text)
    """Training of the text encoder, alone."""
    diffusion: LoopConfig = field(default_factory=_diffusion)
    """First training of the UNet."""
    finish: LoopConfig = field(default_factory=_finish)
    """Second training of the UNet, from the average of the first."""
    touch_up: LoopConfig = field(default_factory=_touch_up)
    """Third training of the UNet, from the average of the second."""
    seed: int = 0
    """Seed of initial weights, pictures and every random draw."""

    def __post_init__(self) -> None:
        check_seed(self.seed, count=4)
        check_at_least(self, 1, "pictures")
        for name in ("autoencoder", "polish", "reader", "text", "diffusion", "finish", "touch_up"):
            if getattr(self, name).seed:
                raise UserError(f"{name}.seed is set; all stages follow from --seed")
            if getattr(self, name).processes > 1:
                raise UserError(f"{name}.processes is set; the teacher is trained in one process")


def train_teacher(config: TrainTeacher) -> None:
    """Runs the stages that are not finished yet; each resumes where it stopped."""
    claim_run_folder(config.out, config)
    scenes = Scenes(seed=config.seed)
    torch.manual_seed(config.seed)  # initial weights; all later draws are counter-based
    autoencoder = scenes_model.build_autoencoder().to(memory_format=torch.channels_last)
    for i, (name, loop) in enumerate((("autoencoder", config.autoencoder), ("polish", config.polish))):
        drawn = Scenes(seed=config.seed + i)
        autoencoder_task = AutoencoderTask(autoencoder, functools.partial(_draw_pixels, drawn), config.seed + i)
        fit(autoencoder_task, loop, config.out / name, name)
        autoencoder = autoencoder_task.averaged

    torch.manual_seed(config.seed + 1)
    reader_task = ReaderTask(Reader(), config.seed)
    fit(reader_task, config.reader, config.out / "reader-training", "reader")
    save_reader(reader_task.averaged, config.out / "reader")

    captions, stated = zip(*(scenes.prompt(i) for i in range(config.pictures)), strict=True)
    # From so many captions that no two merges are equally frequent: ties would fall differently in every process.
    tokenizer = scenes_model.build_tokenizer(scenes.prompt(i)[0] for i in range(TOKENIZER_CAPTIONS))
    tokens = tokenizer([*captions, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    torch.manual_seed(config.seed + 2)
    caption_task = CaptionTask(
        scenes_model.build_text_encoder(tokenizer), tokens[:-1], STATED, [*map(list_answers, stated)], config.seed
    )
    fit(caption_task, config.text, config.out / "text", "text")
    text_encoder = caption_task.averaged["text_encoder"]

    latents = _load_latents(config, autoencoder, scenes)
    scaling_factor = float(1 / latents.std())
    scheduler = scenes_model.build_scheduler()
    schedule = Tabulated.from_config(scheduler.config)
    text = encode_tokens(text_encoder, tokens)
    torch.manual_seed(config.seed + 3)
    unet: torch.nn.Module = scenes_model.build_unet()
    cycles = {"diffusion": config.diffusion, "finish": config.finish, "touch-up": config.touch_up}
    for i, (name, loop) in enumerate(cycles.items()):
        task = DiffusionTask(unet, schedule, latents * scaling_factor, text, config.seed + i)
        fit(task, loop, config.out / name, f"unet, {name}")
        unet = task.averaged
    trained = scenes_model.Trained(autoencoder, text_encoder, unet, scaling_factor)
    scenes_model.save_teacher(config.out / "pipeline", trained, tokenizer, scheduler)


def _draw_pixels(scenes: Scenes, counters: range) -> Tensor:
    return to_pixels([scenes[i].image for i in counters])


@torch.no_grad()
def encode_tokens(text_encoder: torch.nn.Module, tokens: Tensor, batch_size: int = 500) -> Tensor:
    """Encodes tokens `[n, l]` to `[n, l, d]`; the text encoder is frozen once the UNet's training begins."""
    return torch.cat([text_encoder(part)[0] for part in tokens.split(batch_size)])


def _load_latents(config: TrainTeacher, autoencoder: torch.nn.Module, scenes: Scenes) -> Tensor:
    """Returns the latents of all scenes, and keeps them in the run folder, since encoding takes minutes."""
    file = config.out / "latents.safetensors"
    if not file.exists():
        with write_whole(file) as draft:
            safetensors.torch.save_file({"mean": encode_scenes(autoencoder, scenes, config.pictures)}, draft)
    return read_safetensors(file, advice="delete it, and the scenes are encoded again")["mean"]


@torch.no_grad()
def encode_scenes(autoencoder: torch.nn.Module, scenes: Scenes, count: int, batch_size: int = 100) -> Tensor:
    """Returns the unscaled latent means `[count, c, h, w]` of the first `count` scenes."""
    parts = []
    for start in range(0, count, batch_size):
        pixels = _draw_pixels(scenes, range(start, min(count, start + batch_size)))
        given = pixels.contiguous(memory_format=torch.channels_last)
        posterior = autoencoder.encode(given).latent_dist  # type: ignore[operator]  # a method, of diffusers
        parts.append(posterior.mean.contiguous())
    return torch.cat(parts)
