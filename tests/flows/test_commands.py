"""Every command takes a flow transformer: what one writes is what the next one takes."""

import functools
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.commands import bench_generate
from fewstep.errors import UserError
from fewstep.models.card import LORA_FILE
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.file import KOHYA_FILE
from flow_loading import copy_model
from flow_runs import GUIDED, fill_loras, make_run, run_here

EVERYWHERE = ("--guided-from", 0)


@pytest.fixture
def tour(flow, flow_pictures):
    """Gives runs by name."""
    return functools.partial(make_run, flow, flow_pictures)


@pytest.fixture
def loras(flow, flow_pictures):
    return fill_loras(flow, flow_pictures)


def paint(out, *arguments):
    run_here("generate", "--prompt", "a red star", "--seed", 3, "--steps", 3, "--out", out, *arguments)
    (picture,) = out.iterdir()
    return np.asarray(Image.open(picture), dtype=int)


def test_loras_apart_combined_and_merged_paint_the_same(flow, tour, loras, tmp_path):
    apart = paint(tmp_path / "a", "--model", flow, *loras)
    for i, model in enumerate((tour("combined").folder, tour("merged").folder)):
        assert np.abs(apart - paint(tmp_path / str(i), "--model", model)).max() <= 2
    alone = paint(tmp_path / "alone", "--model", tour("lora").model)
    assert np.abs(apart - alone).max() > 0
    for name in ("lora", "style", "combined"):
        assert "largest difference 0" in tour(name).said


def test_a_lora_is_written_in_the_spelling_that_all_tools_read_and_in_kohyas_where_any_does(flow, tour):
    kohya = copy_model(flow).family.lora.kohya_modules
    for place in (tour("lora").model, tour("combined").folder):
        written = sorted(path.name for path in place.glob("*.safetensors"))
        assert written == ([LORA_FILE] if kohya is None else [KOHYA_FILE, LORA_FILE])


@pytest.mark.parametrize("name", ["whole", "tuned", "of-prepared", "any-step", "whole-any-step"])
def test_what_was_made_paints(name, tour, tmp_path):
    picture = paint(tmp_path / "a", "--model", tour(name).model)
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 1


def test_painting_starts_from_a_picture(tour, flow_pictures, tmp_path):
    model = ("--model", tour("whole").model)
    fresh = paint(tmp_path / "a", *model)
    begun = paint(tmp_path / "b", *model, "--init-image", flow_pictures / "0.png", "--strength", 0.5)
    assert np.abs(fresh - begun).max() > 2


def test_each_says_what_it_is(flow, tour):
    teacher = run_here("inspect", flow)
    assert "parameterisation: flow_prediction" in teacher
    assert "make it few-step" in teacher
    assert "fewstep.method: LCM-LoRA" in run_here("inspect", tour("lora").model)
    assert "paint with it" in run_here("inspect", tour("whole").model)


def test_its_speed_is_measured(tour, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_generate, "matrix_rate", lambda *_: 1e9)  # of the processor, for which it takes a second
    run_here(
        "bench",
        "generate",
        "--model",
        tour("whole").model,
        "--rounds",
        1,
        "--warm-up",
        1,
        "--json",
        tmp_path / "bench.json",
    )
    assert json.loads((tmp_path / "bench.json").read_text())["rows"]


def test_what_it_has_no_place_for_is_refused_before_a_run_begins(flow, flow_pictures, capsys, tmp_path):
    common = ("distill", "scenes", "--teacher", flow, "--data", flow_pictures, "--resolution", 64, "--steps", 1)
    several = {("--guided-from", 0, "--guidance-range", 2, 9): "has no input for guidance and guidance_range is 2 to 9"}
    inside = {
        (*GUIDED, *EVERYWHERE, "--method", "guided-distill"): "is told its guidance already",
        (*GUIDED, "--guided-from", 300): "guided_from is 300",
    }  # fmt: skip
    told, single = copy_model(flow).family.guided_inside, (*GUIDED, *EVERYWHERE)
    for more, said in {
        **(inside if told else several),
        (*single, "--prediction-type", "epsilon"): "is a flow, for which --prediction-type epsilon means nothing",
        (*single, "--zero-snr"): "is a flow, for which --zero-snr True means nothing",
    }.items():  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            run_here(*common, *more, "--out", tmp_path / "run")
        assert said in capsys.readouterr().err
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


def test_an_unfinished_run_paints_pictures_of_its_own_size(tour, tmp_path):
    """As the model that it ends with does: two of the families say the size nowhere but in the card."""
    ended = paint(tmp_path / "ended", "--model", tour("small-whole").model)
    run = shutil.copytree(tour("small-whole").folder, tmp_path / "run")
    shutil.rmtree(run / "model")
    unfinished = paint(tmp_path / "unfinished", "--model", run)
    assert unfinished.shape == ended.shape == (32, 32, 3)
    assert np.abs(unfinished - ended).max() <= 2
