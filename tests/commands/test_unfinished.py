"""A run that has not ended is painted with from its newest whole checkpoint, and so is any checkpoint of it."""

import hashlib
import json
import logging
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

import fewstep
from fewstep.errors import UserError
from fewstep.models.lora.source import parse_lora
from fewstep.runs.unfinished import find_checkpoint, load_painter

PROMPT = "a red star"


@pytest.fixture(scope="module")
def lora_run(random_teacher, tmp_path_factory, fewstep_command):
    """After three updates with an average, and a checkpoint after each of the last two."""
    out = tmp_path_factory.mktemp("runs") / "lora"
    done = fewstep_command(
        "distill", "scenes-lora", "--teacher", random_teacher, "--data", "scenes", "--out", out, "--steps", 3,
        "--batch-size", 4, "--pictures", 24, "--lora-rank", 2, "--lora-alpha", 5, "--lr", 0.01, "--ema-decay", 0.5,
        "--checkpoint-every", 1, "--sample-every", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def style_run(random_teacher, tmp_path_factory, fewstep_command):
    out = tmp_path_factory.mktemp("runs") / "style"
    done = fewstep_command(
        "train-lora", "--model", random_teacher, "--data", "scenes-leaning", "--out", out, "--steps", 1, "--batch-size",
        2, "--pictures", 4, "--lora-rank", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def unfinished(run, tmp_path):
    return shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("model"))


def paint(pipeline):
    return np.asarray(pipeline(PROMPT, steps=2, seed=3)[0], dtype=int)


@pytest.mark.parametrize("kind", ["lora_run", "random_student"])
def test_the_last_checkpoint_paints_what_the_finished_run_paints(kind, request, tmp_path, caplog):
    run = request.getfixturevalue(kind)
    going = unfinished(run, tmp_path)
    with caplog.at_level(logging.WARNING, "fewstep"):
        pipeline = fewstep.load(going, "cpu")
    assert caplog.messages == [f"{going} has not ended: painting from step-0000003 of 3 updates"]
    whole = fewstep.load(run, "cpu")
    painting, weights = (each.model.network.backbone.state_dict().values() for each in (pipeline, whole))
    assert all(torch.equal(*pair) for pair in zip(painting, weights, strict=True))
    # Weights that lie elsewhere in memory, as those of a mapped file do, may be multiplied in another order.
    assert abs(paint(pipeline) - paint(whole)).max() <= 1
    assert (pipeline.guidance_scale, pipeline.grid_size) == (whole.guidance_scale, whole.grid_size)


def test_an_earlier_checkpoint_and_a_spoilt_one(lora_run, tmp_path, capsys):
    going = unfinished(lora_run, tmp_path)
    last, before = going / "checkpoints" / "step-0000003", going / "checkpoints" / "step-0000002"
    pictures = [paint(load_painter(place, "cpu")) for place in (last, before)]
    assert not np.array_equal(*pictures)
    (last / "state.safetensors").write_bytes(b"no more")
    assert find_checkpoint(going) == before
    assert "not whole: step-0000003" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"step-0000003 is not whole \(state.safetensors is damaged\)"):
        load_painter(last, "cpu")


def test_a_run_without_a_checkpoint_says_when_it_writes_one(lora_run, tmp_path):
    going = unfinished(lora_run, tmp_path)
    shutil.rmtree(going / "checkpoints")
    with pytest.raises(UserError, match="that stopped before its first checkpoint; it goes on with: fewstep "):
        load_painter(going, "cpu")


def test_a_style_that_is_being_trained_is_painted_with_an_lcm_lora(random_teacher, style_run, lora_run, tmp_path):
    going = unfinished(style_run, tmp_path)
    lcm = parse_lora(str(lora_run))
    with pytest.raises(UserError, match=r"is a train-lora run that stopped at update .* beside a few-step model"):
        load_painter(going, "cpu")
    styled = load_painter(going, "cpu", [lcm])
    asked = load_painter(random_teacher, "cpu", [lcm, parse_lora(str(style_run))])
    assert np.abs(paint(styled) - paint(asked)).max() <= 1
    with pytest.raises(UserError, match=r"that stopped at update .* it goes on with: fewstep train-lora"):
        parse_lora(f"{going}:0.5")


def test_generate_takes_it(lora_run, tmp_path, fewstep_command):
    going = unfinished(lora_run, tmp_path)
    done = fewstep_command("generate", "--model", going, "--prompt", PROMPT, "--steps", 1, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "painting from step-0000003" in done.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


def seal(checkpoint):
    """Writes hashes that are right."""
    files = {}
    for name in ("state.safetensors", "state.json"):
        content = (checkpoint / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    content = {"configuration": "", "counter": 0, "files": files}
    sha256 = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps({"content": content, "sha256": sha256}, indent=2))


def test_a_sealed_checkpoint_that_is_not_of_the_run_is_named_and_the_one_before_painted(lora_run, tmp_path, capsys):
    going = unfinished(lora_run, tmp_path)
    last, before = (going / "checkpoints" / f"step-000000{number}" for number in (3, 2))
    tensors = safetensors.torch.load_file(last / "state.safetensors")
    safetensors.torch.save_file({name: torch.ones(2, 2, 2) for name in tensors}, last / "state.safetensors")
    seal(last)
    painted, said = paint(load_painter(going, "cpu")), capsys.readouterr().err
    assert "whole and not of this run: step-0000003 (does not fit" in said
    assert np.array_equal(painted, paint(load_painter(before, "cpu")))
    with pytest.raises(UserError, match="step-0000003 does not fit"):
        load_painter(last, "cpu")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"guidance_range": 3}, "has guidance_range 3; expected two numbers"), ({"skip": 0}, "has skip 0"),
        ({"lora_rank": "many"}, "has lora_rank 'many'; expected a number"),
        ({"teacher": ["x"]}, "has teacher .*; expected a text"),
        ({"teacher": "org/name"}, "--allow-download"), ({"data": 3}, "has data 3; expected a text"),
    ],
    ids=str,
)  # fmt: skip
def test_odd_settings_of_a_run_are_named(change, said, lora_run, tmp_path):
    going = unfinished(lora_run, tmp_path)
    settings = yaml.safe_load((going / "config.yaml").read_text())
    (going / "config.yaml").write_text(json.dumps({**settings, **change}))
    with pytest.raises(UserError, match=said):
        load_painter(going, "cpu")
