"""`fewstep serve`, as the command: where it listens, who may come, and how it goes."""

import base64
import io
import json
import signal
import socket
import threading

import httpx
import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import attacks
from fewstep.commands.serve import Serve, make_service
from serving import Command, WarmCommand

PROMPT = "a small red star above a blue ring on a white background"


@pytest.mark.parametrize(("number", "started"), [(signal.SIGTERM, Command), (signal.SIGINT, WarmCommand)])
def test_told_to_stop_it_finishes_what_it_accepted(number, started):
    served = started("--batch", 4)
    answers, begun = [], threading.Barrier(9)
    page, paused = connect(f"{served.url.replace('http', 'ws')}ws"), attacks.open_page(served.url)
    paused.sendall(attacks.frame(b'{"seq": 1, "prom', fin=False))  # the rest of which does not come
    page.send(json.dumps({"seq": 1, "prompt": PROMPT, "compare": [10] * 8}))

    def ask(i):
        with httpx.Client(base_url=served.url, timeout=60) as client:
            client.get("/healthz")
            begun.wait()
            answers.append(
                client.post("/v1/images/generations", json={"prompt": PROMPT, "seed": i, "steps": 4, "n": 4})
            )

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    begun.wait()
    with httpx.Client(base_url=served.url) as client:
        while "fewstep_batches_total 0.0" in client.get("/metrics").text:
            pass
    served.send_signal(number)
    painted = [page.recv(30) for _ in range(8)]
    with pytest.raises(ConnectionClosed) as closed:
        page.recv(30)
    status, said, wrong = served.wait()
    for thread in threads:
        thread.join()
    paused.close()
    assert (status, wrong) == (0, "")
    assert all(b'"kind": "picture"' in each for each in painted)
    assert closed.value.rcvd.code == 1012
    assert said == "fewstep: stopped; what was accepted is done\n"
    assert {answer.status_code for answer in answers} <= {200, 503}
    done = [answer for answer in answers if answer.status_code == 200]
    assert len(done) >= 1
    assert all(len(answer.json()["data"]) == 4 for answer in done)


def levels(b64):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64)))).astype(int)


@pytest.fixture
def lcm_lora(fewstep_command, tmp_path):
    """A run folder of one that does something."""
    few = ("--steps", 2, "--batch-size", 2, "--pictures", 4, "--lr", 0.02, "--lora-rank", 4, "--sample-every", 0)
    done = fewstep_command("distill", "scenes-lora", *few, "--out", tmp_path / "few")
    assert done.returncode == 0, done.stderr
    return tmp_path / "few"


def test_loras_have_sliders(lcm_lora):
    served = WarmCommand("--model", "scenes", "--lora", lcm_lora)
    with httpx.Client(base_url=served.url, timeout=60) as client:
        assert client.get("/api/model").json()["loras"] == {"few": 1.0}

        def picture(**loras):
            body = {"prompt": PROMPT, "seed": 3, "steps": 2, "loras": loras}
            answer = client.post("/v1/images/generations", json=body)
            assert answer.status_code == 200, answer.text
            return np.asarray(Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))).astype(
                int
            )

        assert np.abs(picture() - picture(few=1.0)).max() <= 1
        assert np.abs(picture() - picture(few=0.0)).max() > 1
        text = client.post("/sdapi/v1/txt2img", json={"prompt": f"{PROMPT} <lora:few:0>", "seed": 3, "steps": 2}).json()
        again = levels(text["images"][0])
        assert np.abs(again - picture(few=0.0)).max() <= 1
    assert served.end()[0] == 0


def test_a_token_of_any_letters_is_in_the_link_and_a_signal_at_once_is_heeded():
    served = WarmCommand("--token", "a+b/c&d#e", "--allowed-host", "MyBox.local")
    assert httpx.get(served.url).status_code == 200
    here = served.url.split("//")[1].split("/")[0].split(":")[1]
    assert httpx.get(served.url, headers={"host": f"mybox.local:{here}"}).status_code == 200
    assert served.end()[0] == 0
    at_once = WarmCommand()  # it has only just told its address
    status, said, _ = at_once.end()
    assert (status, said.strip()) == (0, "fewstep: stopped; what was accepted is done")


def test_a_made_up_token_is_printed_and_needed():
    served = WarmCommand("--token", "random")
    address, token = served.url.split("/?token=")
    assert len(token) >= 20
    assert httpx.get(f"{address}/api/model").status_code == 401
    assert httpx.get(f"{address}/api/model?token={token}").status_code == 200
    assert served.end()[0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "0.0.0.0"), "host 0.0.0.0 lets other machines in: give --token random"),
        (("--port", 70000), "port is 70000; allowed: 0 to 65535"),
        (("--batch", 0), "all must be above 0"),
        (("--model", "scenes"), "error: scenes is a teacher, not a few-step model"),
        (("--model", "senes"), "or the name of a bundled model: scenes-lcm or scenes"),
        (("--lora", "a=x.safetensors", "--lora", "a=y.safetensors"), "two LoRAs have one name"),
        (("--deadline", "nan"), "deadline is nan"),
        (("--allowed-origin", "http://a.example/page"), "give scheme, host and port alone"),
        (("--alias", "dall-e-3=other"), "alias is 'dall-e-3=other', and the model that is served is 'scenes-lcm'"),
    ],
)
def test_what_cannot_be_served_is_refused(fewstep_command, options, message):
    done = fewstep_command("serve", *options)
    *before, last = done.stderr.splitlines()
    assert done.returncode == 2
    assert all(line.startswith("loading ") for line in before), done.stderr
    assert message in last
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "loading scenes-lcm …"),
        ({"lora": ("a=x.safetensors:0.8", "y.safetensors")}, "loading scenes-lcm with a, y …"),
        ({"compile": "blocks"}, "loading scenes-lcm …; the first pictures of each size will wait while it is compiled"),
        (
            {"engine": "openvino"},
            "loading scenes-lcm …; the first pictures of each size will wait while it is compiled",
        ),
    ],
)
def test_what_is_loaded_is_said_before_it_is(monkeypatch, capsys, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    for name in "xy":
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr("fewstep.commands.serve.check_options", lambda _: None)
    monkeypatch.setattr("fewstep.commands.serve.load_painter", lambda *_, **__: pytest.fail("loads"))
    with pytest.raises(pytest.fail.Exception, match="loads"):
        make_service(Serve(**options))
    assert capsys.readouterr().err == f"{said}\n"


def test_a_port_in_use_is_said(fewstep_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = fewstep_command("serve", "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "cannot be used for listening" in done.stderr
    assert not done.stdout
