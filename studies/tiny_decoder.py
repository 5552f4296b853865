"""The bundled tiny decoder: TAESD's layout, taught to answer as the bundled autoencoder's decoder does.

    python studies/tiny_decoder.py        # five minutes on one core; goes on where it stopped

Figures: docs/speed.md. It learns on latents of scenes, noised a little as a few-step model's are, with the mean
absolute difference of pixels as its loss; what is printed is that difference, in grey levels, on latents that the
bundled few-step model painted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from diffusers import AutoencoderTiny
from torch import Tensor

from fewstep import assets
from fewstep.data import draws
from fewstep.data.latents import LatentSource
from fewstep.data.scenes import Scenes
from fewstep.models.latent_model import LatentModel, load_latent_model
from fewstep.models.pipeline import load_pipeline
from fewstep.recipes.pictures import PictureConfig, open_material
from fewstep.train.config import LoopConfig
from fewstep.train.loop import fit
from fewstep.train.task import Loss, Task, of_mean

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Study:
    steps: int = 800
    """Updates."""
    width: int = 32
    """Channels throughout."""
    out: Path = Path("runs/studies/tiny-decoder")
    """Run folder."""


class DecodeTask(Task):
    """The tiny decoder answers as the whole one."""

    averaged = None

    def __init__(self, tiny: AutoencoderTiny, model: LatentModel, source: LatentSource) -> None:
        self.student = tiny.decoder
        self._model, self._source = model, source

    def loss(self, counters: range) -> Loss:
        shape = self._source.latent_shape
        z_0 = self._source.batch(counters, draws.normal(0, "vae", counters, shape)).z_0
        noise = draws.normal(0, "epsilon", counters, shape)
        z_0 = z_0 + 0.1 * draws.uniform(0, "t", counters).float().view(-1, 1, 1, 1) * noise
        with torch.no_grad():
            wanted = self._model.decode(z_0)
        return of_mean((self.student(z_0) - wanted).abs().mean(), counters)


def painted(count: int = 64) -> Tensor:
    """Latents of the bundled few-step model, at 4 steps."""
    pipeline = load_pipeline(assets.SCENES_LCM, "cpu")
    prompts = [Scenes(seed=99).prompt(i)[0] for i in range(count)]
    return pipeline.latents(pipeline.model.encode_text(prompts), range(count), 4, pipeline.guidance_scale - 1)


def main(study: Study) -> None:
    model = load_latent_model(assets.SCENES, CPU)
    config = PictureConfig(pictures=4096, batch_size=16, steps=study.steps)
    torch.manual_seed(0)
    channels = int(model.vae.config.latent_channels)
    widths, blocks = (study.width,) * 4, (2, 2, 2, 1)
    tiny = AutoencoderTiny(
        latent_channels=channels, encoder_block_out_channels=(8,) * 4, num_encoder_blocks=(1,) * 4,
        decoder_block_out_channels=widths, num_decoder_blocks=blocks,
    )  # fmt: skip
    source = open_material(config, model).latents()
    loop = LoopConfig(
        steps=study.steps,
        batch_size=16,
        lr=2e-3,
        lr_decay="cosine",
        warmup_steps=20,
        checkpoint_every=250,
        log_every=25,
    )
    fit(DecodeTask(tiny, model, source), loop, study.out, "tiny decoder")
    place = Path(assets.place(assets.SCENES_TINY))
    shutil.rmtree(place, ignore_errors=True)
    tiny.half().save_pretrained(place)
    tiny = AutoencoderTiny.from_pretrained(place)
    z_0 = painted()
    with torch.no_grad():
        difference = (tiny.decode(z_0).sample.clamp(-1, 1) - model.decode(z_0).clamp(-1, 1)).abs() * 127.5
    count = sum(p.numel() for p in tiny.decoder.parameters())
    print(f"{count:,} parameters; grey levels off: mean {difference.mean():.2f}")


if __name__ == "__main__":
    main(tyro.cli(Study))
