"""What known clients do besides painting: they look around, prove who they are, come from other pages, fetch links."""

import base64
import io
import json

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from websockets.sync.client import connect

from fewstep.commands.serve import _list_other_names, _split_aliases
from fewstep.errors import UserError
from fewstep.models.pipeline import Pipeline
from fewstep.serve.errors import RefusedError
from fewstep.serve.kept_pictures import KeptPictures
from fewstep.serve.lora_tags import split_tags
from serving import serving, with_loras

PROMPT = "a pink heart"


def levels(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")).astype(int)


def notes_of(answer):
    return json.loads(answer["info"])["notes"] if "info" in answer else answer["notes"]


LISTS = ["samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-models"]
EMPTY = ["sd-vae", "sd-modules", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles", "script-info",
         "extensions", "loras"]  # fmt: skip
THINGS = ["cmd-flags", "scripts", "embeddings", "memory", "progress", "options"]
DONE = ["interrupt", "skip", "refresh-checkpoints", "refresh-vae", "refresh-loras", "unload-checkpoint"]


def test_what_clients_look_up_when_they_connect_is_there(served):
    for name in (*LISTS, *EMPTY, *THINGS):
        answer = served.http.get(f"/sdapi/v1/{name}")
        assert answer.status_code == 200, name
        found = answer.json()
        assert isinstance(found, list if name in LISTS + EMPTY else dict), name
        assert bool(found) == (name not in EMPTY), name
        assert all(set(each) & {"name", "model_name"} for each in found if name in LISTS), name
    for name in DONE:
        assert served.post(f"/sdapi/v1/{name}") == {}
    assert served.http.get("/internal/ping").status_code == 200
    assert served.http.get("/sdapi/v1/memory").json()["ram"]["total"] > 0


@pytest.mark.parametrize("path", ["/", "/v1/models", "/sdapi/v1/options", "/healthz", "/metrics"])
def test_head_is_get_without_its_body(served, path):
    head = served.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == served.http.get(path).headers["content-type"]


def test_png_info_reads_what_a_picture_was_painted_with(served):
    (image,) = served.post("/sdapi/v1/txt2img", prompt=PROMPT, steps=1, seed=5)["images"]
    found = served.post("/sdapi/v1/png-info", image=f"data:image/png;base64,{image}")
    assert found["parameters"] | {"Prompt": PROMPT, "Seed": "5"} == found["parameters"]
    assert found["info"] == found["items"]["parameters"]
    plain = io.BytesIO()
    Image.new("RGB", (8, 8)).save(plain, "jpeg")
    nothing = served.post("/sdapi/v1/png-info", image=base64.b64encode(plain.getvalue()).decode())
    assert nothing == {"info": "", "items": {}, "parameters": {}}
    assert "not base64" in served.post("/sdapi/v1/png-info", 400, image="?")["detail"]


def basic(user, password):
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_a_token_is_taken_as_a_password_too(bundled):
    with serving(bundled, token="secret") as served:
        ask = lambda headers: served.http.get("/sdapi/v1/options", headers=headers)  # noqa: E731
        assert ask(basic("anyone", "secret")).status_code == 200
        assert httpx.get(f"{served.url}/v1/models", auth=("user", "secret")).status_code == 200
        for wrong in (basic("secret", ""), basic("user", "secre"), {"authorization": "Basic ?"}, {}):
            answer = ask(wrong)
            assert answer.status_code == 401
            assert "Basic" in answer.headers["www-authenticate"]
    with serving(bundled, token="user:secret") as served:  # as --api-auth has it
        assert httpx.get(f"{served.url}/sdapi/v1/options", auth=("user", "secret")).status_code == 200
        assert httpx.get(f"{served.url}/sdapi/v1/options", auth=("other", "secret")).status_code == 401


ORIGIN = "http://localhost:3000"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type,x-client"}


def test_pages_of_an_allowed_origin_may_ask(bundled):
    with serving(bundled, origins=(ORIGIN,), token="secret") as served:
        asked = served.http.options("/sdapi/v1/txt2img", headers={"origin": ORIGIN, **PREFLIGHT})
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == ORIGIN
        assert asked.headers["access-control-allow-headers"] == "content-type,x-client"
        assert "POST" in asked.headers["access-control-allow-methods"]
        bearer = {"origin": ORIGIN, "authorization": "Bearer secret"}
        for headers, status in ((bearer, 200), ({"origin": ORIGIN}, 401)):  # why it failed can be read too
            answer = served.http.get("/v1/models", headers=headers)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, ORIGIN)
        with connect(f"{served.url.replace('http', 'ws')}/ws?token=secret", origin=ORIGIN):
            pass
        for headers in ({"origin": "http://localhost:3001"}, {"origin": "http://localhost:3001", **PREFLIGHT}):
            answer = served.http.options("/sdapi/v1/txt2img", headers=headers)
            assert answer.status_code == 403
            assert "--allowed-origin http://localhost:3001" in answer.json()["error"]["message"]
            assert "access-control-allow-origin" not in answer.headers
    with serving(bundled, origins=("*",)) as served:
        answer = served.http.get("/v1/models", headers={"origin": "https://elsewhere.example"})
        assert answer.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_who_asks_by_a_foreign_name_is_told_the_option(served):
    answer = served.http.get("/v1/models", headers={"host": "box.example:7860"})
    assert answer.status_code == 403
    assert "--allowed-host box.example" in answer.json()["error"]["message"]


def test_pictures_behind_links_are_fetched_without_a_token(bundled):
    with serving(bundled, token="secret") as served:
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0) as client:
            answer = client.images.generate(
                prompt=PROMPT, response_format="url", n=2, extra_body={"output_format": "webp", "seed": 3, "steps": 1}
            )
        for each in answer.data:
            assert each.b64_json is None
            fetched = httpx.get(each.url)
            assert (fetched.status_code, fetched.headers["content-type"]) == (200, "image/webp")
            assert Image.open(io.BytesIO(fetched.content)).size == (64, 64)
        assert answer.data[0].revised_prompt == PROMPT
        gone = httpx.get(answer.data[0].url + "x")
        assert (gone.status_code, "kept for an hour" in gone.json()["error"]["message"]) == (404, True)
        assert httpx.get(f"{served.url}/v1/models").status_code == 401


def test_links_last_an_hour_and_no_more_than_there_is_room():
    now = [0.0]
    kept = KeptPictures(clock=lambda: now[0])
    name = kept.add(b"picture", "image/png")
    now[0] = 3599
    assert kept.find(name).content == b"picture"
    now[0] = 3601
    assert kept.find(name) is None
    small = KeptPictures(most_bytes=10, clock=lambda: now[0])
    names = [small.add(b"1234", "image/png") for _ in range(3)]
    assert [small.find(name) is None for name in names] == [True, False, False]


def test_home_assistants_request_is_painted_where_the_model_has_that_name(bundled):
    asked = {
        "model": "dall-e-3", "prompt": PROMPT, "size": "1024x1024", "quality": "standard", "style": "vivid",
        "response_format": "url", "n": 1,
    }  # fmt: skip
    with serving(bundled, aliases=("dall-e-3",)) as served:
        answer = served.post("/v1/images/generations", **asked)
        assert httpx.get(answer["data"][0]["url"]).status_code == 200
        assert any("this model paints 64x64, which is nearest" in note for note in answer["notes"])
        assert [each["id"] for each in served.http.get("/v1/models").json()["data"]] == [bundled.name, "dall-e-3"]
        assert served.http.get("/v1/models/dall-e-3").json()["id"] == "dall-e-3"
        error = served.post("/v1/images/generations", 404, prompt=PROMPT, model="dall-e-2")["error"]
        assert error["code"] == "model_not_found"
        assert "--alias" in error["message"]
    assert _split_aliases(["a", "b=scenes-lcm"], "scenes-lcm") == ["a", "b"]
    for wrong in ("a=other", "=scenes-lcm"):
        with pytest.raises(UserError, match="give NAME=scenes-lcm"):
            _split_aliases([wrong], "scenes-lcm")


def test_compression_is_heeded(served):
    sizes = [
        len(served.post("/v1/images/generations", prompt=PROMPT, steps=1, seed=3, output_format="jpeg",
                        output_compression=quality)["data"][0]["b64_json"])
        for quality in (0, 50, 100)
    ]  # fmt: skip
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"steps": 20, "denoising_strength": 0.3}, "strength 0.3 has room for 15, which were taken"),
        ({"denoising_strength": 0.05}, "strength 0.05 has room for 2, which were taken"),
        ({"denoising_strength": 0}, "0.02 was taken, the least that this model has"),
        ({"steps": 1, "denoising_strength": 0.01}, "0.02 was taken"),
    ],
)
def test_steps_that_do_not_fit_a_strength_become_fewer(served, fields, wanted):
    (image,) = served.post("/sdapi/v1/txt2img", prompt=PROMPT, steps=1)["images"]
    answer = served.post("/sdapi/v1/img2img", prompt=PROMPT, init_images=[image], **fields)
    assert any(wanted in note for note in notes_of(answer))
    data = {"prompt": PROMPT, "strength": fields["denoising_strength"], "steps": fields.get("steps", "")}
    files = {"image": base64.b64decode(image)}
    edited = served.http.post("/v1/images/edits", data=data, files=files).json()
    assert any(wanted in note for note in edited["notes"])


@pytest.mark.parametrize(
    ("tag", "text", "network"),
    [
        ("<lora:a>", 1, 1), ("<lora:a:0.5>", 0.5, 0.5), ("<lora:a:0.5:0.8>", 0.5, 0.8), ("<lyco:a:0.5>", 0.5, 0.5),
        ("<lora:a:te=0.5:unet=0.8>", 0.5, 0.8), ("<lora:a:0.3:unet=0.8>", 0.3, 0.8), ("<lora:a:te=0.5>", 0.5, 0.5),
        ("<lora:a:>", 1, 1), ("<lora:a:-1:+.5>", -1, 0.5),
    ],
)  # fmt: skip
def test_tags_are_read_in_a1111s_order(tag, text, network):
    found = split_tags(f"{PROMPT} {tag}")
    assert (found.text, found.text_loras["a"], found.loras["a"], found.notes) == (PROMPT, text, network, [])


@pytest.mark.parametrize("tag", ["<lora:>", "<lora:a:b>", "<lora:a:1:2:3>", "<lora:a:dyn=4>", "<lora:a:nan>"])
def test_tags_that_are_not_read_whole_are_refused(tag):
    with pytest.raises(RefusedError, match="lora"):
        split_tags(f"{PROMPT} {tag}")


def test_prompts_with_commands_of_a1111_are_noted(served):
    for prompt, said in (
        ("a (red:1.2) star", "read as it stands"), ("a star BREAK a ring", "read as it stands"),
        ("a star <hypernet:x:1>", "<hypernet:x:1> is not known here"), ("a star <lora:x:0", ""), ("a star (red)", ""),
    ):  # fmt: skip
        notes = notes_of(served.post("/sdapi/v1/txt2img", prompt=prompt, steps=1))
        notes = [note for note in notes if "never learnt" not in note]
        assert [said in note for note in notes] == [True] * bool(said), prompt


def test_loras_are_found_by_all_their_names_with_a_scale_for_text_and_one_for_the_network():
    def shown(served, tags, **more):
        answer = served.post("/sdapi/v1/txt2img", prompt=f"{PROMPT} {tags}", seed=3, steps=1, **more)
        return levels(answer["images"][0]), json.loads(answer["info"])["infotexts"][0]

    pipeline = Pipeline(with_loras(text=True))
    names = {"style-v2.safetensors": "lora0", "My Style": "lora0"}
    with serving(pipeline, loras=("lora0", "lora1"), lora_aliases=names) as served:
        off = "<lora:lora0:0><lora:lora1:0>"
        plain, _ = shown(served, off)
        both, _ = shown(served, "<lora:lora0:0.8><lora:lora1:0>")
        for name in ("style-v2.safetensors", "my style", "LORA0"):
            assert np.abs(shown(served, f"<lora:{name}:0.8><lora:lora1:0>")[0] - both).max() <= 1
        network, told = shown(served, "<lora:lora0:0:0.8><lora:lora1:0>")
        text, _ = shown(served, "<lora:lora0:0.8:0><lora:lora1:0>")
        for one, other in ((plain, both), (plain, network), (plain, text), (network, both), (text, both)):
            assert np.abs(one - other).max() > 1
        assert "Lora 1: lora0:0.8" in told.replace('"', "")
        assert "Text lora 1: lora0:0" in told.replace('"', "")
        untagged, _ = shown(served, "")
        assert np.abs(shown(served, off, disable_extra_networks=True)[0] - untagged).max() <= 1
        refused = served.post("/sdapi/v1/txt2img", 400, prompt=f"{PROMPT} <lora:other:1>")
        assert "lora 'other' is not here; there are: lora0, lora1" in refused["error"]["message"]
        assert {each["name"] for each in served.http.get("/sdapi/v1/loras").json()} == {"lora0", "lora1"}


def test_other_names_of_loras_are_their_files_and_trainers(tmp_path):
    import safetensors.torch
    import torch

    paths = {}
    for name, file, written in (("a", "one.safetensors", "My Style"), ("b", "two.safetensors", "Same"),
                                ("c", "three.safetensors", "Same")):  # fmt: skip
        paths[name] = tmp_path / file
        safetensors.torch.save_file({"x": torch.zeros(1)}, paths[name], {"ss_output_name": written})
    found = _list_other_names(paths)
    assert found == {
        "one.safetensors": "a", "one": "a", "My Style": "a", "two.safetensors": "b", "two": "b",
        "three.safetensors": "c", "three": "c",
    }  # fmt: skip
