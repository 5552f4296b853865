"""What is recorded of a student is read again; a model of another family is taken for none."""

import dataclasses
import json
import shutil

import pytest
import torch

from fewstep.errors import UserError
from fewstep.models.card import StudentCard, make_card, read_card
from fewstep.models.families import find_family, list_families, recognise_folder
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.export import save_merged
from fewstep.models.lora.file import DIFFUSERS_FILE, Pair, write_lora
from fewstep.models.pipeline_loading import load_pipeline

CPU = torch.device("cpu")
QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def write_adapter(random_teacher, tmp_path):
    """Writes an LCM-LoRA of one module with this header, and gives its file."""
    model = load_latent_model(random_teacher, CPU)
    weight = model.parts["unet"].get_submodule(QUERY).weight

    def write(**header):
        pairs = {f"unet.{QUERY}": Pair(torch.randn(2, weight.shape[1]), torch.randn(weight.shape[0], 2), 2.0)}
        said = {"fewstep.method": "LCM-LoRA", "fewstep.omega": "2.0", **{f"fewstep.{k}": v for k, v in header.items()}}
        write_lora(tmp_path / "lora", pairs, said, model.parts, model.family.lora)
        return tmp_path / "lora" / DIFFUSERS_FILE

    return write


def test_a_card_is_read_as_it_was_written(tmp_path):
    card = StudentCard(name="a", steps=3, lr=0.1, guidance_range=(2.0, 9.0), method="LCD", others={"later": [1]})
    card.write(tmp_path)
    assert read_card(tmp_path) == card
    assert read_card(tmp_path / "none") == StudentCard()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"guidance_scale": "much"}, "guidance_scale 'much'.*expected a number"),
        ({"sampling_steps": True}, "sampling_steps True.*expected 1 to 50"),
        ({"sampling_steps": 2.5}, "sampling_steps 2.5.*expected 1 to 50"),
        ({"sampling_steps": 10**9}, "expected 1 to 50"),
        ({"guidance_scale": float("nan")}, "guidance_scale nan.*expected a number"),
        ({"teacher": 3}, "teacher 3.*expected a text"),
        ({"guidance_range": [1.0]}, "expected two numbers"),
    ],
)
def test_a_spoilt_card_is_refused_by_its_entry(content, said):
    with pytest.raises(UserError, match=said):
        make_card(content, "model")


def test_the_header_of_an_lcm_lora_says_how_many_steps_and_which_scheduler(random_teacher, write_adapter):
    file = write_adapter(steps="6", scheduler="LCMScheduler", original_inference_steps="25")
    pipeline = load_pipeline(random_teacher, "cpu", [(file, 1.0)])
    assert (pipeline.steps, pipeline.grid_size, pipeline.guidance_scale) == (6, 25, 3.0)
    six, again = pipeline("a red star", steps=6), pipeline("a red star")
    assert list(six[0].getdata()) == list(again[0].getdata()) != list(pipeline("a red star", steps=1)[0].getdata())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (
            {"scheduler": "EulerDiscreteScheduler"},
            "asks for the scheduler EulerDiscreteScheduler; only LCMScheduler is known",
        ),
        ({"steps": "few"}, "fewstep.steps 'few' in its header; expected a number"),
        ({"steps": "2.9"}, "fewstep.steps '2.9' in its header; expected a whole number above 0"),
        ({"original_inference_steps": "-3"}, "expected a whole number above 0"),
        ({"omega": "much"}, "fewstep.omega 'much' in its header; expected a number"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(header, said, random_teacher, write_adapter):
    with pytest.raises(UserError, match=said):
        load_pipeline(random_teacher, "cpu", [(write_adapter(**header), 1.0)])


def test_a_merged_model_is_saved_though_its_scheduler_names_no_class(random_teacher, tmp_path):
    model = load_latent_model(random_teacher, CPU)
    plain = {name: value for name, value in model.scheduler_config.items() if name != "_class_name"}
    save_merged(tmp_path / "merged", dataclasses.replace(model, scheduler_config=plain), {})
    written = json.loads((tmp_path / "merged" / "scheduler" / "scheduler_config.json").read_text())
    assert written["_class_name"] == "DDIMScheduler"
    assert load_latent_model(tmp_path / "merged", CPU).schedule.num_steps == model.schedule.num_steps


def test_what_nothing_reads_of_a_card_does_no_harm():
    assert make_card({"steps": "300", "data": None, "lr": None}, "model") == StudentCard(steps="300")


def test_a_recorded_guidance_of_nothing_is_nothing(random_student, tmp_path, edit_json):
    model = shutil.copytree(random_student / "model", tmp_path / "model")
    edit_json(model / "fewstep.json", guidance_scale=0)
    assert load_pipeline(model, "cpu").guidance_scale == 0


def test_merging_follows_the_header_that_painting_follows(random_teacher, write_adapter, fewstep_command, tmp_path):
    def combine(**header):
        out = tmp_path / f"merged{len(header)}"
        file = write_adapter(**header)
        return out, fewstep_command("combine", "--base", random_teacher, "--lora", file, "--merged", "--out", out)

    out, done = combine(steps="8")
    assert done.returncode == 0, done.stderr
    assert load_pipeline(out, "cpu").steps == 8
    for header in ({"scheduler": "Euler", "steps": "8"}, {"omega": "few", "steps": "8", "scheduler": "LCMScheduler"}):
        out, done = combine(**header)
        assert (done.returncode, out.exists()) == (2, False)
        assert "asks for the scheduler Euler" in done.stderr or "fewstep.omega 'few'" in done.stderr


@pytest.mark.parametrize("value", [0, -5, 2000, 2.5, True, None, "50"])
def test_a_grid_that_is_none_is_refused(value, random_teacher):
    model = load_latent_model(random_teacher, CPU)
    config = {**model.scheduler_config, "original_inference_steps": value}
    with pytest.raises(UserError, match=r"original_inference_steps .* in scheduler_config[.]json; allowed: 1 to"):
        dataclasses.replace(model, scheduler_config=config).read_grid_size()


def test_finetuning_a_student_whose_grid_is_none_is_refused(random_student, fewstep_command, tmp_path, edit_json):
    model = shutil.copytree(random_student / "model", tmp_path / "model")
    edit_json(model / "scheduler" / "scheduler_config.json", original_inference_steps=0)
    done = fewstep_command(
        "finetune", "scenes", "--model", model, "--out", tmp_path / "out", "--steps", 1, "--pictures", 8
    )
    assert done.returncode == 2
    assert "original_inference_steps 0 in scheduler_config.json; allowed: 1 to 1000" in done.stderr


UNKNOWN = {
    "another pipeline": ({"_class_name": "HunyuanDiTPipeline"}, {}, "holds a HunyuanDiTPipeline; known"),
    "another network": ({}, {"_class_name": "SD3Transformer2DModel"}, "around a SD3Transformer2DModel with switches"),
    "other conditions": ({}, {"addition_embed_type": "image"}, "no family known here has"),
    "XL's network": ({}, {"addition_embed_type": "text_time"}, "known: Stable Diffusion 1.x, Stable Diffusion 2.x"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_model_is_named_and_taken_for_no_other(case, teacher_copy, edit_json):
    index, network, said = UNKNOWN[case]
    edit_json(teacher_copy / "model_index.json", **index)
    edit_json(teacher_copy / "unet" / "config.json", **network)
    with pytest.raises(UserError, match=said):
        load_latent_model(teacher_copy, CPU)


def test_every_family_recognises_its_own_network_alone():
    for family in list_families():
        assert find_family(family.name) is family
        network = family.shaped_network().backbone
        own = {"_class_name": type(network).__name__, **network.config}
        assert [each.name for each in list_families() if each.recognises(own)] == [family.name]


def test_omega_and_guidance_are_each_others_inverse():
    for family in list_families():
        assert family.guidance_of(family.omega_of(7.5)) == 7.5
        assert family.omega_of(family.guidance_of(0.0)) == 0.0


def test_a_folder_without_its_network_says_so(teacher_copy):
    shutil.rmtree(teacher_copy / "unet")
    index = json.loads((teacher_copy / "model_index.json").read_text())
    with pytest.raises(UserError, match="not a whole pipeline: it has no folder unet/"):
        recognise_folder(teacher_copy, index, str(teacher_copy))


def test_a_flow_scheduler_is_not_read_as_linear_betas(teacher_copy, edit_json):
    edit_json(teacher_copy / "scheduler" / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler")
    with pytest.raises(UserError, match="has a FlowMatchEulerDiscreteScheduler, which is a flow's and not of"):
        load_latent_model(teacher_copy, CPU)
