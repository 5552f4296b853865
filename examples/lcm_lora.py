"""Trains an LCM-LoRA, and paints with it in diffusers, where nothing of fewstep is needed any more.

    python examples/lcm_lora.py                       # four minutes on two cores

The same for Stable Diffusion 1.5: `--recipe sd15-lora --teacher FOLDER --data PICTURES`, on a GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, LCMScheduler

import fewstep
from fewstep import assets

PROMPT = "a large purple star on a white background"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="scenes-lora")
    parser.add_argument("--teacher", default="scenes", help="a diffusers folder; `scenes` is bundled")
    parser.add_argument("--data", default="scenes", help="captioned pictures")
    parser.add_argument("--updates", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=8192, help="how many pictures of the bundled world are drawn")
    parser.add_argument("--out", type=Path, default=Path("runs/example-lcm-lora"))
    given = parser.parse_args()

    settings = {"pictures": given.pictures} if given.data == "scenes" else {}
    run = fewstep.distill(
        fewstep.configure(
            "distill", given.recipe, teacher=given.teacher, data=given.data, steps=given.updates,
            batch_size=given.batch_size, sample_every=0, out=given.out, **settings,
        )
    )  # fmt: skip

    # From here on it is diffusers alone: the teacher, LCM's scheduler, and the LoRA's file.
    base = assets.scenes_teacher() if given.teacher == "scenes" else given.teacher
    pipe = DiffusionPipeline.from_pretrained(base)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config, original_inference_steps=50)
    pipe.load_lora_weights(str(run.model), weight_name="pytorch_lora_weights.safetensors")
    pipe.set_progress_bar_config(disable=True)
    seed = torch.Generator().manual_seed(7)
    # Guidance was learnt by the LoRA, so diffusers is told to add none: guidance_scale 1.
    pipe(PROMPT, num_inference_steps=4, guidance_scale=1, generator=seed).images[0].save(given.out / "diffusers.png")
    print(f"LoRA: {run.model}   picture: {given.out / 'diffusers.png'}")


if __name__ == "__main__":
    main()
