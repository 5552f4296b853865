"""Every command takes a flow transformer: what one writes is what the next one takes."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import UserError
from fewstep.models.card import LORA_FILE
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import KOHYA_FILE

GUIDED = ("--guidance-range", 4, 4, "--guidance-scale", 4)
EVERYWHERE = ("--guided-from", 0)


@pytest.fixture(scope="module")
def tour(flow, flow_pictures, fewstep_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    small = ("--steps", 2, "--batch-size", 2, "--log-every", 1, "--data", flow_pictures, "--resolution", 64)

    def run(name, command, *arguments):
        done = fewstep_command(command, *arguments, "--out", folder / name)
        assert done.returncode == 0, done.stderr
        return done.stdout

    few_step = ("scenes", "--teacher", flow, *GUIDED, *EVERYWHERE, *small, "--sample-every", 0)
    said = {
        "lora": run("lora", "distill", *few_step, "--lora-rank", 2, "--sample-every", 2),
        "any-step": run("any-step", "distill", *few_step, "--lora-rank", 2, "--method", "any-step", "--skip", 125),
        "whole": run("whole", "distill", *few_step),
        "whole-any-step": run("whole-any-step", "distill", *few_step, "--method", "any-step", "--skip", 125),
        "prepared": run("prepared", "prepare", "--model", flow, "--data", flow_pictures, "--resolution", 64),
        "of-prepared": run("of-prepared", "distill", *few_step, "--data", folder / "prepared"),
        "style": run("style", "train-lora", "scenes", "--model", flow, *small, "--lr", 0.1, "--warmup-steps", 0),
        "tuned": run(
            "tuned", "finetune", "scenes", "--model", folder / "whole" / "model", *GUIDED, *small, "--sample-every", 0
        ),
    }  # fmt: skip
    loras = ("--lora", folder / "lora" / "model", "--lora", f"{folder / 'style' / 'model'}:0.8")
    said["combined"] = run("combined", "combine", "--base", flow, *loras)
    said["merged"] = run("merged", "combine", "--base", flow, *loras, "--merged")
    return folder, loras, said


def paint(fewstep_command, out, *arguments):
    done = fewstep_command("generate", "--prompt", "a red star", "--seed", 3, "--steps", 3, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    (picture,) = out.iterdir()
    return np.asarray(Image.open(picture), dtype=int)


def test_loras_apart_combined_and_merged_paint_the_same(flow, tour, fewstep_command, tmp_path):
    folder, loras, said = tour
    apart = paint(fewstep_command, tmp_path / "a", "--model", flow, *loras)
    for i, model in enumerate((folder / "combined", folder / "merged")):
        assert np.abs(apart - paint(fewstep_command, tmp_path / str(i), "--model", model)).max() <= 2
    alone = paint(fewstep_command, tmp_path / "alone", "--model", folder / "lora" / "model")
    assert np.abs(apart - alone).max() > 0
    for name in ("lora", "style", "combined"):
        assert "largest difference 0" in said[name]


def test_a_lora_is_written_in_the_spelling_that_all_tools_read_and_in_kohyas_where_any_does(flow, tour):
    folder, _, _ = tour
    kohya = load_latent_model(flow, torch.device("cpu")).family.lora.kohya_modules
    for place in (folder / "lora" / "model", folder / "combined"):
        written = sorted(path.name for path in place.glob("*.safetensors"))
        assert written == ([LORA_FILE] if kohya is None else [KOHYA_FILE, LORA_FILE])


@pytest.mark.parametrize("name", ["whole", "tuned", "of-prepared", "any-step", "whole-any-step"])
def test_what_was_made_paints(name, tour, fewstep_command, tmp_path):
    picture = paint(fewstep_command, tmp_path / "a", "--model", tour[0] / name / "model")
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1


def test_painting_starts_from_a_picture(tour, flow_pictures, fewstep_command, tmp_path):
    model = ("--model", tour[0] / "whole" / "model")
    fresh = paint(fewstep_command, tmp_path / "a", *model)
    begun = paint(fewstep_command, tmp_path / "b", *model, "--init-image", flow_pictures / "0.png", "--strength", 0.5)
    assert np.abs(fresh - begun).max() > 2


def test_each_says_what_it_is(flow, tour, fewstep_command):
    folder, _, _ = tour
    teacher = fewstep_command("inspect", flow).stdout
    assert "parameterisation: flow_prediction" in teacher
    assert "make it few-step" in teacher
    assert "fewstep.method: LCM-LoRA" in fewstep_command("inspect", folder / "lora" / "model").stdout
    assert "paint with it" in fewstep_command("inspect", folder / "whole" / "model").stdout


def test_its_speed_is_measured(tour, fewstep_command, tmp_path):
    done = fewstep_command(
        "bench", "generate", "--model", tour[0] / "whole" / "model", "--rounds", 1, "--json", tmp_path / "bench.json"
    )
    assert done.returncode == 0, done.stderr


def test_what_it_has_no_place_for_is_refused_before_a_run_begins(flow, flow_pictures, fewstep_command, tmp_path):
    common = ("distill", "scenes", "--teacher", flow, "--data", flow_pictures, "--resolution", 64, "--steps", 1)
    several = {("--guided-from", 0, "--guidance-range", 2, 9): "has no input for guidance and guidance_range is 2 to 9"}
    inside = {
        (*GUIDED, *EVERYWHERE, "--method", "guided-distill"): "is told its guidance already",
        (*GUIDED, "--guided-from", 300): "guided_from is 300",
    }  # fmt: skip
    told = load_latent_model(flow, torch.device("cpu")).family.guided_inside
    for more, said in {
        **(inside if told else several),
        (*GUIDED, "--prediction-type", "epsilon"): "is a flow, for which --prediction-type epsilon means nothing",
        (*GUIDED, "--zero-snr"): "is a flow, for which --zero-snr True means nothing",
    }.items():  # fmt: skip
        done = fewstep_command(*common, *more, "--out", tmp_path / "run")
        assert done.returncode == 2
        assert said in done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_karras_sigmas": True}, "paints at Karras' times"),
        ({"_class_name": "DDIMScheduler"}, "has a DDIMScheduler around the network of a flow"),
        ({"shift": 0.0, "flow_shift": 0.0}, "no usable shift"),
        ({"shift": "three", "flow_shift": "three"}, "shift 'three'"),
        ({"num_train_timesteps": 100}, "flows with 1000 are read"),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, "max_shift": None},
            "has max_shift None",
        ),
    ],
)
def test_a_scheduler_that_states_no_flow_is_refused(change, said, flow, tmp_path):
    for each in flow.iterdir():
        if each.name != "scheduler":
            copy = shutil.copytree if each.is_dir() else shutil.copy
            copy(each, tmp_path / each.name)
    (tmp_path / "scheduler").mkdir()
    config = json.loads((flow / "scheduler" / "scheduler_config.json").read_text())
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(config | {"use_dynamic_shifting": False} | change)
    )
    with pytest.raises(UserError, match=said):
        load_latent_model(tmp_path, torch.device("cpu"))


def test_an_unfinished_run_paints_pictures_of_its_own_size(flow, flow_pictures, fewstep_command, tmp_path):
    """As the model that it ends with does: two of the families say the size nowhere but in the card."""
    few_step = (*GUIDED, *EVERYWHERE, "--data", flow_pictures, "--resolution", 96, "--batch-size", 2)
    few = ("--steps", 1, "--ema-decay", 0, "--checkpoint-every", 1, "--sample-every", 0)
    done = fewstep_command("distill", "scenes", "--teacher", flow, *few_step, *few, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    ended = paint(fewstep_command, tmp_path / "ended", "--model", tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "model")
    unfinished = paint(fewstep_command, tmp_path / "unfinished", "--model", tmp_path / "run")
    assert unfinished.shape == ended.shape == (96, 96, 3)
    assert np.abs(unfinished - ended).max() <= 2
