"""`fewstep inspect` says what a thing is, and its advice works."""

import io
import os
import re
import shlex
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep import assets, cli
from fewstep.commands.generate import read_picture
from fewstep.commands.inspect import Inspect, describe, inspect
from fewstep.data.infotext import Infotext, build_png_info, read_infotext
from fewstep.errors import UserError
from fewstep.models.families import recognise_file
from fewstep.recipes.plain import read_config_file
from fewstep.runs.advice import advise_lora
from hub_cache import put_in_cache

NAMES = st.from_regex(r"[A-Z][a-z ]{0,8}[a-z]", fullmatch=True)


LINES = st.text() | st.sampled_from(
    [
        "", "Negative prompt: ", "Negative prompt: blurred", "Negative prompt:", "Steps: 20, Sampler: Euler a, Seed: 1",
        "Prompt lines: 1", '{"prompt": "a, b", "steps": [4]}', "<lora:pastel, soft:0.8>",
        "красный 円 🎨 \u2028", "\r", "\t ",
    ]
)  # fmt: skip
PROMPTS = st.lists(LINES, max_size=4).map("\n".join)
VALUES = st.text() | st.sampled_from(
    ['my, "best": lora.safetensors:0.8', "C:\\loras\\a.safetensors", '"', "a\nb", " 1", "é,"]
)


@settings(deadline=None)
@given(PROMPTS, PROMPTS, st.dictionaries(NAMES, VALUES))
def test_infotext_comes_back(prompt, negative, more):
    """Whatever lines prompts have; with no word more than other tools read, where none is needed."""
    told = {"Steps": "4", **more}
    text = str(Infotext(prompt, negative, told))
    Image.new("L", (1, 1)).save(file := io.BytesIO(), "png", pnginfo=build_png_info(text))
    said = read_infotext(Image.open(file).info["parameters"])
    assert (said.prompt, said.negative_prompt, said.settings) == (prompt, negative, told)
    if "Negative prompt: " not in prompt + negative:
        assert "Prompt lines" not in text.rsplit("\n", maxsplit=1)[-1] or "Prompt lines" in str(told)


@pytest.mark.parametrize("told", ["0", "9", "-1", "1.5", "x", "9" * 5000, "²"])
def test_a_forged_count_of_lines_is_no_count(told):
    said = read_infotext(f"a\nb\nNegative prompt: c\nSteps: 4, Prompt lines: {told}")
    assert (said.prompt, said.negative_prompt) == ("a\nb", "c")


def test_a_pipeline(wide_teacher):
    said = "\n".join(describe(wide_teacher))
    for line in ("StableDiffusionPipeline", "parameterisation: v_prediction", "resolution: 64×64", "fewstep distill"):
        assert line in said
    assert "unet: 4,2" in said


def test_a_run_and_its_model(random_student):
    said = "\n".join(describe(random_student))
    assert "done: 3 of 3 updates" in said
    folded = re.search(
        r"settings: as the recipe scenes has them, (\d+) of (\d+), but for\n(.*)all of them: config", said, re.S
    )
    assert folded
    other = folded[3].splitlines()
    assert int(folded[1]) + len(other) == int(folded[2]) == len(read_config_file(random_student / "config.yaml"))
    assert {"updates: 3", "batch_size: 4", "pictures: 24"} <= {*other}
    assert len(other) < 15
    assert "fewstep generate --model" in "\n".join(describe(random_student / "model"))


def test_a_picture_can_be_painted_again(random_student, fewstep_command, tmp_path):
    prompt = '--a "red" star, big: blue\nNegative prompt: on white'
    first = fewstep_command(
        "generate", "--model", random_student / "model", f"--prompt={prompt}", "--steps", 2, "--seed", 9,
        "--guidance-scale", 4, "--out", tmp_path / "a",
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    (picture,) = (tmp_path / "a").iterdir()
    *_, last = describe(picture)
    command = shlex.split(last.removeprefix("repaint it: fewstep "))
    again = fewstep_command(*command, "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    (repainted,) = (tmp_path / "b").iterdir()
    assert np.array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(repainted)))


def test_what_is_none_of_these(tmp_path):
    (tmp_path / "x.txt").write_text("x")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/x.safetensors").write_text("a text of another name")
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    for path, said in (
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "x.txt", "neither a picture"),
        (tmp_path / "plain.png", "does not say what painted it"),
        (tmp_path, "is neither a pipeline.*; give a model, a LoRA, a run folder"),
        (tmp_path / "text/x.safetensors", "not a safetensors file .it begins as a text does"),
    ):
        with pytest.raises(UserError, match=said):
            list(describe(path))


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (("lora.down.weight", "lora.up.weight"), "LoRA: diffusers or peft keys"),
        (("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"), "DoRA: diffusers or peft keys"),
    ],
)
def test_a_lora_of_another_tool(ends, said, tmp_path):
    tensors = {f"unet.mid_block.attentions.0.proj_in.{end}": torch.zeros(2, 2) for end in ends}
    safetensors.torch.save_file(tensors | {"bundle_emb.sks.clip_l": torch.zeros(1, 2)}, tmp_path / "x.safetensors")
    lines = list(describe(tmp_path / "x.safetensors"))
    assert lines[:2] == [said, "modules: 1"]
    assert "words for prompts: sks" in lines
    with pytest.raises(UserError, match=r"is a LoRA, not a model; give it with --lora"):
        recognise_file(tmp_path / "x.safetensors")


def test_what_is_no_lora_is_called_by_its_name(tmp_path):
    safetensors.torch.save_file({"lora_unet_mid.hada_w1_a": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds LoHa, such as lora_unet_mid"):
        list(describe(tmp_path / "x.safetensors"))


def test_of_several_files_in_a_folder_it_is_told_which_is_described(tmp_path):
    for name in ("one", "two"):
        halves = {"unet.x.lora_A.weight": torch.zeros(2, 4), "unet.x.lora_B.weight": torch.zeros(4, 2)}
        safetensors.torch.save_file(halves, tmp_path / f"{name}.safetensors")
    said = "file: two.safetensors, one of 2 in the folder; name another to see it: one.safetensors"
    assert said in [*describe(tmp_path)]
    (tmp_path / "one.safetensors").unlink()
    assert not [line for line in describe(tmp_path) if line.startswith("file:")]


def test_a_transformer_alone_is_no_lora(tmp_path):
    begin = ("double_blocks.0.img_attn.proj.bias", "single_blocks.0.linear1.weight", "vector_in.in_layer.weight")
    keys = (*begin, "guidance_in.in_layer.weight")  # without which it is schnell
    safetensors.torch.save_file({key: torch.zeros(2) for key in keys}, tmp_path / "x.safetensors")
    lines = list(describe(tmp_path / "x.safetensors"))
    assert lines[0] == "single-file checkpoint: FLUX.1 dev, the transformer alone"
    assert "--base-config BASE" in lines[-2]


def test_a_part_of_a_pipeline_is_told_so(random_teacher):
    with pytest.raises(UserError, match="is a part of a pipeline, of class AutoencoderKL"):
        list(describe(random_teacher / "vae"))


def test_a_unet_alone_is_told_with_what_can_be_done_with_it(random_teacher, tmp_path):
    lines = [*describe(random_teacher / "unet")]
    assert lines[0] == "UNet alone"
    assert lines[2].startswith("make it few-step: fewstep distill --teacher BASE --unet ")
    tensors = safetensors.torch.load_file(random_teacher / "unet" / "diffusion_pytorch_model.safetensors")
    told = {**tensors, "time_embedding.cond_proj.weight": torch.zeros(8, 4), "v_pred": torch.zeros(1)}
    safetensors.torch.save_file(told, tmp_path / "lcm.safetensors")
    lines = [*describe(tmp_path / "lcm.safetensors")]
    assert lines[0] == "UNet alone, few-step: it is told its guidance"
    assert "prediction_type v_prediction" in lines[2]
    assert lines[3].startswith("paint with it: fewstep generate --model BASE --unet ")


@pytest.mark.parametrize("piece", ["a", "a ", "\t", 'a: "', '"\\"', "a: ", ", ", " -/"])
def test_settings_are_read_in_linear_time(piece):
    begun = time.process_time()
    read_infotext(f"x\n{piece * (10**6 // len(piece))}")
    assert time.process_time() - begun < 3


def test_what_a_header_or_an_error_says_moves_no_cursor(tmp_path, capsys):
    header = {"fewstep.!": "\x1b]0;owned\x07", **{f"fewstep.{n}": "x" for n in range(1000)}}
    down = {"unet.x.lora_A.weight": torch.ones(2, 2), "unet.x.lora_B.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(down, tmp_path / "x.safetensors", header)
    inspect(Inspect(path=tmp_path / "x.safetensors"))
    shown = capsys.readouterr().out
    assert ("\x1b" in shown, r"\x1b" in shown, "and 801 entries more" in shown) == (False, True, True)
    with pytest.raises(SystemExit):
        cli.main(["\x1b[31m"])
    assert r"'\x1b[31m' is not a command" in capsys.readouterr().err


def test_a_picture_starts_no_program(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw it."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    file = tmp_path / "x.png"
    file.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for read in (read_picture, lambda path: [*describe(path)]):
        with pytest.raises(UserError):
            read(file)
    assert not (tmp_path / "ran").exists()


def test_a_model_in_the_hubs_cache_is_described(random_teacher, tmp_path):
    repository = put_in_cache(random_teacher, tmp_path)
    for place in (repository / "snapshots" / "abc", repository):
        assert [*describe(place)][:-1] == [*describe(random_teacher)][:-1]


def test_a_style_is_painted_on_what_is_few_step(tmp_path):
    of_scenes = list(
        advise_lora(tmp_path / "a b.safetensors", {"fewstep.teacher": "scenes", "fewstep.method": "style"})
    )
    file = f"'{tmp_path}/a b.safetensors'"
    assert of_scenes == [f'paint with it: fewstep generate --model scenes-lcm --lora {file}:0.8 --prompt "…"']
    of_others = list(advise_lora(tmp_path / "a b.safetensors", {"fewstep.teacher": "some/base"}))
    assert "few-step model of some/base" in of_others[1]
    assert of_others[2].endswith(f"--model some/base --lora LCM-LORA --lora {file}:0.8")


def test_an_lcm_lora_is_painted_by_its_folder_where_its_base_is_at_hand(tmp_path):
    file, made = tmp_path / "model" / "pytorch_lora_weights.safetensors", {"fewstep.method": "LCM-LoRA"}
    (painted,) = advise_lora(file, {**made, "fewstep.teacher": "scenes"})
    assert painted == f'paint with it: fewstep generate --model {file.parent} --prompt "…"'
    (named,) = advise_lora(file, {**made, "fewstep.teacher": "some/base"})
    assert named == f'paint with it: fewstep generate --model some/base --lora {file} --prompt "…"'
    (styled,) = advise_lora(file, {**made, "fewstep.teacher": "scenes", "fewstep.base_lora": '["some/style:0.8"]'})
    assert styled.endswith(f'--model scenes --base-lora some/style:0.8 --lora {file} --prompt "…"')


def test_updates_are_called_that():
    lines = [*describe(assets.scenes_lcm())]
    assert "updates: 120" in lines
    assert not any(line.startswith("steps:") for line in lines)
