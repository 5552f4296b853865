"""Stable Diffusion 1.5's architecture at full size, with random weights: one update fits a machine of 18 GiB.

Run with `pytest -m slow tests/slow`; a few minutes and 18 GiB, so not in every run.
"""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

ONE_UPDATE = """
import json, sys
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from fewstep import assets
from fewstep.models.families.stable_diffusion import SD1
from fewstep.runs.consistency import make_task
from fewstep.runs.trial import measure_peak
from fewstep.runs.material import open_material
from fewstep.recipes.distill import Distill
from fewstep.commands.distill import make_path, make_student
from fewstep.train.loop import begin
from fewstep.train.optimisation import Batch, update

data, rank = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
vae = AutoencoderKL(
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
)
text = CLIPTextModel(CLIPTextConfig(
    vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
))
parts = {
    "unet": UNet2DConditionModel(**SD1.unet), "vae": vae, "text_encoder": text,
    "tokenizer": CLIPTokenizer.from_pretrained(assets.scenes_teacher() / "tokenizer"),
}
for name in ("unet", "vae", "text_encoder"):
    parts[name].eval().requires_grad_(False)
scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").config
model = SD1.assemble("random", parts, dict(scheduler), torch.device("cpu"), zero_null=False)
config = Distill(
    teacher="random", data=data, resolution=64, batch_size=1, ema_decay=0.0, frozen_precision="bf16", lora_rank=rank,
    guidance_range=(8.5, 8.5), guidance_scale=8.5, device="cpu",
)
student = make_student(config, model)
task = make_task(config, student, make_path(config, student, model), model, open_material(config, model).latents())
state = begin(task.roles, config)
loss = task.loss(range(1)).total
loss.backward()
largest = max(float(p.grad.abs().max()) for p in task.student.parameters() if p.grad is not None)
broken = update(state, state.roles, [Batch(loss.detach(), torch.ones(()), torch.ones(()))])
print(json.dumps({
    "loss": float(loss), "gradient": largest, "broken": float(broken), "peak_gib": measure_peak(),
    "learning": sum(p.numel() for p in task.student.parameters() if p.requires_grad),
    "frozen": str(model.network.backbone.conv_in.weight.dtype),
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "learning"), [(0, 859_520_964 + 256 * 320), (64, 67_252_224)])
def test_one_update_at_full_size(rank, learning, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a red star")
    done = subprocess.run(
        [sys.executable, "-c", ONE_UPDATE, str(tmp_path), str(rank)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert said["learning"] == learning
    assert said["frozen"] == "torch.bfloat16"
    assert np.isfinite(said["loss"])
    assert said["gradient"] > 0
    assert said["broken"] == 0
    assert said["peak_gib"] < 18


ONE_UPDATE_OF_A_FLOW = """
import json, sys
import torch
from fewstep.commands.distill import make_path, make_student
from fewstep.models.families import find_family
from fewstep.recipes.distill import Distill
from fewstep.runs.consistency import make_task
from fewstep.runs.material import open_material
from fewstep.runs.trial import measure_peak
from fewstep.train.loop import begin
from fewstep.train.optimisation import Batch, update

data, family = sys.argv[1], sys.argv[2]
torch.manual_seed(0)
model = find_family(family).random_model(torch.device("cpu"), side=256)
config = Distill(
    teacher="random", data=data, resolution=256, batch_size=1, ema_decay=0.0, frozen_precision="bf16", lora_rank=64,
    guidance_range=(4.5, 4.5), guidance_scale=4.5, gradient_checkpointing=True, device="cpu",
)
student = make_student(config, model)
task = make_task(config, student, make_path(config, student, model), model, open_material(config, model).latents())
state = begin(task.roles, config)
loss = task.loss(range(1)).total
loss.backward()
largest = max(float(p.grad.abs().max()) for p in task.student.parameters() if p.grad is not None)
broken = update(state, state.roles, [Batch(loss.detach(), torch.ones(()), torch.ones(()))])
print(json.dumps({
    "loss": float(loss), "gradient": largest, "broken": float(broken), "peak_gib": measure_peak(),
    "base": sum(p.numel() for p in model.network.backbone.parameters() if not p.requires_grad),
}))
"""


@pytest.mark.slow
def test_one_update_of_stable_diffusion_3_5_medium(tmp_path):
    """A LoRA's, at 256 pixels, within 20 GiB."""
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a red star")
    done = subprocess.run(
        [sys.executable, "-c", ONE_UPDATE_OF_A_FLOW, str(tmp_path), "sd3"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    print(said)
    assert 2.2e9 < said["base"] < 2.3e9
    assert np.isfinite(said["loss"])
    assert said["gradient"] > 0
    assert said["broken"] == 0
    assert said["peak_gib"] < 20
