"""The API over real connections: OpenAI's own client, AUTOMATIC1111's shape, the page's socket, and what is refused."""

import base64
import dataclasses
import io
import json
import time

import numpy as np
import openai
import pytest
from PIL import Image
from websockets.sync.client import connect

from fewstep.data.infotext import read_infotext
from fewstep.models.pipeline import Pipeline
from serving import PROMPT, ask, read_answer, serving


def opened(b64):
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def levels(image):
    return np.asarray(image.convert("RGB")).astype(int)


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.fixture
def client(served):
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_gets_a_picture(client, bundled):
    answer = client.images.generate(prompt=PROMPT, n=2, size="64x64", extra_body={"seed": 3, "steps": 4})
    assert len(answer.data) == 2
    for i, each in enumerate(answer.data):
        image = opened(each.b64_json)
        assert np.abs(levels(image) - levels(bundled(PROMPT, seed=3 + i)[0])).max() <= 1
        told = read_infotext(image.info["parameters"])
        assert (told.prompt, told.settings["Seed"], told.settings["Steps"]) == (PROMPT, str(3 + i), "4")


def test_openais_client_streams_steps_and_the_picture(client, bundled):
    events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=2, extra_body={"seed": 3}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    last = levels(opened(events[-1].b64_json))
    assert np.abs(last - levels(bundled(PROMPT, seed=3)[0])).max() <= 1
    assert all(np.abs(levels(opened(event.b64_json)) - last).mean() > 0.1 for event in events[:2])


def test_openais_client_edits_a_picture(client, bundled):
    start = bundled("a large red heart on a white background", seed=1)[0]
    answer = client.images.edit(
        image=("start.png", png(start), "image/png"), prompt="a large blue heart on a white background",
        extra_body={"seed": 5, "strength": 0.6},
    )  # fmt: skip
    wanted = bundled("a large blue heart on a white background", seed=5, init_image=start, strength=0.6)[0]
    assert np.abs(levels(opened(answer.data[0].b64_json)) - levels(wanted)).max() <= 1


def test_openais_client_lists_the_model_and_hears_errors(client, bundled):
    assert [model.id for model in client.models.list()] == [bundled.name]
    assert client.models.retrieve(bundled.name).id == bundled.name
    with pytest.raises(openai.NotFoundError, match=f"there is '{bundled.name}'"):
        client.images.generate(prompt=PROMPT, model="dall-e-3")
    with pytest.raises(openai.BadRequestError, match="give WIDTHxHEIGHT") as told:
        client.images.generate(prompt=PROMPT, size="large")
    assert told.value.param == "size"


@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_pictures_come_in_the_format_that_is_asked_for(served, form):
    (data,) = served.post("/v1/images/generations", prompt=PROMPT, output_format=form)["data"]
    assert opened(data["b64_json"]).format == form.upper()


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "prompt", "prompt is missing; send it too"),
        ({"prompt": "x" * 2001}, "prompt", "has 2001 letters; send at most 2000"),
        ({"prompt": PROMPT, "n": 9}, "n", "allowed: 1 to 8"),
        ({"prompt": PROMPT, "steps": 51}, "steps", "allowed: 1 to 50"),
        ({"prompt": PROMPT, "steps": 0}, "steps", "allowed: 1 to 50"),
        ({"prompt": PROMPT, "seed": -1}, "seed", "allowed: 0 to"),
        ({"prompt": PROMPT, "guidance_scale": 0.5}, "guidance_scale", "allowed: 1"),
        ({"prompt": PROMPT, "response_format": "url", "stream": True}, "response_format", "a stream holds"),
        ({"prompt": PROMPT, "output_compression": 101}, "output_compression", "allowed: 0 to 100"),
        ({"prompt": PROMPT, "partial_images": 9}, "partial_images", "allowed: 0 to 8"),
        ({"prompt": PROMPT, "loras": {"style": 1.0}}, "loras", "there are: none"),
        ({"prompt": PROMPT, "stepz": 4}, "stepz", "there is no such field; did you mean steps?"),
        ({"promt": PROMPT}, "promt", "there is no such field; did you mean prompt?"),  # codespell:ignore promt
        ({"prompt": PROMPT, "steps": "4"}, "steps", 'is "4"; send a whole number, without quotes'),
    ],
)
def test_what_is_refused_names_field_limit_and_remedy(served, body, param, message):
    error = served.post("/v1/images/generations", status=400, **body)["error"]
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/sdapi/v1/txt2img"])
@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_a_letter_is_refused(served, path, name):
    body = json.dumps({"prompt": "a", name: "a \ud800"})
    answer = served.http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == f"{name} has half a letter, \\ud800; send whole ones, in UTF-8"


def test_a_pictures_sides_are_refused_before_they_are_drawn_out(served):
    thin = base64.b64encode(png(Image.new("RGB", (30_000, 1)))).decode()
    error = served.post("/sdapi/v1/img2img", 400, prompt=PROMPT, init_images=[thin])["error"]
    assert "30000x1; a side may be 32 times the other" in error["message"]


def test_bodies_without_pictures_are_small(served):
    many = {"prompt": PROMPT, **{f"field{i}": 0 for i in range(10_000)}}
    assert "larger than 64 KiB" in served.post("/v1/images/generations", 413, **many)["error"]["message"]
    begun = time.monotonic()
    served.post("/sdapi/v1/img2img", 413, prompt=PROMPT, init_images=[0] * 1_000_000)
    assert time.monotonic() - begun < 2  # one error is told, not a million
    assert (
        "has 2001 letters"
        in served.post("/v1/images/generations", 400, prompt="a", negative_prompt="b" * 2001)["error"]["message"]
    )


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ('{"prompt": ', "application/json", "the body cannot be read: it is no JSON (Expecting value)"),
        ("prompt=a+red+star", "application/x-www-form-urlencoded", "form-urlencoded; send a JSON object, with Content"),
        ('["a red star"]', "application/json", 'the body is ["a red star"]; send a JSON object'),
    ],
)
def test_what_is_no_json_object_is_told_so(served, body, kind, message):
    answer = served.http.post("/v1/images/generations", content=body, headers={"content-type": kind})
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_what_the_client_should_know_is_told(served):
    answer = served.post(
        "/v1/images/generations", prompt="a red star and " * 20, negative_prompt="blur", guidance_scale=9, steps=1
    )
    said = " / ".join(answer["notes"])
    for message in ("the first 30 tokens", "negative prompt has no effect", "trained for 1 to 4"):
        assert message in said


def test_words_that_the_model_never_learnt_are_noted_by_every_api(served):
    asked = {"prompt": "a red cricle and a cat", "steps": 1}
    said = 'never learnt the words "cricle" (did you mean "circle"?), "and", "cat"; it knows 38 others, '
    (note,) = served.post("/v1/images/generations", **asked)["notes"]
    assert said in note
    (noted,) = json.loads(served.post("/sdapi/v1/txt2img", **asked, width=64, height=64)["info"])["notes"]
    assert noted == note
    assert served.post("/v1/images/generations", prompt=PROMPT, steps=1)["notes"] == []


def test_seeds_and_settings_change_pictures(served):
    def picture(**changes):
        body = {"prompt": PROMPT, "seed": 3, "steps": 2, **changes}
        return levels(opened(served.post("/v1/images/generations", **body)["data"][0]["b64_json"]))

    plain = picture()
    assert np.abs(picture() - plain).max() <= 1
    for changes in ({"seed": 4}, {"steps": 1}, {"guidance_scale": 4.0}):
        assert np.abs(picture(**changes) - plain).max() > 1, changes
    assert np.abs(picture(seed=None) - picture(seed=None)).max() > 1


def test_automatic1111s_clients_are_served(served, bundled):
    asked = {"prompt": PROMPT, "steps": 4, "seed": 3, "cfg_scale": 2, "width": 64, "height": 64, "batch_size": 2}
    answer = served.post("/sdapi/v1/txt2img", **asked, sampler_name="Euler a", restore_faces=False)
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [3, 4]
    assert np.abs(levels(opened(answer["images"][1])) - levels(bundled(PROMPT, seed=4)[0])).max() <= 1
    assert opened(answer["images"][0]).info["parameters"] == info["infotexts"][0]
    start = base64.b64encode(png(bundled("a pink heart")[0])).decode()
    again = served.post(
        "/sdapi/v1/img2img", **asked, init_images=[f"data:image/png;base64,{start}"], denoising_strength=0.5
    )
    assert np.abs(levels(opened(again["images"][0])) - levels(opened(answer["images"][0]))).mean() > 1
    assert served.http.get("/sdapi/v1/progress").json()["progress"] == 0
    assert served.http.get("/sdapi/v1/sd-models").json()[0]["model_name"] == bundled.name
    default = served.post("/sdapi/v1/txt2img", **{**asked, "width": 512, "height": 512, "batch_size": 1})
    assert opened(default["images"][0]).size == (64, 64)
    assert "this model paints 64x64" in json.loads(default["info"])["notes"][0]
    served.post("/sdapi/v1/txt2img", 400, **{**asked, "width": 0})
    served.post("/sdapi/v1/options", sd_model_checkpoint=bundled.name, CLIP_stop_at_last_layers=2)
    served.post("/sdapi/v1/options", 404, sd_model_checkpoint="another")
    assert served.post("/sdapi/v1/interrupt") == {}
    assert (
        "lora 'style' is not here"
        in served.post("/sdapi/v1/txt2img", 400, prompt="a <lora:style:0.8>")["error"]["message"]
    )


def test_of_what_is_typed_the_latest_wins(served, bundled):
    with connect(f"{served.url.replace('http', 'ws')}/ws") as page:
        for seq in range(1, 20):
            ask(page, seq, steps=8)
        answers = []
        while not answers or answers[-1][0]["seq"] != 19:
            answers.append(read_answer(page.recv(30)))
        assert len(answers) < 19
        head, image = answers[-1]
        assert (head["kind"], head["step"], head["seed"]) == ("picture", 8, 3)
        assert np.abs(levels(image) - levels(bundled(PROMPT, seed=3, steps=8)[0])).max() <= 1
        ask(page, 20, compare=[1, 2, 4, 8])
        assert [read_answer(page.recv(30))[0]["step"] for _ in range(4)] == [1, 2, 4, 8]
        ask(page, 21, previews=True)
        assert [read_answer(page.recv(30))[0]["kind"] for _ in range(4)] == ["step", "step", "step", "picture"]
        ask(page, 22, steps=99)
        refused = json.loads(page.recv(30))
        assert (refused["seq"], refused["error"]["param"]) == (22, "steps")
        ask(page, 23, **{f"field{i}": 0 for i in range(100)})
        assert "more than 64 fields" in json.loads(page.recv(30))["error"]["message"]
        page.send("no json")
        assert json.loads(page.recv(30))["error"]["code"] == "invalid_value"


def test_who_names_no_steps_gets_as_many_as_the_model_wants(bundled):
    model = dataclasses.replace(bundled.model, card=dataclasses.replace(bundled.model.card, sampling_steps=2))
    with serving(Pipeline(model)) as served, connect(f"{served.url.replace('http', 'ws')}/ws") as page:
        assert served.http.get("/api/model").json()["default_steps"] == 2
        (made,) = served.post("/v1/images/generations", prompt=PROMPT)["data"]
        start = png(opened(made["b64_json"]))
        edit = served.http.post("/v1/images/edits", data={"prompt": PROMPT}, files={"image": start}).json()
        theirs = served.post("/sdapi/v1/txt2img", prompt=PROMPT)
        assert theirs["parameters"]["steps"] == json.loads(theirs["info"])["steps"] == 2
        for image in (made["b64_json"], edit["data"][0]["b64_json"], theirs["images"][0]):
            assert read_infotext(opened(image).info["parameters"]).settings["Steps"] == "2"
        ask(page, 1)
        assert read_answer(page.recv(30))[0]["step"] == 2
        (asked,) = served.post("/v1/images/generations", prompt=PROMPT, steps=3)["data"]
        assert read_infotext(opened(asked["b64_json"]).info["parameters"]).settings["Steps"] == "3"


def test_what_stands_side_by_side_is_no_more_work_than_a_request_may_be(bundled):
    with serving(bundled, work=64 * 64 * 10) as served, connect(f"{served.url.replace('http', 'ws')}/ws") as page:
        ask(page, 1, compare=[1, 2, 4, 8])
        assert "15 steps of 64x64" in json.loads(page.recv(30))["error"]["message"]
        ask(page, 2, compare=[1, 2, 4])
        assert read_answer(page.recv(30))[0]["seq"] == 2


def test_state_is_told(served):
    assert served.http.get("/healthz").json() == {"status": "ok"}
    served.post("/v1/images/generations", prompt=PROMPT, steps=1)
    measures = served.http.get("/metrics").text
    assert 'fewstep_request_seconds_bucket{le="60.0",route="/v1/images/generations",status="200"}' in measures
    for name in ("fewstep_waiting 0.0", "fewstep_batch_size ", "fewstep_pictures_total "):
        assert name in measures
    assert "/v1/images/edits" in served.http.get("/openapi.json").json()["paths"]
