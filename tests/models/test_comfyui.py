"""The workflow beside a LoRA: held against ComfyUI's definitions of its nodes, and walked as ComfyUI walks it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from fewstep import assets
from fewstep.method.times import consistency_times, jump_times
from fewstep.models.card import LCM_LORA, STYLE_LORA, StudentCard
from fewstep.models.loading import load_latent_model
from fewstep.models.lora.comfyui import LCM_GRID, make_workflow
from miniatures import save_miniature

DEFINED = json.loads((Path(__file__).parent / "comfyui_nodes.json").read_text())
CARD = StudentCard(
    method=LCM_LORA, teacher="some/dreamshaper_8.safetensors", guidance_scale=8.5, grid_size=50, lora_rank=4
)  # fmt: skip
PCM = dataclasses.replace(CARD, consistency="pcm", phases=(4,), sampling_steps=4)


@pytest.fixture(scope="module")
def models(clip_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comfyui")
    return {
        name: load_latent_model(save_miniature(name, clip_tokenizer, folder / name), torch.device("cpu"))
        for name in ("sd1", "sd2", "sdxl")
    }


@pytest.fixture(scope="module")
def clip_tokenizer(clip):
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(clip)


def walk(workflow):
    """Returns every node's inputs by name, as ComfyUI's window makes them of fields and links; fails as it would."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link[1:] for link in workflow["links"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    assert len(links) == workflow["last_link_id"]
    prompt = {}
    for number, node in nodes.items():
        defined = DEFINED[node["type"]]
        values, slots = list(node["widgets_values"]), {slot["name"]: slot for slot in node["inputs"]}
        given = {}
        for name, wanted in defined["required"].items():
            if isinstance(wanted, str) and wanted.isupper() and wanted not in ("STRING", "BOOLEAN"):
                origin, output, target, slot, kind = links[slots.pop(name)["link"]]
                assert (target, node["inputs"][slot]["name"]) == (number, name)
                assert DEFINED[nodes[origin]["type"]]["returns"][output] == kind == wanted
                assert node["inputs"][slot]["link"] in nodes[origin]["outputs"][output]["links"]
                given[name] = (origin, output)
                continue
            given[name] = value = values.pop(0)
            if name == "seed":
                assert values.pop(0) in ("fixed", "increment", "decrement", "randomize")
            if wanted == "BOOLEAN":
                assert isinstance(value, bool)
            elif isinstance(wanted, str):
                assert isinstance(value, str)
            elif isinstance(wanted[0], str):
                assert value in wanted
            else:
                assert wanted[0] <= value <= wanted[1]
        assert not values, f"{node['type']} has fields of no input"
        assert not slots, f"{node['type']} has inputs that it does not know"
        prompt[number] = (node["type"], given)
    return prompt


def find(prompt, kind):
    return [given for name, given in prompt.values() if name == kind]


def simple_times(times, count):
    """ComfyUI's schedule `simple` on the times that a network may answer at, earliest first."""
    return [times[-(1 + int(i * len(times) / count))] for i in range(count)]


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_lcm(models, name):
    model = models[name]
    prompt = walk(make_workflow(model, CARD))
    (sampler,), (lora,), (loader,) = (
        find(prompt, kind) for kind in ("KSampler", "LoraLoader", "CheckpointLoaderSimple")
    )
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["cfg"], sampler["steps"]) == ("lcm", "simple", 1, 4)
    assert sampler["denoise"] == 1
    assert lora["lora_name"] == "lora-kohya.safetensors"
    assert (lora["strength_model"], lora["strength_clip"]) == (1, 1)
    assert loader["ckpt_name"] == "dreamshaper_8.safetensors"
    # The network that is sampled from has the LoRA on it, and so have both encoders.
    sampling = prompt[sampler["model"][0]]
    assert sampling[0] == "ModelSamplingDiscrete"
    assert prompt[sampling[1]["model"][0]][0] == "LoraLoader"
    assert all(prompt[each["clip"][0]][0] == "LoraLoader" for each in find(prompt, "CLIPTextEncode"))
    positive, negative = (prompt[sampler[side][0]][1]["text"] for side in ("positive", "negative"))
    assert (bool(positive), negative) == (True, "")
    (latent,) = find(prompt, "EmptyLatentImage")
    assert (latent["width"], latent["height"], latent["batch_size"]) == (model.resolution, model.resolution, 1)
    # With `lcm` ComfyUI lets it answer at every twentieth of 1,000 times, the last of them first.
    schedule = model.schedule
    assert sampling[1]["sampling"] == "lcm"
    allowed = list(range(schedule.last % 20, schedule.last + 1, schedule.num_steps // LCM_GRID))
    for count in (1, 2, 3, 4, 6, 8):
        assert simple_times(allowed, count) == consistency_times(schedule, CARD.grid_size, count)


def test_what_the_network_predicts_is_said(models):
    def sampling(model, card=CARD):
        return find(walk(make_workflow(model, card)), "ModelSamplingDiscrete")

    eps = next(model for model in models.values() if model.network.parameterisation == "epsilon")
    assert [each["sampling"] for each in sampling(eps)] == ["lcm"]
    assert sampling(eps, dataclasses.replace(CARD, grid_size=100)) == []  # `lcm` answers at 50 times alone
    assert sampling(eps, PCM) == []
    v = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    assert v.network.parameterisation == "v_prediction"
    assert [(each["sampling"], each["zsnr"]) for each in sampling(v)] == [("v_prediction", True)]
    assert [(each["sampling"], each["zsnr"]) for each in sampling(v, PCM)] == [("v_prediction", True)]


def test_a_folder_of_diffusers_is_no_file_to_load_and_its_own_words_are_asked_for(models, monkeypatch):
    teacher = load_latent_model(assets.scenes_teacher(), torch.device("cpu"))
    folder, file = (
        make_workflow(model, dataclasses.replace(CARD, teacher=base))
        for model, base in ((teacher, assets.SCENES), (models["sd1"], "dreamshaper_8.safetensors"))
    )
    named = folder["nodes"][0]
    assert (named["type"], named["title"]) == (
        "CheckpointLoaderSimple", "Choose the base here: scenes, as a single file",
    )  # fmt: skip
    assert "title" not in file["nodes"][0]
    (own, _) = find(walk(folder), "CLIPTextEncode")
    assert own["text"] == "a little orange cross above a yellow cross on black"
    monkeypatch.setattr("fewstep.models.lora.comfyui.find_vocabulary", lambda *_: None)
    (any_words, _) = find(walk(make_workflow(teacher, CARD)), "CLIPTextEncode")
    assert any_words["text"] == "a photo of a cat"


def test_pcm(models):
    model = models["sd1"]
    (sampler,) = find(walk(make_workflow(model, PCM)), "KSampler")
    assert (sampler["sampler_name"], sampler["scheduler"], sampler["cfg"], sampler["steps"]) == (
        "euler", "simple", 1, 4,
    )  # fmt: skip
    assert simple_times(list(range(1000)), 4) == jump_times(model.schedule, 4)[0]


@pytest.mark.parametrize(
    "card",
    [
        dataclasses.replace(CARD, consistency="any-step", phases=(1, 2, 4, 8)),
        dataclasses.replace(CARD, consistency="tcd"),
        dataclasses.replace(CARD, method=STYLE_LORA),
    ],
    ids=["told its end", "a share of noise", "a style"],
)
def test_no_workflow_where_no_nodes_sample_so(models, card):
    assert make_workflow(models["sd1"], card) is None
