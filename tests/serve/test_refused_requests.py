"""What is refused is told in one plain line, on every route: which field, what was found in it, and what to do."""

import base64
import io
import json
import re

import openai
import pytest
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fewstep.serve.fields import read_rules
from fewstep.serve.socket_route import LiveRequest
from serving import serving

JSON = {"content-type": "application/json"}
WRONG = [7, True, "x", [], {}, [7], {"a": "b"}, 0.5, 10**30]
MACHINES_WORDS = re.compile(r"\b(Input|should|required|valid|Value error|Not Found|Not Allowed|[A-Z]\w+Error)\b|body\.")
JSON_ROUTES = {
    "/v1/images/generations": {"prompt": "a", "steps": 0},
    "/sdapi/v1/txt2img": {"prompt": "a", "steps": 0},
    "/sdapi/v1/img2img": {"prompt": "a", "steps": 0},
    "/sdapi/v1/png-info": {"image": "?"},
    "/sdapi/v1/options": {"sd_model_checkpoint": "another"},
}
"""Bodies that are refused themselves, so that what is not refused before them costs no picture."""


def check_line(answer, *words):
    """The message of a refusal, which is one line in plain words and has these in it."""
    assert 400 <= answer.status_code < 500, answer.text
    told = answer.json()
    message = told["error"]["message"]
    assert told["detail"] == message
    assert "\n" not in message
    assert len(message) <= 1000
    assert MACHINES_WORDS.search(message) is None, message
    assert re.search(r"[;:] |allowed:", message), message  # what to do
    for word in words:
        assert word in message
    return message


def post(served, path, content):
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    return served.http.post(path, content=text, headers=JSON)


@pytest.fixture
def page(served):
    with connect(f"{served.url.replace('http', 'ws')}/ws") as page:
        yield page


def ask_page(page, text):
    page.send(text)
    return json.loads(page.recv(10))


@pytest.mark.parametrize("path", JSON_ROUTES)
def test_a_wrong_kind_of_value_is_told_with_its_field(served, path):
    schema = served.http.get("/openapi.json").json()
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = schema["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"]
    named = 0
    for field in fields:
        for value in WRONG if field != "steps" else WRONG[1:-1]:
            told = check_line(post(served, path, {**JSON_ROUTES[path], field: value}))
            named += told.startswith(field) and "; send " in told
    assert named >= 3 * len(fields) / 2


def test_a_wrong_kind_of_value_is_told_to_a_page_with_its_message(page):
    for field in LiveRequest.model_fields:
        for value in WRONG if field not in ("steps", "compare") else [True, "x", {}]:
            told = ask_page(page, json.dumps({"seq": 5, "prompt": "a", "steps": 0, "previews": False, field: value}))
            message = told["error"]["message"]
            assert MACHINES_WORDS.search(message) is None
            assert field == "seq" or told["seq"] == 5
    told = ask_page(page, '{"seq": 6, "prompt": "a", "stepz": 1}')
    assert (told["seq"], "did you mean steps? (the fields are seq, prompt," in told["error"]["message"]) == (6, True)


def test_a_wrong_kind_of_value_in_a_form_is_told(served):
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "png")
    sent = {"prompt": "a", "steps": "0"}

    def edit(files=None, **fields):
        files = {"image": ("a.png", picture.getvalue())} if files is None else files
        return served.http.post("/v1/images/edits", data={**sent, **fields}, files=files)

    check_line(edit(n="x"), 'n is "x"; send a whole number')
    check_line(edit(strength="nan"), "strength is", "a finite number")
    check_line(edit(stream="maybe"), 'stream is "maybe"; send true or false')
    check_line(edit(output_format="gif"), "output_format is \"gif\"; send 'png', 'jpeg' or 'webp'")
    check_line(edit(image="text", files={"mask": ("m.png", b"")}), 'image is "text"; send a file')
    alone = served.http.post("/v1/images/edits", files={"prompt": ("a.txt", b"a")})
    check_line(alone, "prompt is a file; send text")
    check_line(edit(stepz="1"), "did you mean steps?")
    check_line(edit(loras='{"a": "b"}'), 'loras.a is "b"; send a number, without quotes')
    check_line(edit(loras='{"a": 1, "a": 2}'), "a stands more than once in one object of the field loras")
    check_line(edit(loras="[1]"), "loras is [1]; send an object")
    check_line(edit(loras="{"), "the field loras cannot be read")
    check_line(edit(n=["1", "2"]), "n stands more than once in the form; send it once")
    check_line(edit(files=[("image", ("a.png", b"a"))] * 2), "image: 2 pictures were sent; send one")
    for kind in ("multipart/form-data", "multipart/form-data; boundary=x"):
        answer = served.http.post("/v1/images/edits", content=b"--y\r\nprompt", headers={"content-type": kind})
        check_line(answer)


BODIES = {
    "nothing": ("", "application/json", "the body is empty; send a JSON object, with Content-Type: application/json"),
    "white space": (" ", "application/json", "the body cannot be read: it is empty; send a JSON object"),
    "a form": ("prompt=a", "application/x-www-form-urlencoded", "was sent as application/x-www-form-urlencoded; send"),
    "text": ('{"prompt": "a"}', "text/plain", "the body was sent as text/plain; send a JSON object"),
    "no kind": ('{"prompt": "a"}', "", "the body was sent as nothing, without a Content-Type; send a JSON object"),
    "null": ("null", "application/json", "the body is null; send a JSON object"),
    "a list": ("[1, 2]", "application/json", "the body is [1, 2]; send a JSON object"),
    "Latin-1": (b'{"prompt": "\xe4"}', "application/json", "it is not UTF-8; send JSON in UTF-8"),
    "half a letter": ('{"\\ud800": 1}', "application/json", "half a letter, \\ud800; send whole ones"),
    "half a letter, deep": ('{"a": [{"b": "\\ud800"}]}', "application/json", "a has half a letter, \\ud800"),
    "twice": ('{"prompt": "a", "prompt": "a"}', "application/json", "prompt stands more than once in one object of"),
    "twice, deep": ('{"a": [{"b": 1, "c": 2, "b": 1}]}', "application/json", "b stands more than once in one object"),
    "twice, long": (
        '{"image": "' + "A" * 70_000 + '", "seed": 1, "seed": 2}', "application/json", ("seed stands", "larger than"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BODIES)
def test_a_body_that_is_none_is_told(served, case):
    content, kind, wanted = BODIES[case]
    for path in JSON_ROUTES:
        answer = served.http.post(path, content=content, headers={"content-type": kind} if kind else {})
        told = check_line(answer)
        assert any(each in told for each in ([wanted] if isinstance(wanted, str) else wanted))
    sent = served.http.post("/v1/images/edits", content=content, headers={"content-type": "application/json"})
    check_line(sent, "form, with Content-Type: multipart/form-data")


def test_a_message_that_is_none_is_told(page):
    for text, wanted in (
        (b"{}", "the message is binary; send JSON, as text"), ("", "the message cannot be read: it is empty"),
        ("[]", "a list was sent; send a JSON object"), ("{}", "seq is missing; send it too"),
        ('{"seq": 1, "seq": 2, "prompt": "a"}', "seq stands more than once in one object of the message; send it once"),
        ('{"seq": 1, "prompt": "a", "loras": {"a": 1, "a": 2}}', "a stands more than once"),
        ('{"seq": 1, "prompt": "a", "size": "\\ud800"}', "size has half a letter"),
    ):  # fmt: skip
        assert wanted in ask_page(page, text)["error"]["message"]


def test_names_of_clients_stay_in_their_line(served):
    told = check_line(post(served, "/v1/images/generations", {"prompt": "a", "a\nb\x1b[2J" + "c" * 3000: 1}))
    assert told.startswith("a\\nb\\x1b[2Jccc")
    post(served, "/sdapi/v1/txt2img", {"prompt": "a", "steps": 0, "x\n": 1})


def test_paths_and_methods_that_are_none_are_told(served):
    for path, wanted in (
        ("/nowhere", "there is nothing at /nowhere; /docs lists the routes"),
        ("/v1/image/generations", "did you mean /v1/images/generations? /docs lists the routes"),
        ("/images/generations", "did you mean /v1/images/generations?"), ("/a%0Ab", "there is nothing at /a\\nb;"),
        ("/ws", "/ws is a WebSocket, and a plain request came; open it as one"),
    ):  # fmt: skip
        answer = served.http.post(path, json={})
        check_line(answer, wanted)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    for method, path, allowed in (
        ("GET", "/v1/images/generations", "POST"), ("DELETE", "/sdapi/v1/options", "GET, POST"), ("PUT", "/", "GET"),
        ("POST", "/v1/models/x", "GET"), ("GET", "/sdapi/v1/interrupt", "POST"),
    ):  # fmt: skip
        answer = served.http.request(method, path)
        check_line(answer, f"{path} does not take {method}; send {allowed} (/docs lists the routes)")
        assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert served.http.get("/docs").status_code == 200


def test_a_socket_is_refused_in_words_too(bundled, capfd):
    with serving(bundled, token="secret") as served:
        url = served.url.replace("http", "ws")
        for path, status, wanted in (
            ("/ws", 401, "a token is needed"), ("/nowhere?token=secret", 404, "there is nothing at /nowhere;"),
        ):  # fmt: skip
            with pytest.raises(InvalidStatus) as refused, connect(url + path):
                pass
            assert refused.value.response.status_code == status
            assert wanted in json.loads(refused.value.response.body)["error"]["message"]
    assert "handshake" not in capfd.readouterr().err  # it is no fault of the server's


KINDS = {
    "text": [7, True, ["x"]], "number": ["x", True, [1]], "boolean": [2, "x", []], "list": ["x", 7, {}],
    "object": ["x", 7, []],
}  # fmt: skip
NO_KIND = {"sampler_noise_scheduler_override", "sd_model", "init_images", "frame_duration_ms", "svg", "markup"}


@pytest.mark.parametrize("kind", ["txt2img", "img2img", "generations"])
def test_fields_that_are_not_obeyed_have_their_kind_of_value_or_are_refused(served, kind):
    path = "/v1/images/generations" if kind == "generations" else f"/sdapi/v1/{kind}"
    others = {name: rule for name, rule in read_rules(kind).items() if rule.treatment != "obeyed"}
    assert {name for name, rule in others.items() if rule.kind is None} <= NO_KIND
    for name, rule in others.items():
        for value in KINDS.get(rule.kind, []):
            check_line(post(served, path, {"prompt": "a", "steps": 0, name: value}), f"{name} is ", "; send ")


def test_settings_have_their_kind_of_value_or_are_refused(served):
    for name, rule in read_rules("options").items():
        for value in KINDS[rule.kind][:1] if rule.kind else ():
            check_line(post(served, "/sdapi/v1/options", {name: value}), f"{name} is ", "; send ")
    asked = {"prompt": "a", "override_settings": {"CLIP_stop_at_last_layers": "two"}}
    answer = post(served, "/sdapi/v1/txt2img", asked)
    check_line(answer, 'override_settings.CLIP_stop_at_last_layers is "two"; send a number')
    assert answer.json()["error"]["param"] == "override_settings.CLIP_stop_at_last_layers"
    for fields in ({"sampler_name": "Euler a"}, {"eta": "0.5"}, {"restore_faces": 1}):  # as that program reads them
        check_line(post(served, "/sdapi/v1/txt2img", {"prompt": "a", "steps": 0, **fields}), "steps is 0")


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"cfg_scale": 0.5}, "cfg_scale is 0.5; "), ({"batch_size": 4, "n_iter": 4}, "batch_size times n_iter is 16; "),
        ({"denoising_strength": 2}, "denoising_strength is 2; "), ({"hr_cfg": 0.5}, "hr_cfg is 0.5; "),
        ({"hr_second_pass_steps": 99}, "hr_second_pass_steps is 99; "), ({"hr_prompt": "x" * 2001}, "hr_prompt has "),
        ({"hr_negative_prompt": "x" * 2001}, "hr_negative_prompt has "), ({"steps": 99}, "steps is 99; "),
    ],
)  # fmt: skip
def test_fields_are_called_what_the_client_calls_them(served, fields, wanted):
    answer = post(served, "/sdapi/v1/txt2img", {"prompt": "a", "enable_hr": True, **fields})
    assert check_line(answer).startswith(wanted)


def test_steps_side_by_side_are_called_what_the_page_calls_them(page):
    told = ask_page(page, '{"seq": 1, "prompt": "a", "compare": [1, 99]}')["error"]
    assert (told["param"], told["message"]) == ("compare", "compare is 99; allowed: 1 to 50")


def test_what_was_used_is_counted_in_tokens_of_the_prompt(served, bundled):
    prompts = ("a red star", "a red star and " * 20, "")
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        used = [client.images.generate(prompt=each, extra_body={"steps": 1}).usage for each in prompts]
        (done,) = client.images.generate(prompt=prompts[0], stream=True, extra_body={"steps": 1})
    counts = [bundled.model.conditioner.count_tokens(each) for each in prompts]
    assert counts[2] < counts[0] < counts[1] == bundled.model.conditioner.limit
    for usage, count in zip([*used, done.usage], [*counts, counts[0]], strict=True):
        assert (usage.input_tokens, usage.total_tokens, usage.output_tokens) == (count, count, 0)
        assert (usage.input_tokens_details.text_tokens, usage.input_tokens_details.image_tokens) == (count, 0)


@pytest.mark.parametrize("prompt", ["", "  "])
def test_an_empty_prompt_is_painted_and_noted_wherever_it_comes_from(served, bundled, page, prompt):
    with pytest.warns(UserWarning, match="the prompt is empty"):
        wanted = bundled(prompt, seed=3, steps=1)[0]
    ours = served.post("/v1/images/generations", prompt=prompt, seed=3, steps=1)
    theirs = served.post("/sdapi/v1/txt2img", prompt=prompt, seed=3, steps=1)
    page.send(json.dumps({"seq": 1, "prompt": prompt, "seed": 3, "steps": 1}))
    message = page.recv(30)
    size = int.from_bytes(message[:4], "big")
    told = [ours["notes"], json.loads(theirs["info"])["notes"], json.loads(message[4 : 4 + size])["notes"]]
    assert [any("the prompt is empty" in each for each in notes) for notes in told] == [True] * 3
    files = [base64.b64decode(ours["data"][0]["b64_json"]), base64.b64decode(theirs["images"][0]), message[4 + size :]]
    for content in files:
        assert list(Image.open(io.BytesIO(content)).getdata()) == list(wanted.getdata())


def test_seeds_have_one_range_everywhere(served, page):
    for seed in (-2, 2**63):
        for path in ("/v1/images/generations", "/sdapi/v1/txt2img"):
            check_line(post(served, path, {"prompt": "a", "seed": seed}), f"seed is {seed}; ")
        assert (
            f"seed is {seed}; "
            in ask_page(page, json.dumps({"seq": 1, "prompt": "a", "seed": seed}))["error"]["message"]
        )
    check_line(post(served, "/v1/images/generations", {"prompt": "a", "seed": -1}), f"allowed: 0 to {2**63 - 1}")
    asked = {"prompt": "a", "seed": 2**63 - 1, "n": 2}
    check_line(post(served, "/v1/images/generations", asked), f"allowed: 0 to {2**63 - 2}")
    assert served.post("/v1/images/generations", prompt="a", steps=1, seed=2**63 - 1)["data"][0]["seed"] == 2**63 - 1
    drawn = served.post("/sdapi/v1/txt2img", prompt="a", steps=1, seed=-1)
    assert 0 <= json.loads(drawn["info"])["seed"] < 2**32
