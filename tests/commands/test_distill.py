"""`distill` and `generate` through the real command, on random weights and on real photographs."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_images

import fewstep
from warm_command import Warm

SMALL = ("--batch-size", 4, "--pictures", 24, "--log-every", 1, "--sample-every", 0)


def unet_of(run):
    return load_file(run / "model" / "unet" / "diffusion_pytorch_model.safetensors")


def same(first, second):
    one, other = unet_of(first), unet_of(second)
    assert one.keys() == other.keys()
    return all((one[name] == other[name]).all() for name in one)


def test_a_run_leaves_what_it_promises(random_student, random_teacher):
    config = yaml.safe_load((random_student / "config.yaml").read_text())
    assert config["teacher"] == str(random_teacher)
    assert config["steps"] == 3
    assert config["made_with"].keys() >= {"fewstep", "torch", "diffusers", "python"}
    lines = [json.loads(line) for line in (random_student / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {path.name for path in (random_student / "samples").iterdir()} == {"step-0000002.png", "step-0000003.png"}
    assert list((random_student / "checkpoints").iterdir())


def test_killed_and_run_again_equals_undisturbed(random_teacher, tmp_path, fewstep_command):
    arguments = [
        "distill", "scenes", "--teacher", random_teacher, "--steps", 9, "--checkpoint-every", 2, *SMALL, "--skip", 20,
        "--keep-checkpoints", 9, "--seed", 3, "--shrink", 0.7,
    ]  # fmt: skip
    assert fewstep_command(*arguments, "--out", tmp_path / "straight").returncode == 0
    killed = Warm([*arguments, "--out", tmp_path / "killed"])
    while killed.process.is_alive() and not (tmp_path / "killed/checkpoints/step-0000004").exists():
        time.sleep(0.02)
    assert killed.process.is_alive(), "it ended before it could be killed"
    killed.process.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "model").exists()
    again = fewstep_command(*arguments, "--out", tmp_path / "killed")
    assert again.returncode == 0, again.stderr
    assert "distil 4/9" not in again.stderr  # it did not start over
    assert "distil: goes on after update" in again.stderr
    assert "distil 9/9" in again.stderr
    assert same(tmp_path / "straight", tmp_path / "killed")
    states = [
        load_file(tmp_path / run / "checkpoints" / "step-0000009" / "state.safetensors")
        for run in ("straight", "killed")
    ]
    assert states[0].keys() == states[1].keys()
    assert all((states[0][name] == states[1][name]).all() for name in states[0])


def test_what_an_earlier_version_did_not_record_is_as_it_is_by_default(random_student, fewstep_command, tmp_path):
    run = shutil.copytree(random_student, tmp_path / "run")
    held = yaml.safe_load((run / "config.yaml").read_text())
    new = ("caption_lines", "folder_repeats", "prediction_type", "zero_snr", "unet")
    older = {name: value for name, value in held.items() if name not in new} | {"read_ahead": 0, "out": str(run)}
    (run / "config.yaml").write_text(yaml.safe_dump(older))
    done = fewstep_command("distill", run / "config.yaml", "--out", run)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stdout
    done = fewstep_command("distill", run / "config.yaml", "--out", run, "--caption-lines", "first")
    assert "caption_lines is join there and first here" in done.stderr


def test_a_finished_run_says_so_and_trains_no_more(random_student, fewstep_command):
    before = {path: path.stat().st_mtime_ns for path in random_student.rglob("*")}
    done = fewstep_command("distill", random_student / "config.yaml", "--out", random_student)
    assert done.returncode == 0, done.stderr
    assert f"{random_student} is finished: its model is {random_student / 'model'}" in done.stdout
    assert "distil" not in done.stderr
    assert {path: path.stat().st_mtime_ns for path in random_student.rglob("*")} == before


def test_another_configuration_is_refused_in_the_same_folder(random_student, random_teacher, fewstep_command):
    done = fewstep_command("distill", "scenes", "--teacher", random_teacher, "--out", random_student, "--steps", 4)
    assert done.returncode == 2
    assert "already holds another run" in done.stderr
    assert "steps is 3 there and 4 here" in done.stderr


def test_a_run_can_be_repeated_from_its_configuration(random_student, tmp_path, fewstep_command):
    done = fewstep_command("distill", random_student / "config.yaml", "--out", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    assert same(random_student, tmp_path / "again")


def test_real_photographs_with_captions(random_teacher, tmp_path, fewstep_command):
    """JPEGs of several sizes and shapes, one of them broken and one without a caption."""
    folder = tmp_path / "photos"
    folder.mkdir()
    photographs = [Image.fromarray(image) for image in load_sample_images().images]
    boxes = [(0, 0, 640, 427), (100, 50, 400, 420), (10, 200, 630, 300), (300, 100, 380, 180), (0, 0, 427, 427)]
    for i, box in enumerate(boxes):
        photographs[i % 2].crop(box).save(folder / f"{i}.jpg", quality=80 + i)
        (folder / f"{i}.txt").write_text(("a temple in China", "a pink dahlia")[i % 2])
    (folder / "broken.jpg").write_bytes((folder / "0.jpg").read_bytes()[:2000])
    (folder / "broken.txt").write_text("cut short")
    (folder / "silent.jpg").write_bytes((folder / "0.jpg").read_bytes())
    run = tmp_path / "run"
    done = fewstep_command(
        "distill", "scenes", "--teacher", random_teacher, "--data", folder, "--out", run, "--steps", 2, *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert "7 pictures found, 5 used, 2 dropped (1 broken picture, 1 without caption)" in done.stdout
    assert len(fewstep.load(run / "model")("a pink dahlia", steps=1)) == 1
    wider = fewstep_command(
        "distill", "scenes", "--teacher", random_teacher, "--data", folder, "--out", tmp_path / "wide", "--steps", 1,
        "--resolution", 128, *SMALL,
    )  # fmt: skip
    assert wider.returncode == 0, wider.stderr
    assert fewstep.load(tmp_path / "wide" / "model")("a pink dahlia", steps=1)[0].size == (128, 128)


def test_generate_writes_pictures_that_say_what_made_them(random_student, tmp_path, fewstep_command):
    prompt = "a small red star above a blue ring on a white background"
    done = fewstep_command(
        "generate", "--model", random_student / "model", "--prompt", prompt, "--prompt", "ein grüner Stern",
        "--num-inference-steps", 2, "--seed", 7, "--guidance-scale", 6, "--count", 2, "--out", tmp_path / "pictures",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (warned,) = (line for line in done.stderr.splitlines() if line.startswith("warning: "))
    assert 'never learnt the words "ein", "grüner", "stern"' in warned
    paths = [Path(line) for line in done.stdout.splitlines() if line != warned]
    assert len(paths) == 4
    assert all(path.exists() for path in paths)
    said = [Image.open(path).info["parameters"].splitlines() for path in paths]
    assert [lines[0] for lines in said] == [prompt, prompt, "ein grüner Stern", "ein grüner Stern"]
    assert [re.search(r"Seed: (\d+)", lines[1])[1] for lines in said] == ["7", "8", "9", "10"]
    assert said[0][1].startswith("Steps: 2, Sampler: LCM, CFG scale: 6, Seed: 7, Size: 64x64, Model: student")
    expected = fewstep.load(random_student / "model")(prompt, steps=2, seed=7, guidance_scale=6)[0]
    assert np.abs(np.asarray(Image.open(paths[0]), dtype=int) - np.asarray(expected)).max() <= 1
    again = fewstep_command(
        "generate", "--model", random_student / "model", "--prompt", prompt, "--steps", 2, "--seed", 7,
        "--guidance-scale", 6, "--out", tmp_path / "pictures", "--negative-prompt", "blurry", "--batch-size", 1,
    )  # fmt: skip
    assert "warning: this model has guidance built in and ignores the negative prompt" in again.stderr
    second = Path(again.stdout.splitlines()[-1])
    assert second not in paths  # nothing is overwritten
    assert np.abs(np.asarray(Image.open(second), dtype=int) - np.asarray(expected)).max() <= 1
    assert "Negative prompt: blurry" in Image.open(second).info["parameters"]


@pytest.mark.parametrize("steps", [0, 51])
def test_steps_outside_1_to_50(random_student, fewstep_command, steps):
    done = fewstep_command("generate", "--model", random_student / "model", "--prompt", "a", "--steps", steps)
    assert done.returncode == 2
    assert f"steps is {steps}; allowed: 1 to 50" in done.stderr
