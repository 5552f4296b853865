"""Trains the gallery's autoencoder, reader, text encoder or UNet on a GPU, each within minutes; the same as
studies/gallery_teacher.py does on a core in hours, with larger batches and more pictures.

    python studies/gallery_gpu.py autoencoder --run runs/gallery --out OUT --minutes 8 --photographs photographs
    python studies/gallery_gpu.py reader --run runs/gallery --out OUT --minutes 4
    python studies/gallery_gpu.py text --run runs/gallery --out OUT --minutes 2
    python studies/gallery_gpu.py unet --run runs/gallery --out OUT --minutes 9
    python studies/gallery_gpu.py pipeline --run runs/gallery          # here again, no GPU
    python studies/gallery_gpu.py transformer --run runs/gallery --out OUT --minutes 9
    python studies/gallery_gpu.py flow-pipeline --run runs/gallery

Each stage begins from what the run folder holds of it (`--fresh`: from nothing), runs for that long with its learning
rate falling to 0 by the clock, and writes the average in fp16 to OUT, in files of at most 12 MB. Copied back into the
run folder, a result is what a next call goes on from, and what studies/gallery_quality.py measures. UNet needs `vae`,
`text_encoder` and `tokenizer`, the transformer `pipeline`; studies/gallery_teacher.py writes all of them too. It needs
torch with CUDA, diffusers, transformers and tyro, and nothing of the network.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPTextModel

from fewstep.data.pictures import from_levels
from fewstep.data.worlds.gallery import Gallery
from fewstep.diffusion.flow import Flow
from fewstep.diffusion.schedule import Tabulated
from fewstep.evaluate.gallery_reader import GalleryReader, load_gallery_reader
from fewstep.evaluate.reader import save_reader
from fewstep.models import scenes_model
from fewstep.teacher.blocks import BlockAutoencoderTask
from fewstep.teacher.gallery_tasks import (
    SlotTask,
    compute_reader_loss,
    draw_gallery_batch,
    expect_slots,
    list_stated,
    list_statements,
)
from fewstep.teacher.muon import Muon
from fewstep.teacher.tasks import DiffusionTask
from fewstep.train.config import LoopConfig
from gallery_pictures import Mixture
from gallery_teacher import (
    NOT_MATRICES,
    build_gallery_autoencoder,
    build_gallery_text_encoder,
    build_gallery_unet,
    load_code,
    load_tokenizer,
    tokenise,
)

SHARD = "12MB"
SCALING = "scaling_factor.json"
TRANSFORMER = {"width": 192, "layers": 7}
DRAWN_AT_ONCE = 500


@dataclass(frozen=True)
class Study:
    stage: tyro.conf.Positional[
        Literal["autoencoder", "reader", "text", "unet", "pipeline", "transformer", "flow-pipeline"]
    ]
    """What to train; `pipeline` and `flow-pipeline` assemble a teacher from the parts in the run folder."""
    run: Path = Path("runs/gallery")
    """Folder of what there is."""
    out: Path = Path("runs/gallery-gpu")
    """Folder for the result."""
    photographs: Path = Path("photographs")
    """Folder of photographs for the autoencoder, as studies/gallery_teacher.py takes it."""
    minutes: float = 8.0
    """Time to train, without drawing and encoding what the UNet learns from."""
    batch_size: int = 0
    """Samples in one update; 0 takes 256 for autoencoder and reader, 1024 for the others."""
    lr: float = 0.0
    """Peak learning rate; 0 takes 1e-3 for the autoencoder, 2e-3 for the others."""
    pictures: int = 400_000
    """Pictures that the UNet learns from, and captions for the text encoder."""
    seed: int = 10
    """Seed of pictures and noise; another for every call that goes on from an earlier one."""
    fresh: bool = False
    """Begin from nothing, though the run folder holds some of it."""
    device: str = "cuda"
    """Device to train on."""


@torch.enable_grad()
def train(
    network: nn.Module, compute_loss: Callable[[nn.Module], Tensor], study: Study,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:  # fmt: skip
    """Updates `network` by `optimizer`, or AdamW, until the time is up; returns its average over the last tenth."""
    averaged = copy.deepcopy(network).requires_grad_(False)
    lr = find_rate(study)
    optimizer = optimizer or torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.0)
    begun, step = time.monotonic(), 0
    while (part := (time.monotonic() - begun) / (60 * study.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * part))
        with torch.autocast(study.device, torch.bfloat16):
            loss = compute_loss(network)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        keep = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(network.parameters()), 1 - keep)
        step += 1
        if step % 100 == 0 or step == 1:
            told = f"{study.stage}: {step} updates, {time.monotonic() - begun:.0f} s, loss {loss.item():.4f}"
            print(told, flush=True)
    print(f"{study.stage}: {step} updates of {batch_size(study)}", flush=True)
    return averaged.cpu()


def find_rate(study: Study) -> float:
    return study.lr or (1e-3 if study.stage == "autoencoder" else 2e-3)


def batch_size(study: Study) -> int:
    return study.batch_size or (256 if study.stage in ("autoencoder", "reader") else 1024)


class Endless(IterableDataset[Any]):
    """Draws batches without end, each worker those of its own counters."""

    def __init__(self, draw: Callable[[range], Any], size: int) -> None:
        self._draw, self._size = draw, size

    def __iter__(self) -> Iterator[Any]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            yield self._draw(range(number * self._size, (number + 1) * self._size))
            number += step


def draw_endlessly(draw: Callable[[range], Any], size: int) -> Iterator[Any]:
    workers = max(1, (os.cpu_count() or 1) - 1)
    return iter(DataLoader(Endless(draw, size), batch_size=None, num_workers=workers, prefetch_factor=4))


def train_autoencoder(study: Study) -> None:
    held = study.run / "vae"
    start = AutoencoderKL.from_pretrained(held) if held.exists() and not study.fresh else build_gallery_autoencoder()
    batches = draw_endlessly(Mixture(study.seed, study.photographs), batch_size(study))
    network = start.to(study.device, memory_format=torch.channels_last)

    code = load_code(study.run, study.photographs).to(study.device)
    reader = study.run / "reader"
    features = load_gallery_reader(reader).to(study.device).grid if reader.exists() else None
    task = BlockAutoencoderTask(network, code, lambda _: next(batches), study.seed, features)

    def compute_loss(network: nn.Module) -> Tensor:
        x = next(batches).to(study.device, non_blocking=True)
        latents = code.encode(x)
        return task.compute(network, x, latents, torch.randn_like(latents))

    train(network, compute_loss, study).half().save_pretrained(study.out / "vae", max_shard_size=SHARD)


@dataclass(frozen=True)
class ReaderBatches:
    seed: int

    def __call__(self, counters: range) -> Any:
        return draw_gallery_batch(self.seed, counters)


def train_reader(study: Study) -> None:
    held = study.run / "reader"
    start = GalleryReader() if study.fresh or not held.exists() else load_gallery_reader(held).requires_grad_(True)
    batches = draw_endlessly(ReaderBatches(study.seed), batch_size(study))

    def compute_loss(network: nn.Module) -> Tensor:
        pixels, answers = next(batches)
        logits = network(pixels.to(study.device))
        layout, ground, presence, size, name = (answer.to(study.device) for answer in answers)
        return compute_reader_loss(logits, (layout, ground, presence, size, name))

    network = start.train().to(study.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    save_reader(train(network, compute_loss, study), study.out / "reader")


def train_text_encoder(study: Study) -> None:
    tokenizer = load_tokenizer(study.run)
    captions, prompts = zip(*(Gallery(study.seed).prompt(i) for i in range(study.pictures)), strict=True)
    tokens = tokenise(tokenizer, captions)
    expected = torch.stack([expect_slots(prompt).half() for prompt in prompts])
    encoder = build_gallery_text_encoder(tokenizer)
    task = SlotTask(encoder, tokens, list_statements(), [*map(list_stated, prompts)], expected, study.seed)
    generator = torch.Generator().manual_seed(study.seed)

    def compute_loss(network: nn.Module) -> Tensor:
        index = torch.randint(len(tokens), (batch_size(study),), generator=generator)
        return task.compute(network, index)  # type: ignore[arg-type]

    averaged: Any = train(task.student.to(study.device), compute_loss, study)
    averaged["text_encoder"].save_pretrained(study.out / "text_encoder")
    tokenizer.save_pretrained(study.out / "tokenizer")


def draw_levels(job: tuple[int, int]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """uint8 `[n, 64, 64, 3]` and captions of one stretch of the gallery, every other one exact: names take longest."""
    seed, start = job
    pictures = [Gallery(seed, level="exact" if i % 2 else None)[i] for i in range(start, start + DRAWN_AT_ONCE)]
    return np.stack([np.asarray(picture.image) for picture in pictures]), [picture.caption for picture in pictures]


@torch.no_grad()
def encode_gallery(study: Study) -> tuple[Tensor, list[str]]:
    """Unscaled latents on the device, fp16, and captions, the empty one last."""
    code = load_code(study.run, study.photographs).to(study.device)
    jobs = [(study.seed, start) for start in range(0, study.pictures, DRAWN_AT_ONCE)]
    latents, captions = [], []
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for levels, words in pool.map(draw_levels, jobs):
            latents.append(code.encode(from_levels(torch.from_numpy(levels).to(study.device))).half())
            captions += words
    return torch.cat(latents), [*captions, ""]


def train_unet(study: Study) -> None:
    """Learns v as DiffusionTask does; a picture is mirrored in no way, since captions tell left from right."""
    begun = time.monotonic()
    latents, captions = encode_gallery(study)
    scaling_factor = float(1 / latents.float().std())
    print(f"{len(latents)} pictures drawn and encoded in {time.monotonic() - begun:.0f} s", flush=True)
    tokenizer, text_encoder = load_tokenizer(study.run), CLIPTextModel.from_pretrained(study.run / "text_encoder")
    tokens = tokenise(tokenizer, captions).to(study.device)
    reading: Any = copy.deepcopy(text_encoder).eval().requires_grad_(False).to(study.device)
    scheduler = scenes_model.build_scheduler()
    schedule = Tabulated.from_config(scheduler.config).to(torch.device(study.device))
    held = study.run / "unet"
    torch.manual_seed(study.seed)
    start = build_gallery_unet() if study.fresh or not held.exists() else UNet2DConditionModel.from_pretrained(held)
    size = batch_size(study)

    def compute_loss(network: nn.Module) -> Tensor:
        index = torch.randint(len(latents), (size,), device=study.device)
        z_0 = latents[index].float() * scaling_factor
        dropped = torch.rand(size, device=study.device) < DiffusionTask.DROP_RATE
        with torch.no_grad():
            text = reading(tokens[torch.where(dropped, len(latents), index)])[0]
        t = schedule.pick(torch.rand(size, device=study.device, dtype=torch.float64).sqrt())
        epsilon = torch.randn_like(z_0)
        output = network(schedule.diffuse(z_0, epsilon, t), t, text).sample
        alpha, sigma = schedule.coefficients(t, z_0)
        return functional.mse_loss(output.float(), alpha * epsilon - sigma * z_0)

    network = start.float().to(study.device, memory_format=torch.channels_last)
    optimizer = Muon(network, LoopConfig(lr=find_rate(study), beta2=0.99), NOT_MATRICES)
    unet: Any = train(network, compute_loss, study, optimizer)
    unet.half().save_pretrained(study.out / "unet", max_shard_size=SHARD)
    (study.out / "unet" / SCALING).write_text(json.dumps(scaling_factor))


def train_transformer(study: Study) -> None:
    """Learns the velocity ε − z_0 of a flow, as a small transformer of Stable Diffusion 3's layout, at shift 3."""
    import flow_teacher

    start = flow_teacher.make_pipeline(study.run / "pipeline", **TRANSFORMER)
    latents, captions = encode_gallery(study)
    latents *= start.vae.config.scaling_factor
    tokens = tokenise(start.tokenizer, captions).to(study.device)
    encoder: Any = copy.deepcopy(start.text_encoder).eval().requires_grad_(False).to(study.device)
    flow = Flow(shift=flow_teacher.SHIFT)
    start.transformer.set_attn_processor(flow_teacher.Attention())
    held = study.run / "transformer"
    if held.exists() and not study.fresh:
        start.transformer.load_state_dict(SD3Transformer2DModel.from_pretrained(held).float().state_dict())
    size = batch_size(study)

    def compute_loss(network: nn.Module) -> Tensor:
        index = torch.randint(len(latents), (size,), device=study.device)
        z_0 = latents[index].float()
        index = torch.where(torch.rand(size, device=study.device) < DiffusionTask.DROP_RATE, len(latents), index)
        with torch.no_grad():
            text, pooled = read_captions(encoder, tokens[index])
        t = flow.pick(torch.rand(size, device=study.device, dtype=torch.float64))
        epsilon = torch.randn_like(z_0)
        z_t = flow.diffuse(z_0, epsilon, t)
        output = network(z_t, text, pooled, 1000 * flow.sigma(t).float()).sample
        return functional.mse_loss(output.float(), epsilon - z_0)

    transformer: Any = train(start.transformer.to(study.device), compute_loss, study)
    transformer.half().save_pretrained(study.out / "transformer", max_shard_size=SHARD)


def read_captions(encoder: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """As StableDiffusion3Pipeline reads them with one encoder as both, with one of T5's zeros for all."""
    read = encoder(tokens, output_hidden_states=True)
    text = torch.cat([read.hidden_states[-2]] * 2, dim=-1)
    return functional.pad(text, (0, 0, 0, 1)), torch.cat([read.text_embeds] * 2, dim=-1)


def assemble_flow(study: Study) -> None:
    """Writes the run folder's `flow-pipeline` from its `pipeline` and `transformer`."""
    import flow_teacher

    pipeline = flow_teacher.make_pipeline(study.run / "pipeline", **TRANSFORMER)
    learnt = SD3Transformer2DModel.from_pretrained(study.run / "transformer").float()
    pipeline.transformer.load_state_dict(learnt.state_dict())
    pipeline.save_pretrained(study.run / "flow-pipeline")


def assemble_pipeline(study: Study) -> None:
    """Writes the run folder's `pipeline` from the parts that it holds."""
    trained = scenes_model.Trained(
        AutoencoderKL.from_pretrained(study.run / "vae"),
        CLIPTextModel.from_pretrained(study.run / "text_encoder"),
        UNet2DConditionModel.from_pretrained(study.run / "unet"),
        json.loads((study.run / "unet" / SCALING).read_text()),
    )
    scenes_model.save_teacher(
        study.run / "pipeline", trained, load_tokenizer(study.run), scenes_model.build_scheduler()
    )  # fmt: skip


STAGES = {
    "autoencoder": train_autoencoder,
    "reader": train_reader,
    "text": train_text_encoder,
    "unet": train_unet,
    "pipeline": assemble_pipeline,
    "transformer": train_transformer,
    "flow-pipeline": assemble_flow,
}

if __name__ == "__main__":
    study = tyro.cli(Study)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    study.out.mkdir(parents=True, exist_ok=True)
    STAGES[study.stage](study)
