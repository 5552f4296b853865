"""Where no recipe is named, a training takes that of its model's family."""

import dataclasses
import json
import shutil

import pytest
import torch

from fewstep.cli import parse_training
from fewstep.errors import UserError
from fewstep.models.card import CARD_FILE
from fewstep.recipes import choosing
from fewstep.recipes.choosing import choose_recipe
from fewstep.recipes.distill import Distill
from fewstep.recipes.named import MEMORY_GIB, RECIPES, find_recipe, list_recipes
from miniatures import FAMILIES, save_miniature


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from fewstep.data.worlds.scenes import Scenes
    from fewstep.models import scenes_model

    tokenizer = scenes_model.build_tokenizer(Scenes().prompt(i)[0] for i in range(300))
    root = tmp_path_factory.mktemp("families")
    for family in FAMILIES:
        save_miniature(family, tokenizer, root / family)
    return root


def few_step_copy(folder, to, **card):
    """A miniature that its configuration calls few-step, with what fewstep would record of it."""
    copy = shutil.copytree(folder / "sd15", to)
    for file, changes in (("model_index.json", {"_class_name": "LatentConsistencyModelPipeline"}),
                          ("unet/config.json", {"time_cond_proj_dim": 256})):  # fmt: skip
        (copy / file).write_text(json.dumps({**json.loads((copy / file).read_text()), **changes}))
    if card:
        (copy / CARD_FILE).write_text(json.dumps(card))
    return copy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("command", ["distill", "finetune", "train-lora"])
def test_a_model_of_a_family_gets_its_recipe(folder, family, command):
    model = str(folder / family)
    option = "--teacher" if command == "distill" else "--model"
    for rank in ("0", "8"):
        name = family if rank == "0" or command == "train-lora" else f"{family}-lora"
        choice = choose_recipe(command, model, lora=rank != "0")
        assert choice.name == name
        assert choice.note.startswith(f"recipe {name}, since {model} is of Stable Diffusion")
        parsed = parse_training(command, [option, model, "--lora-rank", rank][: 4 if rank != "0" else 2])
        assert (
            parsed.lr == find_recipe(name, command).lr == (8e-6 if name == family and command != "train-lora" else 1e-4)
        )
        assert parsed.gradient_checkpointing


def test_the_bundled_models_and_what_was_made_of_them_keep_theirs(folder, tmp_path):
    assert parse_training("distill", []) == find_recipe("scenes")
    assert parse_training("distill", ["--lora-rank", "64"]) == find_recipe("scenes-lora")
    assert parse_training("finetune", ["--model=scenes-lcm"]) == find_recipe("scenes", "finetune")
    assert parse_training("train-lora", []) == find_recipe("scenes", "train-lora")
    student = few_step_copy(folder, tmp_path / "student", teacher="scenes")
    assert choose_recipe("finetune", str(student)).name == "scenes"


def test_a_recipe_that_is_named_is_taken_whatever_the_model_is(folder):
    parsed = parse_training("distill", ["scenes", "--teacher", str(folder / "sdxl")])
    assert parsed == dataclasses.replace(find_recipe("scenes"), teacher=str(folder / "sdxl"))
    assert parse_training("finetune", ["sdxl-lora", "--model", "x"]).lora_rank == 64
    with pytest.raises(UserError, match=r"'sdx' is not a recipe; .* did you mean sdxl"):
        parse_training("train-lora", ["sdx"])


@pytest.mark.parametrize(
    ("card", "guidance"),
    [({}, ((3.0, 15.0), 8.5)),
     ({"guidance_range": [2.0, 4.0], "guidance_scale": 3.0}, ((2.0, 4.0), 3.0)),
     ({"guidance_range": [2.0, 4.0]}, ((2.0, 4.0), 4.0))],
)  # fmt: skip
def test_a_few_step_model_keeps_the_guidance_it_was_trained_for(folder, tmp_path, card, guidance):
    student = str(few_step_copy(folder, tmp_path / "student", **card))
    for arguments in (["--model", student], [f"--model={student}", "--lora_rank=8"]):
        parsed = parse_training("finetune", arguments)
        assert (parsed.guidance_range, parsed.guidance_scale) == guidance


def test_a_smaller_batch_is_not_cut_into_the_recipes_parts(folder):
    teacher = ["--teacher", str(folder / "sd15")]
    recipe = find_recipe("sd15")
    for batch, parts in ((72, 9), (4, 1), (20, 4), (7, 1), (11, 11), (144, 18)):
        parsed = parse_training("distill", [*teacher, "--batch-size", str(batch)])
        assert (parsed.batch_size, parsed.accumulation) == (batch, parts)
        assert batch // parts <= recipe.batch_size // recipe.accumulation
    assert parse_training("distill", [*teacher, "--batch-size", "4", "--accumulation", "2"]).accumulation == 2
    assert parse_training("distill", ["--batch-size", "1024"]).accumulation == 1  # as in the recipe of the toy


def test_a_gpu_is_weighed_by_the_counted_table(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    card = dataclasses.make_dataclass("Card", ["total_memory"])
    monkeypatch.setattr(choosing.torch.cuda, "get_device_properties", lambda _: card(16 * 2**30))
    whole = choose_recipe("distill", str(folder / "sd15")).note
    assert f"an update needs about {MEMORY_GIB['sd15']:.0f} GiB and does not fit this GPU's 16" in whole
    adapters = choose_recipe("train-lora", str(folder / "sd15")).note
    assert f"an update needs about {MEMORY_GIB['sd15-lora']:.0f} GiB and fits this GPU's 16" in adapters
    assert "fewstep plan --recipe sd15-lora --gpu-memory 16" in adapters


def test_every_recipe_of_every_command_is_whole():
    for command, recipes in RECIPES.items():
        for name, recipe in recipes.items():
            config = recipe()
            assert config.steps > 100
            assert isinstance(config, Distill) == (command == "distill")
            assert find_recipe(name, command) == config


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"teacher": "org/name"}, ["--teacher", "org/name"]), ({"unet": "org/name"}, ["--unet", "org/other"]),
        ({"data": "s3://bucket/shards"}, ["--data=pictures"]), ({"mix": ["https://host/x.tar::1"]}, ["--mix", "more"]),
        ({"base_config": "org/name"}, ["--base-config", "org/name"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_configuration_fetches_is_named_on_the_command_line(setting, named, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(setting))
    with pytest.raises(UserError, match=f"which is not here and would be fetched; name it yourself: {named[0][:6]}"):
        parse_training("distill", [str(file)])
    parse_training("distill", [str(file), *named])


def test_a_program_that_a_configuration_names_is_named_on_the_command_line(tmp_path):
    file, program = tmp_path / "config.yaml", tmp_path / "inception.pt"
    file.write_text(json.dumps({"eval_extractor": str(program)}))
    program.write_bytes(b"any")
    with pytest.raises(UserError, match="is a program that would be run; name it yourself: --eval-extractor "):
        parse_training("distill", [str(file)])
    parse_training("distill", [str(file), "--eval-extractor", str(program)])


def test_recipes_are_listed_as_they_are_used():
    """The bundled teacher's first, then a model's LoRA before the whole model, the old Stable Diffusion 2 last."""
    names = list_recipes("distill")
    assert names[:3] == ["scenes", "scenes-lora", "scenes-any-step"]
    assert [name.removesuffix("-lora") for name in names[3::2]] == names[4::2]
    assert names[4:8:2] == ["sd15", "sdxl"]
    assert names[-4::2] == ["sd21-lora", "sd21-base-lora"]
    assert list_recipes("train-lora")[1:3] == ["sd15", "sdxl"]
