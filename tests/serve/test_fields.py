"""No field of A1111's or OpenAI's requests is dropped: each is obeyed, refused, noted, or changes no picture."""

import base64
import io
import itertools
import json
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import yaml
from openai.types import image_edit_params, image_generate_params
from PIL import Image, ImageDraw

from fewstep.serve.fields import read_rules
from fewstep.serve.openai_fields import ObeyedFields
from fewstep.serve.sdapi_fields import ImageToImage, Options, TextToImage

PUBLISHED = {
    **yaml.safe_load((Path(__file__).parent / "published_fields.yaml").read_text()),
    "generations": [*get_type_hints(image_generate_params.ImageGenerateParamsBase), "stream"],
    "edits": [*get_type_hints(image_edit_params.ImageEditParamsBase), "stream"],
}
MODELS = {"txt2img": TextToImage, "img2img": ImageToImage, "options": Options, "generations": ObeyedFields}
OUTLANDISH = {"text": "xyz", "list": ["xyz"], "object": {"ControlNet": {"args": [1]}}, "number": 0.123, None: 0.123}
"""Values that no rule takes for neutral, by their kind; of true and false it is the other one."""


def outlandish(rule):
    return rule.neutral == () or not rule.neutral[0] if rule.kind == "boolean" else OUTLANDISH[rule.kind]


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def half(right=255, mode="L"):
    mask = Image.new(mode, (64, 64), 0)
    mask.paste(right, (32, 0, 64, 64))
    return png(mask)


@pytest.fixture(scope="module")
def start():
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((16, 16, 40, 48), "red")
    return png(image)


@pytest.fixture(scope="module")
def ask(served, start):
    """Posts a request of one kind on top of a plain one of a single step."""
    plain = {
        "txt2img": {"prompt": "a pink heart", "seed": 3, "steps": 2},
        "img2img": {"prompt": "a blue star", "seed": 3, "steps": 2, "init_images": [start], "denoising_strength": 0.8},
        "generations": {"prompt": "a pink heart", "seed": 3, "steps": 2},
    }

    def post(kind, **more):
        path = "/v1/images/generations" if kind == "generations" else f"/sdapi/v1/{kind}"
        return served.http.post(path, json={**plain[kind], **more})

    return post


def read(answer):
    """The pictures, and the notes."""
    body = answer.json()
    if "info" in body:
        return body["images"], json.loads(body["info"])["notes"]
    return [each.get("b64_json", each.get("url")) for each in body["data"]], body["notes"]


def levels(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_every_published_field_has_a_rule(kind):
    assert [name for name in PUBLISHED[kind] if name not in read_rules(kind)] == []


@pytest.mark.parametrize("kind", MODELS)
def test_what_the_table_calls_obeyed_is_what_is_read(kind):
    obeyed = {name for name, rule in read_rules(kind).items() if rule.treatment == "obeyed"}
    assert set(MODELS[kind].model_fields) == obeyed


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "generations"])
def test_what_is_not_obeyed_is_refused_or_noted_or_harmless(ask, kind):
    before, notes = read(ask(kind))
    assert notes == []
    others = {name: rule for name, rule in read_rules(kind).items() if rule.treatment != "obeyed"}
    asked = {name: outlandish(rule) for name, rule in others.items()}
    for name in [name for name, rule in others.items() if rule.treatment == "refused"]:
        answer = ask(kind, **{name: asked.pop(name)})
        assert (answer.status_code, name in answer.json()["error"]["message"]) == (400, True)
    after, notes = read(ask(kind, **asked))
    assert np.abs(levels(after[0]) - levels(before[0])).max() <= 1
    noted = {name: rule for name, rule in others.items() if rule.treatment == "noted"}
    assert {note.split(" ")[0]: note.rpartition("no effect: ")[2] for note in notes} == {
        name: rule.why for name, rule in noted.items()
    }
    for i in range(max(len(rule.neutral) for rule in others.values())):
        neutral = {name: rule.neutral[i] if i < len(rule.neutral) else None for name, rule in others.items()}
        assert read(ask(kind, **neutral))[1] == []


OBEYED = {
    "txt2img": {
        "prompt": ["a green cross"], "negative_prompt": ["blur"], "seed": [4], "steps": [1], "cfg_scale": [4.0],
        "width": [32], "height": [32], "batch_size": [2], "n_iter": [2],
        "override_settings": [{"CLIP_stop_at_last_layers": 2}],
        "send_images": [False], "enable_hr": [True],
    },
    "img2img": {
        "denoising_strength": [0.2], "mask": [half()], "init_images": [[half(mode="RGB", right=(9, 99, 200))]],
        "resize_mode": [3], "include_init_images": [True],
    },
    "generations": {
        "n": [2], "size": ["512x512"], "response_format": ["url"], "output_format": ["jpeg"], "guidance_scale": [4.0],
    },
}  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, fields in OBEYED.items() for name in fields])
def test_what_is_obeyed_changes_the_answer(ask, kind, name):
    (value,) = OBEYED[kind][name]
    before, after = ask(kind), ask(kind, **{name: value})
    assert after.status_code == 200, after.text
    first, last = before.json(), after.json()
    for body in (first, last):
        body.pop("created", None)
    assert first.keys() == last.keys()
    assert read(before) != read(after) or first["parameters"] != last["parameters"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("hr_scale", [2.0, 1.5]), ("hr_upscaler", ["Latent", "Lanczos", "Nearest", "Latent (nearest)"]),
        ("hr_second_pass_steps", [0, 4]), ("hr_resize_x", [0, 96]), ("hr_resize_y", [0, 96]),
        ("hr_prompt", ["", "a green cross"]), ("denoising_strength", [0.75, 0.3]), ("hr_cfg", [None, 4.0]),
    ],
)  # fmt: skip
def test_a_second_pass_heeds_its_fields(ask, name, values):
    shown = [levels(read(ask("txt2img", enable_hr=True, **{name: value}))[0][0]) for value in values]
    assert shown[0].shape == (128, 128, 3)
    for one, other in itertools.pairwise(shown):
        assert one.shape != other.shape or np.abs(one - other).max() > 1


def test_a_second_pass_has_tags_of_its_own(ask):
    asked = {"enable_hr": True, "hr_prompt": "a green cross <lora:other:1>"}
    assert "lora 'other' is not here" in ask("txt2img", **asked).json()["error"]["message"]
    unheeded = ask("txt2img", **asked, disable_extra_networks=True)
    plain = ask("txt2img", enable_hr=True, hr_prompt="a green cross")
    assert np.abs(levels(read(unheeded)[0][0]) - levels(read(plain)[0][0])).max() <= 1


def test_a_second_pass_is_the_first_picture_painted_on(ask):
    first = levels(read(ask("txt2img"))[0][0])
    answer = ask("txt2img", enable_hr=True, hr_upscaler="Nearest", denoising_strength=0.05, hr_second_pass_steps=1)
    (picture,), notes = read(answer)
    grown = levels(picture)
    assert np.abs(grown[::2, ::2] - first).mean() < 20  # small models paint little on what they do not know
    info = json.loads(answer.json()["info"])
    assert (info["width"], info["height"]) == (128, 128)
    assert "Hires resize: 128x128, Hires upscaler: Nearest, Hires steps: 1" in info["infotexts"][0]
    assert notes == []
    _, notes = read(ask("txt2img", enable_hr=True, hr_upscaler="4x-UltraSharp", hr_negative_prompt="blur"))
    assert any("'4x-UltraSharp' is not here; Lanczos was taken" in note for note in notes)
    assert any("the negative prompt has no effect" in note for note in notes)
    for field, value, said in (
        ("hr_scale", 9, "allowed: 1 to 4"), ("hr_resize_x", 4096, "allowed:"),
        ("denoising_strength", 2, "0 to 1"),
    ):  # fmt: skip
        refused = ask("txt2img", enable_hr=True, **{field: value})
        assert (refused.status_code, said in refused.json()["error"]["message"]) == (400, True)


def test_settings_of_one_request_and_of_the_server_are_noted_where_they_would_change_pictures(ask, served):
    _, notes = read(ask("txt2img", override_settings={"CLIP_stop_at_last_layers": 2, "samples_save": False, "abc": 1}))
    assert [note.split(" ")[0] for note in notes] == ["override_settings.CLIP_stop_at_last_layers", "not"]
    assert ask("txt2img", override_settings={"sd_model_checkpoint": "another"}).status_code == 404
    held = served.http.get("/sdapi/v1/options").json()
    assert served.post("/sdapi/v1/options", **held) is None
    noted = {name: rule for name, rule in read_rules("options").items() if rule.treatment == "noted"}
    assert set(noted) <= set(held)
    told = served.post("/sdapi/v1/options", **{name: outlandish(rule) for name, rule in noted.items()})["notes"]
    assert {note.split(" ")[0] for note in told} == set(noted) - {"enable_emphasis"}  # of which both are neutral


def test_fields_that_nobody_knows_are_named(ask):
    _, notes = read(ask("txt2img", **{f"field{i}": i for i in range(30)}))
    (note,) = notes
    assert note.startswith("not known here and without effect: field0, field1")
    assert note.endswith("and 10 others")


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "generations"])
def test_null_is_a_field_left_out(ask, kind):
    nulls = {
        name: None for name in (*MODELS[kind].model_fields, *read_rules(kind)) if name not in ("prompt", "init_images")
    }
    answer = ask(kind, **nulls)
    assert answer.status_code == 200, answer.text
    _, notes = read(answer)
    assert [note for note in notes if "no effect" in note] == []


def test_a_form_with_a_field_too_many_is_refused_and_with_another_noted(served, start):
    def edit(**fields):
        files = {"image": ("a.png", base64.b64decode(start))}
        return served.http.post("/v1/images/edits", data={"prompt": "a blue star", "steps": 1, **fields}, files=files)

    others = {name: rule for name, rule in read_rules("edits").items() if rule.treatment != "obeyed"}
    for name, rule in others.items():
        answer = edit(**{name: str(outlandish(rule))})
        assert answer.status_code == (400 if rule.treatment == "refused" else 200), answer.text
        if rule.treatment == "noted":
            assert [name in note for note in answer.json()["notes"]] == [True]
    assert edit(stepz=3).json()["error"]["param"] == "stepz"
