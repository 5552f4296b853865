"""The command itself: help, errors in one line, and the demo in miniature."""

import dataclasses
import importlib
import json

import pytest
from PIL import Image

import fewstep
from fewstep.arguments import parse_arguments
from fewstep.cli import COMMANDS, _explain_end, main, parse_training
from fewstep.commands.demo import default_demo
from fewstep.commands.generate import Generate
from fewstep.data.infotext import READ_AS_WORDS
from fewstep.errors import UserError
from fewstep.models.pipeline import NO_PROMPT
from fewstep.recipes.distill import Distill
from fewstep.recipes.given import name_as_given
from fewstep.recipes.named import RECIPES
from fewstep.recipes.plain import to_plain

BAD_INPUT = {
    "missing folder": (("distill", "--teacher", "/no/such/folder"), "/no/such/folder is neither a folder"),
    "not a pipeline": (("distill", "--teacher", "{empty}"), "model_index.json is missing"),
    "missing pictures": (("distill", "--data", "/no/such/pictures"), "/no/such/pictures"),
    "no such data": (("evaluate", "--data", "nope"), "data folder nope does not exist; known worlds are"),
    "misspelt world": (("distill", "--data", "scenes-leanin"), "did you mean scenes-leaning?"),
    "strength of nothing": (("generate", "--prompt", "a", "--strength", "0.5"), "give --init-image too"),
    "mask of nothing": (("generate", "--prompt", "a", "--mask", "m.png"), "give the picture with --init-image too"),
    "blur of nothing": (("generate", "--prompt", "a", "--mask-blur", "2"), "without a mask; give --mask too"),
    "not a whole number": (
        ("generate", "--prompt", "a", "--steps", "four"),
        "error: --steps: 'four' is not a whole number",
    ),
    "no pictures": (("distill", "--data", "{empty}"), "{empty}"),
    "unknown option": (
        ("distill", "--stpes", "3"),
        "--stpes is not an option of `fewstep distill`; did you mean --steps?",
    ),
    "unknown option with =": (("generate", "--sead=3"), "did you mean --seed?"),
    "unknown command": (("distil",), "'distil' is not a command; known: demo, distill"),
    "unknown recipe": (("distill", "scene"), "did you mean scenes?"),
    "not a number": (("distill", "--steps", "many"), "'many' is not a whole number"),
    "not a fraction": (("distill", "--lr", "much"), "'much' is not a number"),
    "not a choice": (("distill", "--solver", "euler"), "--solver is 'euler'; allowed: "),
    "missing value": (("distill", "--steps"), "--steps needs a value"),
    "a choice of other words": (("generate", "a", "--precision", "half"), "--precision is 'half'; allowed: auto, fp32"),
    "a size": (("generate", "a", "--width", "512"), "a model paints at the size that it was trained at"),
    "a size of a training": (("distill", "--width", "512"), "that it was trained at; give --resolution"),
    "another tool's word": (("generate", "a", "--cfg", "3"), "did you mean --guidance-scale?"),
    "another tool's word for updates": (("distill", "--max-train-steps", "3"), "did you mean --updates?"),
    "going on": (("distill", "--resume"), "the same command again goes on where a run stopped"),
    "one of two numbers": (("distill", "--guidance-range", "1"), "--guidance-range needs 2 values"),
    "two that are no numbers": (("distill", "--guidance-range", "1", "x"), "are not the numbers that it takes"),
    "numbers in one word": (("evaluate", "--steps", "1,2"), "'1,2' is not what it takes"),
    "a recipe that is nearly one": (("distill", "sd16"), "did you mean sd15?"),
    "no yaml": (("distill", "/no/such.yaml"), "/no/such.yaml does not exist; give the config.yaml of an earlier run"),
    "a folder for a recipe": (("distill", "{empty}"), "is a folder; a run is repeated by its config.yaml"),
    "too few to score": (("evaluate", "--n", "16"), "at least 20 are needed, and n itself twice the features"),
    "no LoRA there": (("generate", "a", "--lora", "/no/such.safetensors"), "/no/such.safetensors does not exist"),
    "no style's pictures": (("train-lora",), "data is not given: give --data, a folder of captioned pictures"),
    "nothing to prepare": (("prepare",), "data is not given: give --data"),
    "pictures before the model": (
        ("distill", "scenes", "--teacher", "{empty}", "--data", "/no/such"),
        "/no/such does not exist",
    ),
    "no CUDA": (("generate", "a", "--device", "cuda"), "device 'cuda' cannot be used here: torch "),
    "a stray word": (("distill", "scenes", "sd15"), "sd15"),
    "guidance outside its range": (("distill", "--guidance-scale", "12"), "guidance_range is 2 to 9"),
    "no prompt": (("generate",), "--prompt"),
    "no model": (("generate", "--prompt", "a", "--model", "/no/such/model"), "/no/such/model is neither a folder"),
    "no file but a folder for pictures": (("generate", "--prompt", "a", "--out", "{empty}/a.png"), "give a folder"),
    "no model in the folder": (
        ("generate", "--prompt", "a", "--model", "{empty}"),
        "{empty} is not a pipeline: model_index.json is missing; give a diffusers folder (with",
    ),
    "scale of a LoRA": (
        ("generate", "--prompt", "a", "--lora", "{empty}:much"),
        "--lora {empty}:much has the scale much, which is not a number; give {empty}:0.8 or the like",
    ),
    "resolution": (("distill", "--resolution", "60"), "resolution is 60; the model needs a multiple of 8"),
    "skip": (("distill", "--skip", "0"), "skip is 0; allowed: 1 to 500"),
    "no pictures, and a folder of something else": (
        ("train-lora", "--data", "{empty}", "--out", "{full}"),
        "{full} is not empty and holds no run of fewstep",
    ),
    "folder of something else": (("distill", "--out", "{full}"), "is not empty and holds no run of fewstep"),
    "broken yaml": (("distill", "{full}/broken.yaml"), "cannot be read as YAML"),
    "yaml of something else": (("distill", "{full}/other.yaml"), "sets colour, which Distill does not have"),
    "wrong type in yaml": (("distill", "{full}/typed.yaml"), "steps is 'many'; expected a whole number"),
    "wrong choice in yaml": (
        ("distill", "{full}/choice.yaml"),
        "distance is 'l3'; allowed: auto, cauchy, huber, l2, root",
    ),
    "skip too long": (("distill", "--skip", "501"), "skip is 501; allowed: 1 to 500"),
    "shrink": (("distill", "--shrink", "1.5"), "shrink is 1.5; it is a part of the run, 0 to 1"),
    "not finite": (("distill", "--lr", "nan"), "lr is nan; it must be a finite number"),
    "infinite guidance": (("distill", "--guidance-range", "3", "inf"), "guidance_range is inf"),
    "huge seed": (("generate", "--prompt", "a", "--seed", "99999999999999999999"), "seed is 99999999999999999999"),
    "negative seed": (
        ("generate", "--prompt", "a", "--seed", "-1"),
        f"seed is -1; allowed: 0 to {2**63 - 1}",
    ),
    "unknown device": (
        ("distill", "--device", "meta"),
        "it is no device that fewstep computes on; here give one of auto, cpu",
    ),
    "stage seed": (("train-teacher", "--reader.seed", "3"), "all stages follow from --seed"),
    "demo of another teacher": (("demo", "--teacher", "/some/where"), "use `fewstep distill`"),
}


@pytest.mark.parametrize("case", BAD_INPUT, ids=str)
def test_bad_input_gets_one_clear_line(case, tmp_path, monkeypatch, capsys):
    arguments, expected = BAD_INPUT[case]
    places = {"empty": tmp_path / "empty", "full": tmp_path / "full"}
    for place in places.values():
        place.mkdir()
    (places["full"] / "broken.yaml").write_text("a: [")
    (places["full"] / "other.yaml").write_text("colour: red")
    (places["full"] / "typed.yaml").write_text("lr: 1e-4\nsteps: many")
    (places["full"] / "choice.yaml").write_text("distance: l3")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main([argument.format(**places) for argument in arguments])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert len(said.strip().splitlines()) == 1, said
    assert said.startswith("fewstep: error: ")
    assert expected.format(**places) in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]  # nothing was begun


def make_default(name):
    """The configuration of a command as it is without any option."""
    module, _, config = COMMANDS[name].config.partition(":")
    made = getattr(importlib.import_module(f"fewstep.{module}"), config) if config else RECIPES[name]["scenes"]
    return made()


def test_every_commands_seeds_are_from_0_to_63_bits():
    found = set()
    for name in COMMANDS:
        default = make_default(name)
        for field in (each.name for each in dataclasses.fields(default) if each.name.endswith(("seed", "seeds"))):
            for seed in (-1, 2**63):
                value = (0, seed) if field == "seeds" else seed
                with pytest.raises(UserError, match=rf"^{field} is {seed}; allowed: 0 to \d+$"):
                    dataclasses.replace(default, **{field: value})
            found.add((name, field))
    assert {("generate", "seed"), ("demo", "score_seed"), ("bench methods", "seeds")} < found
    assert len(found) >= 10


def test_an_empty_prompt_is_painted_with_a_word(tmp_path, capsys):
    main(["generate", "--prompt", "", "--steps", "1", "--out", str(tmp_path)])
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [str(tmp_path / "picture-seed0.png")]  # for whoever pipes the names on
    assert f"warning: {NO_PROMPT}" in shown.err.splitlines()


def test_what_clients_of_a1111_write_into_prompts_is_told_to_be_words(tmp_path, capsys):
    prompts = ("(a pink heart:1.3) <lora:style:0.8>", "a (pink) heart AND a star", "a pink heart")
    main(
        ["generate", *(word for each in prompts for word in ("--prompt", each)), "--steps", "1", "--out", str(tmp_path)]
    )
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert warned[:2] == [
        "warning: <lora:style:0.8> in the prompt is read as words; give LoRAs with --lora", f"warning: {READ_AS_WORDS}",
    ]  # fmt: skip
    assert [line.partition(";")[0] for line in warned[2:]] == [
        """warning: this model's text encoder never learnt the words "1.3", "lora", "style" and 2 more"""
    ]


def test_a_mistake_ends_the_process_with_status_2(fewstep_command):
    done = fewstep_command("distil", fresh=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fewstep: error: 'distil' is not a command")
    assert len(done.stderr.splitlines()) == 1


def test_runs_where_there_is_no_git(tmp_path, random_teacher, fewstep_command):
    done = fewstep_command(
        "distill", "scenes", "--teacher", random_teacher, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 2,
        "--pictures", 4, "--sample-every", 0, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_updates_is_steps_on_the_line_and_in_files(tmp_path):
    for words in (["--updates", "7"], ["--updates=7"], ["--steps", "7"]):
        assert parse_training("distill", ["scenes", *words]).steps == 7
    (tmp_path / "c.yaml").write_text("updates: 9")
    assert parse_training("distill", [str(tmp_path / "c.yaml")]).steps == 9
    assert to_plain(parse_training("distill", ["scenes"]))["steps"] == 300
    assert parse_training("distill", ["scenes", "--change", "updates", "seed"]).change == ("steps", "seed")


@pytest.mark.parametrize("option", ["--steps", "--updates"])
def test_an_option_is_complained_of_by_the_name_it_was_given_by(option):
    with pytest.raises(UserError, match=f"^{option}: 'x' is not a whole number; `fewstep distill --help` lists"):
        parse_training("distill", ["scenes", option, "x"])


def test_a_check_complains_of_a_setting_by_the_name_it_was_given_by(tmp_path):
    for option, name in (("--steps", "steps"), ("--updates", "updates")):
        for words in ((option, "0"), (f"{option}=0",)):
            with pytest.raises(UserError, match=f"^{name} is 0; it must be at least 1$"):
                parse_training("distill", ["scenes", *words])
            with pytest.raises(UserError, match=f"^{name} is 0; it must be at least 1$"):
                parse_arguments(default_demo(), [*words], "fewstep demo")
        with pytest.raises(UserError, match=f"^{name} is 0; "):
            fewstep.configure("train-lora", **{name: 0})
        (file := tmp_path / "c.yaml").write_text(f"{name}: 0")
        with pytest.raises(UserError, match=f"^{name} is 0; "):
            parse_training("distill", [str(file)])


def test_what_a_command_says_later_has_the_name_that_was_given():
    def say(kind, words, text):
        with pytest.raises(UserError) as caught, name_as_given(kind, words):
            raise UserError(text)
        return str(caught.value)

    text = "steps is 3 there and 2 here, of 4 steps; go on: --change lr steps"
    renamed = "updates is 3 there and 2 here, of 4 steps; go on: --change lr updates"
    assert say(Distill, ["--updates", "2"], text) == renamed
    assert say(Distill, ["--steps", "2"], text) == text
    assert say(Generate, ["--num-inference-steps=60"], "steps is 60; no") == "num_inference_steps is 60; no"
    for place in ("runs/steps is not empty", "teacher-steps is there", r"C:\runs\steps is no run", "a.steps is odd"):
        assert say(Distill, ["--updates", "2"], place) == place


def test_version(fewstep_command):
    import fewstep

    assert fewstep_command("--version").stdout.strip() == f"fewstep {fewstep.__version__}"


def test_the_demo_in_miniature(tmp_path, fewstep_command):
    """The whole path on the bundled teacher: distil, export, evaluate; twice, the second time from what stands."""
    out = tmp_path / "demo"
    arguments = (
        "demo", "--out", out, "--steps", 4, "--pictures", 64, "--n", 128, "--n-unseen", 4, "--sample-every", 4,
        "--guidance-scale", 2, "--n-repeated", 2,
    )  # fmt: skip
    fewer = {
        "fewstep.commands.demo.WORKERS": 1, "fewstep.evaluate.scenes_bench.REFERENCE_SCENES": 256,
        "fewstep.commands.demo.STEPS": (1, 2), "fewstep.commands.evaluate.TEACHER_STEPS": 4,
    }  # fmt: skip
    done = fewstep_command(*arguments, constants=fewer)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {
        "model", "config.yaml", "base.json", "data.json", "metrics.jsonl", "checkpoints", "samples", "tensorboard",
        "grid.png", "evaluation",
    }  # fmt: skip
    scores = json.loads((out / "evaluation" / "results.json").read_text())
    assert scores["protocol"]["n"] == 128
    assert {row["guidance_scale"] for row in scores["rows"]} == {2.0}
    assert len(scores["protocol"]["prompts_sha256"]) == 64
    rows = {(row["sampler"], row["steps"]): row for row in scores["rows"]}
    assert rows.keys() == {("teacher", 4), *((s, n) for s in ("ddim", "dpm++", "lcm") for n in (1, 2))}
    assert rows["lcm", 2]["network_evaluations"] == 2
    assert rows["ddim", 2]["network_evaluations"] == 4
    assert all(0 <= row["prompt_accuracy"] <= 1 for row in scores["rows"])
    assert rows["teacher", 4]["prompt_accuracy"] >= 0.9
    assert rows["teacher", 4]["fd"] < rows["ddim", 1]["fd"]
    assert rows["teacher", 4]["to_teacher"] == 0 < rows["lcm", 2]["to_teacher"]
    assert all(row["seconds_per_image"] > 0 for row in scores["rows"])
    assert "teacher" in done.stdout
    assert Image.open(out / "grid.png").width > 500
    assert "## Scores" in (out / "model" / "README.md").read_text()
    first = (out / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    again = fewstep_command(*arguments, constants=fewer)
    assert again.returncode == 0, again.stderr
    assert (out / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == first
    assert json.loads((out / "evaluation" / "results.json").read_text()) == scores


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "run/metrics.jsonl"),
         "run/metrics.jsonl cannot be written: No space left on device; make room there; the same command goes on"),
        (OSError(122, "Disk quota exceeded"), "a file cannot be written: Disk quota exceeded; make room there; the"),
        (OSError(30, "Read-only file system", "run/model"), "run/model cannot be used: Read-only file system"),
    ],
)  # fmt: skip
def test_what_a_disk_refuses_in_one_process_of_several(error, said, capsys):
    assert _explain_end(error, COMMANDS["distill"]) == 2
    assert capsys.readouterr().err.startswith(f"fewstep: error: {said}")
