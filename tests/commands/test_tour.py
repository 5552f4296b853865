"""The commands of the tour, in miniature: each one's files are what the next one takes."""

import dataclasses
import json
import re

import numpy as np
import pytest
import safetensors.torch
from PIL import Image

from fewstep.commands.distill import distill
from fewstep.models.card import read_card
from fewstep.models.lora.file import DIFFUSERS_FILE, KOHYA_FILE
from fewstep.models.readme import model_card
from fewstep.recipes.distill import Distill

SMALL = ("--steps", 2, "--batch-size", 2, "--pictures", 8, "--log-every", 1)


@pytest.fixture(scope="module")
def tour(random_teacher, random_student, fewstep_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")

    def run(*arguments):
        done = fewstep_command(*arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = {
        "lcm-lora": run(
            "distill", "scenes-lora", "--teacher", random_teacher, "--out", folder / "lcm-lora", *SMALL,
            "--sample-every", 2,
        ),
        "style": run(
            "train-lora", "scenes", "--model", random_teacher, "--data", "scenes-leaning",
            "--out", folder / "style", *SMALL, "--lr", 0.1, "--ema-decay", 0, "--warmup-steps", 0,
        ),
        "tuned": run(
            "finetune", "scenes", "--model", random_student / "model", "--data", "scenes-leaning",
            "--out", folder / "tuned", *SMALL,
        ),
    }  # fmt: skip
    loras = ("--lora", folder / "lcm-lora" / "model", "--lora", f"{folder / 'style' / 'model' / KOHYA_FILE}:0.8")
    said["combined"] = run("combine", "--base", random_teacher, *loras, "--out", folder / "combined")
    said["merged"] = run("combine", "--base", random_teacher, *loras, "--merged", "--out", folder / "merged")
    return folder, random_teacher, loras, said


def paint(fewstep_command, out, *arguments):
    done = fewstep_command("generate", "--prompt", "a red star", "--seed", 3, "--out", out, *arguments)
    assert done.returncode == 0, done.stderr
    (picture,) = out.iterdir()
    return np.asarray(Image.open(picture), dtype=int)


def test_both_spellings_come_back_whole(tour):
    folder, _, _, said = tour
    for name in ("lcm-lora", "style", "combined"):
        assert "largest difference 0" in said[name]
    for name in ("lcm-lora/model", "style/model", "combined"):
        assert {DIFFUSERS_FILE, KOHYA_FILE} <= {path.name for path in (folder / name).iterdir()}
    assert list((folder / "lcm-lora" / "samples").iterdir())


def test_the_same_picture_from_loras_combined_and_merged(tour, fewstep_command, tmp_path):
    folder, teacher, loras, _ = tour
    apart = paint(fewstep_command, tmp_path / "a", "--model", teacher, *loras)
    one = paint(fewstep_command, tmp_path / "b", "--model", folder / "combined")
    merged = paint(fewstep_command, tmp_path / "c", "--model", folder / "merged")
    for other in (one, merged):
        assert np.abs(apart - other).max() <= 2
    alone = paint(fewstep_command, tmp_path / "d", "--model", folder / "lcm-lora" / "model")
    assert np.abs(apart - alone).max() > 2


def test_what_each_says_of_itself(tour, fewstep_command):
    folder, _, _, _ = tour
    for name, said in {
        "lcm-lora/model": "fewstep.method: LCM-LoRA", "style/model": "fewstep.method: style",
        "tuned/model": "method: LCF", "merged": "method: LCM-LoRA", "combined": "fewstep.combined: ",
    }.items():  # fmt: skip
        assert said in fewstep_command("inspect", folder / name).stdout


def test_the_commands_that_inspect_gives_are_the_right_ones(tour, random_student, fewstep_command, tmp_path):
    folder, teacher, _, _ = tour
    said = {name: fewstep_command("inspect", folder / name).stdout for name in ("tuned", "style", "style/model")}
    assert f"repeat it: fewstep finetune {folder / 'tuned' / 'config.yaml'} --out" in said["tuned"]
    assert f"repeat it: fewstep train-lora {folder / 'style' / 'config.yaml'} --out" in said["style"]
    assert (
        f"--model {teacher} --lora LCM-LORA --lora {folder / 'style' / 'model' / DIFFUSERS_FILE}:0.8"
        in said["style/model"]
    )
    assert "repeat it: fewstep distill " in fewstep_command("inspect", random_student).stdout
    again = fewstep_command("finetune", folder / "tuned" / "config.yaml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    weights = "model/unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / "tuned" / weights).read_bytes()


def test_a_run_ends_with_how_to_paint_with_it(tour):
    folder, _, _, said = tour
    for name, painting in {
        "lcm-lora": f"--model {folder / 'lcm-lora' / 'model'}",
        "style": f"--model FEW-STEP --lora {folder / 'style' / 'model' / DIFFUSERS_FILE}:0.8",
        "tuned": f"--model {folder / 'tuned' / 'model'}",
    }.items():
        assert f'paint with it: fewstep generate {painting} --prompt "…"' in said[name]


def test_the_header_holds_what_others_look_for(tour):
    folder, _, _, _ = tour
    with safetensors.safe_open(folder / "lcm-lora" / "model" / DIFFUSERS_FILE, "pt") as file:
        header = file.metadata()
    assert header["modelspec.sai_model_spec"] == "1.0.1"
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert (header["ss_network_dim"], header["fewstep.omega"]) == ("64", "2.0")
    assert len(header["fewstep.teacher_sha256"]) == 64
    assert json.loads(header["lora_adapter_metadata"])["unet.r"] == 64


def test_a_style_alone_does_not_paint(tour, fewstep_command, tmp_path):
    folder, teacher, _, _ = tour
    done = fewstep_command(
        "generate", "--model", teacher, "--lora", folder / "style" / "model", "--prompt", "x", "--out", tmp_path
    )
    assert done.returncode == 2
    assert "no LCM-LoRA was given" in done.stderr


def test_a_run_folder_of_a_lora_is_taken(tour, fewstep_command, tmp_path):
    folder, teacher, loras, _ = tour
    whole = paint(fewstep_command, tmp_path / "a", "--model", teacher, "--lora", folder / "lcm-lora")
    file = paint(fewstep_command, tmp_path / "b", "--model", teacher, *loras[:2])
    assert np.array_equal(whole, file)
    said = fewstep_command("inspect", folder / "style").stdout
    assert f"--lora LCM-LORA --lora {folder / 'style' / 'model' / DIFFUSERS_FILE}:0.8" in said


def test_a_lora_where_it_does_not_belong_is_said(tour, random_student, teacher_copy, fewstep_command, tmp_path):
    folder, _, loras, _ = tour
    weights = teacher_copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    safetensors.torch.save_file({name: 1.01 * value for name, value in tensors.items()}, weights, {"format": "pt"})
    for model, said in (
        (teacher_copy, "was made for other weights"),
        (random_student / "model", "few-step already"),
        (folder / "lcm-lora" / "model", ""),
    ):
        hung = loras[:2] if said else ()
        done = fewstep_command("generate", "--model", model, *hung, "--prompt", "x", "--out", tmp_path)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
    assert "was made for" not in done.stderr


def test_others_may_read_what_is_written(tour, random_student):
    folder, _, _, _ = tour
    for file in (*folder.glob("*/model/*.safetensors"), *(random_student / "model").rglob("*.safetensors")):
        assert file.stat().st_mode == (random_student / "model" / "fewstep.json").stat().st_mode


def test_the_card_of_a_lora_names_a_base_that_diffusers_can_load(tour):
    card = read_card(tour[0] / "lcm-lora" / "model")
    assert f'from_pretrained("{card.teacher}")' in model_card(card)
    bundled = model_card(dataclasses.replace(card, teacher="scenes"))
    assert "from fewstep import assets" in bundled
    assert "from_pretrained(assets.scenes_teacher())" in bundled


@pytest.mark.parametrize("recipe", ["scenes", "sd15-lora"])
def test_a_dry_run_leaves_nothing_and_says_the_plan(recipe, tour, fewstep_command, tmp_path):
    _, teacher, _, _ = tour
    done = fewstep_command(
        "distill", recipe, "--teacher", teacher, "--data", "scenes", "--out", tmp_path / "run", "--batch-size", 2,
        "--dry-run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for said in ("plan: ", "updates of 2", "time: ", "GiB a checkpoint", "peak memory: "):
        assert said in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keep_gib", "said"),
    [
        (4, r"encoding: about \d+:\d\d:\d\d before the first update, once, for 100,000 pictures and their captions, "),
        (0.001, r"encoding: in every update anew, which the time below has in it"),
    ],
)
def test_a_dry_run_says_how_long_all_pictures_take_to_encode(random_teacher, capsys, tmp_path, keep_gib, said):
    config = Distill(
        teacher=str(random_teacher), data="scenes", pictures=100_000, batch_size=2, dry_run=True, keep_gib=keep_gib,
        out=tmp_path / "run", device="cpu",
    )  # fmt: skip
    distill(config)
    told = capsys.readouterr().out
    assert re.search(said, told)
    assert told.index("encoding: ") < told.index("time: ")


def test_a_family_recipe_asks_for_teacher_and_data(fewstep_command, tmp_path):
    done = fewstep_command("distill", "sd15", "--data", "scenes", "--out", tmp_path / "run")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give --teacher" in done.stderr
