"""What a model says of itself and what a person says of it: schedules, predictions, the scale of latents."""

import json
import logging

import pytest
import safetensors.torch
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from loading_refused import refusal
from PIL import Image

from fewstep.commands.inspect import describe
from fewstep.errors import UserError
from fewstep.models.codec import Codec
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import KOHYA_FILE
from fewstep.models.options import Overrides
from fewstep.models.pipeline_loading import load_pipeline

CPU = torch.device("cpu")
PROMPT = "a red star"


# Schedules


def test_a_single_file_holds_what_it_says_of_itself(miniatures, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder, whole = miniatures["sd15"]  # whose configuration says epsilon
    tensors = safetensors.torch.load_file(whole)
    marks = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    cases = [
        (marks, {}, "v_prediction", True), ({"v_pred": marks["v_pred"]}, {}, "v_prediction", False),
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction", False), ({}, {}, "epsilon", False),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction", False),
    ]  # fmt: skip
    for more, header, kind, zero in cases:
        safetensors.torch.save_file({**tensors, **more}, tmp_path / "one.safetensors", header)
        caplog.clear()
        model = load_latent_model(tmp_path / "one.safetensors", CPU, str(folder))
        assert (model.network.parameterisation, model.schedule.has_zero_terminal_snr) == (kind, zero)
        assert model.scheduler_config["prediction_type"] == kind
        assumed = "epsilon is assumed" in caplog.text
        assert assumed == (kind == "epsilon")
        assert assumed or f"says prediction_type {kind}, and its configuration epsilon" in caplog.text


def test_inspect_tells_what_a_single_file_says_of_itself(miniatures, tmp_path):
    tensors = safetensors.torch.load_file(miniatures["sd15"][1])
    safetensors.torch.save_file(
        {**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, tmp_path / "v.safetensors"
    )
    lines = "\n".join(describe(tmp_path / "v.safetensors"))
    assert "the file says: prediction_type v_prediction, rescale_betas_zero_snr True" in lines
    assert "parameterisation" not in lines
    assert "parameterisation, and resolution: not in the file" in "\n".join(describe(miniatures["sd15"][1]))


def test_what_a_person_says_decides(miniatures, copy, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    said = Overrides(prediction_type="v_prediction", zero_snr=True)
    folder, file = miniatures["sd15"]
    for source, config in ((folder, ""), (file, str(folder))):
        model = load_latent_model(source, CPU, config, said)
        assert model.network.parameterisation == "v_prediction"
        assert model.schedule.has_zero_terminal_snr
        assert model.scheduler_config["rescale_betas_zero_snr"] is True
    assert "assumed" not in caplog.text
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({**tensors, "v_pred": torch.zeros(0)}, tmp_path / "v.safetensors")
    said = Overrides(prediction_type="epsilon")
    assert load_latent_model(tmp_path / "v.safetensors", CPU, str(folder), said).network.parameterisation == "epsilon"
    assert "is followed" not in caplog.text
    silent = copy()
    config = json.loads((silent / "scheduler" / "scheduler_config.json").read_text())
    del config["prediction_type"]
    (silent / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    load_latent_model(silent, CPU)
    assert "does not say what its network predicts; epsilon is assumed" in caplog.text


SCHEDULERS = {
    "EDM": ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}, "which has no betas"),
    "EDM Euler": ({"_class_name": "EDMEulerScheduler"}, "which has no betas"),
    "flow": ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, "which is a flow's and not of this network"),
    "flow among betas": (
        {"_class_name": "DPMSolverMultistepScheduler", "beta_start": 0.1, "use_flow_sigmas": True}, "flow matching",
    ),
    "noise levels": (
        {"_class_name": "EulerDiscreteScheduler", "timestep_type": "continuous"}, "noise levels and no times",
    ),
    "consistency": ({"_class_name": "CMStochasticIterativeScheduler"}, "which has no betas"),
    "no class": ({"num_train_timesteps": 1000}, "none is named"),
    "unknown class": ({"_class_name": "MyScheduler"}, "MyScheduler"),
}  # fmt: skip


@pytest.mark.parametrize("case", SCHEDULERS)
def test_a_scheduler_without_betas_is_refused(case, copy, edit_json):
    config, said = SCHEDULERS[case]
    folder = copy()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    edit_json(folder / "model_index.json", scheduler=["diffusers", config.get("_class_name")])
    assert said in refusal(folder)


def test_what_a_configuration_leaves_out_is_its_own_classs_default(copy):
    folder = copy()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "LCMScheduler"}))
    mine = load_latent_model(folder, CPU).schedule.alphas
    theirs = LCMScheduler.from_pretrained(folder, subfolder="scheduler").alphas_cumprod.sqrt()
    torch.testing.assert_close(mine.float(), theirs)


def test_a_scheduler_is_read_that_diffusers_wrote_with_an_infinity(copy, edit_json):
    folder = copy()
    before = load_latent_model(folder, CPU).schedule
    DPMSolverMultistepScheduler.from_pretrained(folder, subfolder="scheduler").save_pretrained(folder / "scheduler")
    edit_json(folder / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    torch.testing.assert_close(load_latent_model(folder, CPU).schedule.alphas, before.alphas)


def test_the_index_names_the_scheduler_that_its_configuration_does_not(copy, edit_json):
    folder = copy()
    file = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(file.read_text())
    del config["_class_name"]
    file.write_text(json.dumps(config))
    assert load_latent_model(folder, CPU).scheduler_config["_class_name"] == "DDIMScheduler"
    edit_json(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    assert "EDMEulerScheduler, which has no betas" in refusal(folder)


# Latents


def test_latents_with_a_mean_and_a_deviation_are_painted_as_diffusers_does(copy, edit_json):
    folder = copy("sdxl")
    given = {"latents_mean": [-1.6, 2.3, 0.7, 0.1], "latents_std": [8.4, 5.9, 3.3, 9.6]}
    edit_json(folder / "vae" / "config.json", **given, scaling_factor=0.5)
    codec = load_latent_model(folder, CPU).codec
    assert codec.describe().items() >= given.items()
    vae, z = codec.autoencoder, torch.randn(2, 4, 8, 8)
    mean, std = (torch.tensor(each).view(1, 4, 1, 1) for each in given.values())
    torch.testing.assert_close(codec.decode(z), vae.decode(z * std / 0.5 + mean).sample)
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    torch.testing.assert_close(codec.encode(pixels)[0], (posterior.mean - mean) * 0.5 / std)
    torch.testing.assert_close(codec.encode(pixels)[1], posterior.std * 0.5 / std)
    with pytest.raises(UserError, match="leave --tiny-decoder out"):
        Codec(vae).with_tiny_decoder(vae)
    edit_json(folder / "vae" / "config.json", latents_std=None)
    assert "has latents_std None in vae/config.json; expected 4 numbers" in refusal(folder)


def test_a_mean_that_no_pipeline_heeds_is_refused(copy, edit_json):
    folder = copy()
    edit_json(folder / "vae" / "config.json", latents_mean=[0.1] * 4, latents_std=[1.0] * 4)
    assert "pipelines ignore" in refusal(folder)


# What a person says, through the commands


def test_what_was_said_of_a_teacher_is_said_of_it_again(miniatures, tmp_path, fewstep_command):
    """A run's LoRA is painted on the teacher as it was trained on it."""
    folder, file = miniatures["sd15"]
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (16, 16), "red").save(tmp_path / "pictures" / "0.png")
    (tmp_path / "pictures" / "0.txt").write_text(PROMPT)
    done = fewstep_command(
        "distill", "--teacher", file, "--base-config", folder, "--prediction-type", "v_prediction", "--zero-snr",
        "--data", "pictures", "--out", "run", "--steps", 1, "--batch-size", 1, "--lora-rank", 2, "--sample-every", 0,
        "--guidance-range", 8, 8, "--guidance-scale", 8, "--device", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is assumed" not in done.stderr
    model = load_pipeline(tmp_path / "run" / "model", "cpu").model
    assert model.network.parameterisation == "v_prediction"
    assert model.schedule.has_zero_terminal_snr
    advice = fewstep_command("inspect", tmp_path / "run").stdout
    assert f"generate --model {tmp_path / 'run' / 'model'} --prompt" in advice  # by its header, as above
    advice = fewstep_command("inspect", tmp_path / "run" / "model" / KOHYA_FILE).stdout
    assert "--prediction-type v_prediction --zero-snr" in advice
    painted = fewstep_command(
        "generate", "--model", folder, "--unet", tmp_path / "alone", "--prompt", PROMPT, "--out", tmp_path / "out"
    )
    assert (painted.returncode, "is neither a file nor a folder nor a Hub id" in painted.stderr) == (2, True)
