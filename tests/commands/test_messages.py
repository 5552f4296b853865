"""What messages say of folders that hold something else, of runs that stopped, and of words that stand alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from fewstep.arguments import parse_arguments, suggest_option
from fewstep.commands.convert import Convert
from fewstep.commands.export import Export
from fewstep.commands.generate import Generate, _list_names
from fewstep.commands.inspect import Inspect
from fewstep.commands.publish import Publish
from fewstep.errors import UserError, find_nearest
from fewstep.evaluate.bootstrap import bootstrap_interval, share_interval
from fewstep.models.loading import find_files
from fewstep.models.lora.source import parse_lora
from fewstep.models.model_files import find_run
from fewstep.models.options import Overrides
from fewstep.recipes.distill import Distill
from fewstep.recipes.named import find_recipe
from fewstep.recipes.plain import to_plain
from fewstep.runs.folder import claim_run_folder, refuse_others
from fewstep.runs.learning import note_short_warm_up


def make_run(folder, command, *, step=0, ended=False, **settings):
    """Leaves what a run of that command leaves in a folder, as far as messages look at it."""
    config = dataclasses.replace(find_recipe("scenes", command), data="scenes", **settings)
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    if step:
        (folder / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    if ended:
        (folder / "model").mkdir()
    return dataclasses.replace(config, out=folder)


@pytest.mark.parametrize("command", ["distill", "finetune", "train-lora"])
def test_a_folder_tells_its_command_and_how_it_goes_on(command, tmp_path):
    make_run(tmp_path / "run", command, step=17, steps=2000)
    run = find_run(tmp_path / "run")
    assert (run.command, run.step, run.steps, run.ended) == (command, 17, 2000, False)
    assert run.describe() == (
        f"{run.folder} is a {command} run that stopped at update 17 of 2,000; it goes on with: fewstep {command} "
        f"{run.folder}/config.yaml --out {run.folder}"
    )
    (run.folder / "model").mkdir()
    assert find_run(run.folder).describe() == f"{run.folder} is a {command} run"


def test_other_folders_are_no_runs(tmp_path):
    assert find_run(tmp_path) is None
    assert find_run(tmp_path / "nothing") is None
    for text in ("a: [", "- a", "steps: 3"):
        (tmp_path / "config.yaml").write_text(text)
        assert find_run(tmp_path) is None
    (tmp_path / "made_of.json").write_text("{}")
    assert find_run(tmp_path).kind == "an evaluation"


def test_the_run_of_another_command_is_named_as_such(tmp_path):
    make_run(tmp_path / "style", "train-lora")
    config = dataclasses.replace(find_recipe("scenes", "distill"), out=tmp_path / "style")
    with pytest.raises(UserError, match="style is a train-lora run, and this is `fewstep distill`; choose another"):
        claim_run_folder(config.out, config)
    report = tmp_path / "report"
    report.mkdir()
    (report / "made_of.json").write_text("{}")
    with pytest.raises(UserError, match="report is an evaluation; choose another --out"):
        refuse_others(report)


@pytest.mark.parametrize(
    "change",
    [{"lora_rank": 8}, {"ema_decay": 0.0}, {"method": "any-step"}],
    ids=str,
)  # fmt: skip
def test_change_is_not_offered_for_what_a_run_keeps(change, tmp_path):
    config = make_run(tmp_path / "run", "distill")
    for more in ({}, {"change": tuple(change)}):
        other = dataclasses.replace(config, **change, **more, guidance_range=(5.0, 5.0))
        with pytest.raises(UserError, match="what it has learnt fits no other") as refused:
            claim_run_folder(other.out, other)
        assert "--change" not in str(refused.value)
    free = dataclasses.replace(config, lr=1e-5, batch_size=2)
    with pytest.raises(UserError, match=r"go on with the new ones: --change batch_size lr$"):
        claim_run_folder(free.out, free)


def test_what_is_no_lora_is_said_with_what_it_is(tmp_path):
    make_run(tmp_path / "half", "train-lora", step=5, steps=400)
    with pytest.raises(UserError, match="half is a train-lora run that stopped at update 5 of 400; it goes on with: "):
        parse_lora(str(tmp_path / "half"))
    make_run(tmp_path / "whole", "finetune", ended=True)
    with pytest.raises(UserError, match="whole is a finetune run and its model is whole, not a LoRA; give it with"):
        parse_lora(f"{tmp_path / 'whole'}:0.5")


@pytest.mark.parametrize(
    ("words", "prompts"),
    [
        (["a pink heart"], ("a pink heart",)),
        (["a", "pink", "heart", "--seed", "3"], ("a pink heart",)),
        (["--seed", "3", "a star"], ("a star",)),
        (["a red star", "a ring"], ("a red star", "a ring")),
        (["--prompt", "a ring", "a red star"], ("a ring", "a red star")),
    ],
)
def test_words_that_stand_alone_are_the_prompt(words, prompts):
    assert parse_arguments(Generate(), words, "fewstep generate", lone="prompt").prompt == prompts


def test_words_that_belong_nowhere_are_refused():
    with pytest.raises(UserError, match="'a star' belongs to no option"):
        parse_arguments(Generate(), ["a star"], "fewstep other")
    with pytest.raises(UserError, match="--sede is not an option of `fewstep generate`; did you mean --seed"):
        parse_arguments(Generate(), ["a star", "--sede", "3"], "fewstep generate", lone="prompt")


def test_a_folder_that_stands_alone_is_told_the_option_of_the_model(tmp_path):
    with pytest.raises(UserError, match=r"belongs to no option; did you mean --model /"):
        parse_arguments(Export(), [str(tmp_path)], "fewstep export")
    with pytest.raises(UserError, match="belongs to no option; `fewstep export --help`"):
        parse_arguments(Export(), [str(tmp_path / "nothing")], "fewstep export")


@pytest.mark.parametrize(
    ("default", "words", "said"),
    [
        (Publish(), ["--model", "run", "--repo", "a/b", "--dry-run"], "--model is not an option of `fewstep x`"),
        (Publish(), ["--source", "run"], "--source of `fewstep x` is a word by itself: give it without --source"),
        (Inspect(), ["--lora", "file"], "--lora is not an option of `fewstep x`"),
        (Convert(), ["--lora", "file"], "--lora of `fewstep x` is a word by itself: give it without --lora before it"),
        (Inspect(), ["--path", "file"], "--path of `fewstep x` is a word by itself"),
    ],
)
def test_an_option_that_is_none_is_named_where_words_stand_alone(default, words, said):
    with pytest.raises(UserError, match=f"^{said}"):
        parse_arguments(default, words, "fewstep x")


def test_suggestions_go_by_meaning_and_only_to_options_that_are_there():
    assert suggest_option("--cfg", ["guidance_scale"]) == "; did you mean --guidance-scale?"
    assert suggest_option("--cfg", ["out"]) == ""
    assert suggest_option("--height", ["out"]) == ": a model paints at the size that it was trained at"
    assert suggest_option("--wieght-decay", ["weight_decay", "out"]) == "; did you mean --weight-decay?"
    assert find_nearest("sd16", ["scenes", "sd21", "sd15"]) == "sd15"
    assert find_nearest("zzz", ["scenes"]) is None


@pytest.mark.parametrize(
    ("right", "wanted"),
    [
        (128 * [1.0], (0.9709, 1.0)),  # n / (n + z²)
        (10 * [0.0], (0.0, 0.2775)),  # z² / (n + z²)
    ],
)
def test_the_interval_of_pictures_that_are_all_alike_is_wilsons(right, wanted):
    assert share_interval(torch.tensor(right)) == pytest.approx(wanted, abs=1e-4)


def test_the_interval_of_any_other_share_is_the_bootstraps():
    right = torch.tensor(3 * [0.0] + 7 * [1.0])
    assert share_interval(right) == bootstrap_interval(right)


def test_the_model_of_a_run_that_has_not_ended_is_said_to_come(tmp_path):
    make_run(tmp_path / "half", "distill", step=5, steps=400)
    with pytest.raises(
        UserError, match=r"half/model is not there yet: .*half is a distill run that stopped at .*; pai"
    ):
        find_files(tmp_path / "half" / "model", Overrides())
    with pytest.raises(UserError, match="elsewhere/model is neither a folder nor a file"):
        find_files(tmp_path / "elsewhere" / "model", Overrides())


def test_a_run_that_ends_in_its_warm_up_says_so(capsys):
    note_short_warm_up(Distill(teacher="scenes", data="scenes", steps=40, warmup_steps=100, lr=1e-4))
    assert "at 4e-05 of 0.0001; give fewer --warmup-steps" in capsys.readouterr().out
    note_short_warm_up(Distill(teacher="scenes", data="scenes", steps=100, warmup_steps=100))
    assert capsys.readouterr().out == ""


def test_a_long_prompt_names_its_picture_by_whole_words(tmp_path):
    named = next(_list_names(tmp_path, "a small red star above a large blue ring on a black background", 3))
    assert named.name == "a-small-red-star-above-a-large-blue-ring-on-a-black-seed3.png"
    assert next(_list_names(tmp_path, "x" * 90, 3)).name == f"{'x' * 60}-seed3.png"
