"""deploy/ray_serve.yaml on the local cluster: one picture on every replica, and none lost with one of them."""

import base64
import contextlib
import io
import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from fewstep.commands.serve_ray import read_options
from fewstep.errors import UserError
from fewstep.parallel.ray_cluster import join_cluster

FILE = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "ray_serve.yaml").read_text())
URL = "http://127.0.0.1:18407"
PROMPT = "a small red star above a blue ring on a white background"


def test_options_of_the_file_are_those_of_the_command():
    (application,) = FILE["applications"]
    config = read_options(application["args"])
    assert (config.model, config.deadline, config.replica) == ("scenes-lcm", 60, True)
    assert all(each["graceful_shutdown_timeout_s"] > config.deadline for each in application["deployments"])
    assert (read_options({"token": "a", "lora": ["b", "c"]}).host, read_options({}).host) == ("0.0.0.0", "127.0.0.1")
    for args, message in (
        ({"port": 80}, "args has port, which Ray Serve decides"),
        ({"paints": "a"}, "args has paints, which is no option"),
        ({"token": "random"}, "every replica would make up another"),
        ({"batch": "many"}, "args: batch: Input should be a valid integer"),
        ({"batch": 0}, "batch is 0"),
    ):
        with pytest.raises(UserError, match=message):
            read_options(args)


def wait_until(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.fixture(scope="module")
def deployed(machines):
    """Deploys the file, where its replicas have a part of a CPU, and yields Ray Serve."""
    with join_cluster(machines.address):
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        file = json.loads(json.dumps(FILE))
        file["http_options"]["port"] = int(URL.rpartition(":")[2])
        front, painter = file["applications"][0]["deployments"]
        front["num_replicas"] = 1
        painter["ray_actor_options"] = {"num_cpus": 0.4}
        serve.start(http_options=file["http_options"])
        _get_global_client().deploy_apps(ServeDeploySchema(**file))
        wait_until(lambda: serve.status().applications["fewstep"].status == "RUNNING")
        yield serve
        serve.shutdown()


def find_replicas():
    """Returns the process of each replica that paints, by the name that its answers have."""
    import ray

    prefix = "SERVE_REPLICA::fewstep#Painter#"
    actors = [each for each in ray._private.state.actors().values() if each["Name"].startswith(prefix)]
    return {each["Name"].removeprefix(prefix): each["Pid"] for each in actors if each["State"] == "ALIVE"}


def ask(http, seed, steps=2, **more):
    return http.post("/v1/images/generations", json={"prompt": PROMPT, "seed": seed, "steps": steps, **more})


def levels(answer):
    with Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"]))) as image:
        return np.asarray(image).astype(int)


@pytest.mark.slow
@pytest.mark.usefixtures("deployed")
def test_each_replica_paints_the_same_and_says_what_it_alone_would_know():
    with httpx.Client(base_url=URL, timeout=60) as http:
        answers = {}

        def ask_further():
            answer = ask(http, 3)
            answers.setdefault(answer.headers["x-fewstep-replica"], answer)
            return len(answers) == 2

        wait_until(ask_further)
        one, other = (answer.json()["data"] for answer in answers.values())
        assert one == other  # the file to the last bit
        for refused in (ask(http, 3, response_format="url"), http.get("/sdapi/v1/progress"), http.get("/metrics")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "one_of_several")
        events = ask(http, 3, stream=True).text
        assert "event: image_generation.completed" in events
        assert http.get("/", headers={"host": "elsewhere.example"}).status_code == 403
        assert http.post("/sdapi/v1/txt2img", content=b"x" * (17 << 20)).status_code == 413
    with connect(f"{URL.replace('http', 'ws')}/ws") as page:
        page.send(json.dumps({"seq": 1, "prompt": PROMPT, "seed": 3, "steps": 2}))
        assert b'"kind": "picture"' in page.recv(30)
        page.send(b"binary")
        assert "the message is binary" in page.recv(30)
    with pytest.raises(InvalidStatus), connect(f"{URL.replace('http', 'ws')}/ws", origin="http://elsewhere.example"):
        pass


@pytest.mark.slow
def test_a_killed_replica_and_a_deployment_that_ends_lose_no_request(deployed):
    with httpx.Client(base_url=URL, timeout=60) as http:
        wanted = [levels(ask(http, seed, 8)) for seed in range(4)]

    def load(client, count=8):
        with httpx.Client(base_url=URL, timeout=60) as http:
            return [(seed, ask(http, seed, 8)) for seed in (((client + i) % 4) for i in range(count))]

    before = find_replicas()
    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(load, client) for client in range(6)]
        time.sleep(0.5)
        os.kill(next(iter(before.values())), signal.SIGKILL)
        answers = [each for going in loads for each in going.result(120)]
    assert Counter(answer.status_code for _, answer in answers) == {200: 48}
    asked = Counter(int(answer.headers["x-fewstep-attempt"]) for _, answer in answers)
    assert asked[2] >= 1  # it was the relay that asked again, and no client
    assert all(np.abs(levels(answer) - wanted[seed]).max() <= 1 for seed, answer in answers)

    with ThreadPoolExecutor(4) as pool, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=URL, timeout=60)) for _ in range(4)]
        going = [pool.submit(ask, http, seed, 50) for seed, http in enumerate(clients)]
        time.sleep(0.5)
        deployed.delete("fewstep", _blocking=False)
        assert [each.result(60).status_code for each in going] == [200] * 4
