"""Painting in half precision: what is kept in it, and how near its pictures are to diffusers' in the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import LatentConsistencyModelPipeline
from PIL import Image

import fewstep
from fewstep import assets
from fewstep.cli import main
from fewstep.commands.inspect import describe
from fewstep.data.infotext import read_infotext
from fewstep.data.worlds.scenes import Scenes
from fewstep.errors import UserError
from fewstep.evaluate.config import Evaluate
from fewstep.evaluate.studio import EvaluationStudio
from fewstep.models import scenes_model
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import DIFFUSERS_FILE, Pair, write_lora
from fewstep.models.pipeline_loading import load_pipeline
from fewstep.precision import Storage
from miniatures import save_miniature
from single_files import save_single_file

CPU = torch.device("cpu")
PROMPTS = ["a red star", "a blue heart", "a large green circle above a small yellow square", "a pink moon"]
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def levels(images):
    return np.stack([np.asarray(image.convert("RGB")).astype(int) for image in images])


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    """The bundled few-step model with all its parts, as diffusers wants it."""
    folder = shutil.copytree(assets.scenes_lcm(), tmp_path_factory.mktemp("models") / "scenes-lcm")
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(assets.find_part(assets.scenes_lcm(), part), folder / part)
    return folder


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    """A miniature of Stable Diffusion XL as a folder and as a file, whose autoencoder does not want fp32."""
    root = tmp_path_factory.mktemp("xl")
    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    folder = save_miniature("sdxl", tokenizer, root / "sdxl")
    config = folder / "vae/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": False}))
    return folder, save_single_file("sdxl", folder, root / "sdxl.safetensors")


@pytest.mark.parametrize("steps", [1, 4])
def test_pictures_in_bf16_are_diffusers_in_bf16(whole_folder, steps):
    pipe = fewstep.load(whole_folder, precision="bf16")
    theirs = LatentConsistencyModelPipeline.from_pretrained(whole_folder, torch_dtype=torch.bfloat16)
    theirs.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(3 + i) for i in range(len(PROMPTS))]
    painted = theirs(
        PROMPTS, num_inference_steps=steps, guidance_scale=pipe.guidance_scale, generator=generators
    ).images  # fmt: skip
    difference = abs(levels(pipe(PROMPTS, steps=steps, seed=3)) - levels(painted))
    # diffusers carries latents in bf16 from step to step: a few pixels of edges are further off.
    assert (difference <= 2).mean() > 0.997
    assert difference.mean() < 0.4
    whole = levels(fewstep.load(whole_folder)(PROMPTS, steps=steps, seed=3))
    assert abs(levels(pipe(PROMPTS, steps=steps, seed=3)) - whole).mean() < abs(levels(painted) - whole).mean()


@pytest.mark.parametrize("name", HALF)
def test_networks_and_text_encoders_are_kept_in_it_and_schedules_are_not(whole_folder, name):
    model = load_pipeline(whole_folder, "cpu", precision=name).model
    for module in model.parts.values():
        assert {value.dtype for value in module.parameters()} == {HALF[name]}
    assert model.codec.autoencoder.dtype == torch.float32  # it says force_upcast, as diffusers takes for granted
    cond = model.conditioner.encode(["a red star"])
    z = torch.randn(1, *model.codec.shape(model.resolution))
    answer = model.network(z, torch.tensor([999]), cond, torch.tensor([2.0]))
    assert answer.z_0.dtype == answer.epsilon.dtype == model.codec.decode(z).dtype == torch.float32
    assert load_pipeline(whole_folder, "cpu").precision == "fp32"  # what auto is on a processor


@pytest.mark.parametrize("source", ["folder", "file"])
def test_an_autoencoder_that_half_precision_does_no_harm_is_kept_in_bf16(xl, source):
    folder, file = xl
    where, config = (folder, "") if source == "folder" else (file, str(folder))
    for name, dtype in HALF.items():
        model = load_latent_model(where, CPU, config, dtype=dtype)
        assert model.codec.autoencoder.dtype == torch.bfloat16, name
        assert {value.dtype for value in model.network.parameters()} == {dtype}
        mean, std = model.codec.encode(torch.zeros(1, 3, 16, 16))
        assert mean.dtype == std.dtype == model.codec.decode(mean).dtype == torch.float32
    exact = load_latent_model(where, CPU, config)
    assert exact.codec.autoencoder.dtype == torch.float32


def test_a_card_without_bf16_keeps_such_an_autoencoder_in_fp16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert Storage(torch.device("cuda"), torch.float16).codec_dtype == torch.float16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    assert Storage(torch.device("cuda"), torch.float16).codec_dtype == torch.bfloat16


def test_weights_in_fp32_of_a_file_with_a_half_precision_model_are_not_rounded_on_the_way(xl):
    """An autoencoder that wants fp32 is not read in bf16 first."""
    folder, file = xl
    config = folder / "vae/config.json"
    before = config.read_text()
    config.write_text(before.replace('"force_upcast": false', '"force_upcast": true'))
    half, exact = (load_latent_model(file, CPU, str(folder), dtype=each) for each in (torch.bfloat16, torch.float32))
    config.write_text(before)
    held = exact.codec.autoencoder.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in half.codec.autoencoder.state_dict().items())


def test_loras_act_in_half_precision_as_they_do_in_fp32(tmp_path):
    teacher = load_latent_model("scenes-lcm", CPU)
    weight = teacher.parts["unet"].get_submodule(QUERY).weight
    torch.manual_seed(0)
    pair = Pair(3 * torch.randn(4, weight.shape[1]), 3 * torch.randn(weight.shape[0], 4), 4.0)
    write_lora(tmp_path, {f"unet.{QUERY}": pair}, {}, teacher.parts, teacher.family.lora)
    lora = [(tmp_path / DIFFUSERS_FILE, 1.0)]
    plain = levels(load_pipeline("scenes-lcm", "cpu")(PROMPTS, steps=2))
    exact = levels(load_pipeline("scenes-lcm", "cpu", lora)(PROMPTS, steps=2))
    half = levels(load_pipeline("scenes-lcm", "cpu", lora, precision="bf16")(PROMPTS, steps=2))
    assert abs(half - exact).mean() < 0.2 * abs(plain - exact).mean()


def test_student_and_teacher_share_their_encoders_in_an_evaluation(tmp_path):
    studio = EvaluationStudio(Evaluate(model="scenes-lcm", out=tmp_path, n=128, device="cpu", precision="bf16"))
    teacher, student = studio.teacher, studio.student.model
    assert teacher.codec.autoencoder is student.codec.autoencoder
    for name, module in teacher.conditioner.encoders.items():
        assert module is student.conditioner.encoders[name]
    assert teacher.network.backbone is not student.network.backbone
    assert {value.dtype for value in teacher.network.parameters()} == {torch.bfloat16}
    other = load_latent_model("scenes", CPU)
    with torch.no_grad():
        next(other.codec.autoencoder.parameters()).add_(1)
    assert other.share_encoders(student).codec.autoencoder is other.codec.autoencoder


def test_the_command_paints_in_it_and_writes_it_down(tmp_path):
    for name in ("fp32", "bf16"):
        main(["generate", "--prompt", "a red star", "--precision", name, "--out", str(tmp_path / name)])
    (whole,), (half,) = (list((tmp_path / name).iterdir()) for name in ("fp32", "bf16"))
    assert 0 < abs(levels([Image.open(whole)]) - levels([Image.open(half)])).mean() < 1
    assert "Precision" not in read_infotext(Image.open(whole).info["parameters"]).settings
    repaint = next(line for line in describe(half) if line.startswith("repaint it: "))
    assert "--precision bf16" in repaint


def test_an_engine_that_has_no_fp16_says_so():
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match="computes in fp32 or bf16"):
        load_pipeline("scenes-lcm", "cpu", engine="openvino", precision="fp16")
