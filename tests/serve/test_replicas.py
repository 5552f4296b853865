"""Several replicas: who answers where one is lost, and what is refused because they are several."""

import asyncio
import base64
import json
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from fewstep.arguments import parse_arguments
from fewstep.commands.serve import Serve, list_vocabulary
from fewstep.serve.app import make_app
from fewstep.serve.engine import Engine
from fewstep.serve.jobs import EngineLimits
from fewstep.serve.pages import Page
from fewstep.serve.relay import ATTEMPTS, Relay, Replica
from fewstep.serve.service import PaintService
from fewstep.serve.settings import ServerSettings
from fewstep.serve.socket_route import answer_message
from serving import Command

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMPT = "a small red star above a blue ring on a white background"


class LostError(Exception):
    """What a machine that has gone looks like."""


class Replicas:
    """Two that paint, and what relays to them; each of the next `lost` answers breaks off after `after` messages."""

    def __init__(self, pipeline):
        settings = ServerSettings(alone=False)
        self.engines = [Engine(pipeline, {}, EngineLimits()) for _ in range(2)]
        services = [PaintService(engine, settings, {}) for engine in self.engines]
        self.replicas = [self._make_replica(service, str(i)) for i, service in enumerate(services)]
        self.engines[0].start()  # the two share a model here, so one is asked at a time
        self.lost, self.after, self.asked = 0, 0, 0
        self.app = Relay(self._ask, (LostError,), settings)

    def _make_replica(self, service, name):
        async def say(outbox, text):
            await answer_message(service, Page(outbox), text)

        return Replica(make_app(service, list_vocabulary(service.pipeline)), name, say)

    async def _ask(self, method, *given):
        self.asked += 1
        dies, self.lost = self.lost > 0, max(0, self.lost - 1)
        answer = getattr(self.replicas[0], method)(*given)
        try:
            count = 0
            async for each in answer:
                if dies and count == self.after:
                    raise LostError
                count += 1
                yield each
            if dies:
                raise LostError
        finally:
            await answer.aclose()

    def lose(self, count, after=0):
        self.lost, self.after, self.asked = count, after, 0

    def post(self, path="/v1/images/generations", **body):
        async def ask():
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as http:
                return await http.post(path, json={"prompt": PROMPT, "seed": 3, "steps": 2, **body})

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def replicas(bundled):
    there = Replicas(bundled)
    yield there
    assert there.engines[0].close(20)


def test_where_a_replica_is_lost_another_one_answers(replicas):
    replicas.lose(0)
    plain = replicas.post()
    assert (plain.status_code, plain.headers["x-fewstep-attempt"]) == (200, "1")
    assert plain.headers["x-fewstep-replica"] == "0"
    for after in (0, 1, 2):  # before anything was said, after the head of the answer, after all of it
        replicas.lose(2, after)
        again = replicas.post()
        assert (again.status_code, again.headers["x-fewstep-attempt"]) == (200, "3")
        assert again.json()["data"] == plain.json()["data"]
    replicas.lose(ATTEMPTS)
    refused = replicas.post()
    assert (refused.status_code, refused.headers["retry-after"], replicas.asked) == (503, "5", ATTEMPTS)
    assert refused.json()["error"]["code"] == "replica_lost"


def test_a_stream_that_has_begun_ends_in_words(replicas):
    replicas.lose(1, after=1)  # its head has come, and no event
    events = replicas.post(stream=True, partial_images=1, steps=4)
    assert events.headers["x-fewstep-attempt"] == "2"
    kinds = [line.split(": ")[1] for line in events.text.splitlines() if line.startswith("event: ")]
    assert kinds == ["image_generation.partial_image", "image_generation.completed"]
    replicas.lose(1, after=2)
    broken = replicas.post(stream=True, partial_images=1, steps=4).text
    kinds = [line.split(": ")[1] for line in broken.splitlines() if line.startswith("event: ")]
    assert kinds == ["image_generation.partial_image", "error"]
    assert json.loads(broken.rpartition("data: ")[2])["error"]["code"] == "replica_lost"


def test_a_page_is_answered_though_replicas_are_lost(replicas):
    replicas.lose(0)
    client = TestClient(replicas.app)
    with client.websocket_connect("/ws", headers={"host": "127.0.0.1"}) as page:
        replicas.lose(2)
        page.send_json({"seq": 5, "prompt": PROMPT, "seed": 3, "steps": 2})
        answer = page.receive_bytes()
        head = json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "big")])
        assert (head["seq"], head["kind"], replicas.asked) == (5, "picture", 3)
        page.send_json({"seq": 6, "prompt": 7})
        assert page.receive_json()["seq"] == 6
        replicas.lose(ATTEMPTS)
        page.send_json({"seq": 7, "prompt": PROMPT})
        with pytest.raises(WebSocketDisconnect) as closed:
            page.receive_bytes()
        assert closed.value.code == 1013  # a page connects again, and sends it once more
    replicas.lose(0)
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        client.websocket_connect("/ws", headers={"host": "elsewhere.example"}),
    ):
        pass
    assert refused.value.code == 1008


def test_a_client_that_leaves_frees_its_place(replicas):
    replicas.lose(0)

    async def leave():
        body = json.dumps({"prompt": PROMPT, "steps": 50, "n": 8}).encode()
        sent, gone = [], asyncio.Event()
        scope = {
            "type": "http", "method": "POST", "path": "/v1/images/generations", "query_string": b"",
            "http_version": "1.1", "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
            "scheme": "http",
        }  # fmt: skip
        first = {"type": "http.request", "body": body[:9], "more_body": True}
        messages = [first, {"type": "http.request", "body": body[9:]}]

        async def receive():
            if messages:
                return messages.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        asking = asyncio.create_task(replicas.app(scope, receive, send))
        while not replicas.engines[0].progress()[1]:
            await asyncio.sleep(0.01)
        gone.set()
        await asking
        return sent

    assert asyncio.run(leave()) == []
    assert replicas.post().status_code == 200  # and by now nothing of the other is left
    assert replicas.engines[0].progress()[1] == 0


def test_what_one_of_several_would_know_alone_is_refused(replicas):
    refused = replicas.post(response_format="url")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "response_format")
    assert "send response_format b64_json" in refused.json()["error"]["message"]
    assert base64.b64decode(replicas.post(response_format="b64_json").json()["data"][0]["b64_json"])
    client = TestClient(replicas.app, "http://127.0.0.1")
    for path in ("/metrics", "/sdapi/v1/progress"):
        assert (client.get(path).status_code, client.get(path).json()["error"]["code"]) == (400, "one_of_several")
    large = client.post("/v1/images/edits", content=b"x" * (17 << 20))
    assert (large.status_code, large.json()["error"]["code"]) == (413, "body_too_large")


def test_a_pod_has_the_time_to_finish_what_it_accepted():
    service, deployment, budget = yaml.safe_load_all((DEPLOY / "serving.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    config = parse_arguments(Serve(), container["args"][1:], "fewstep serve")
    (_, pause) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pod["terminationGracePeriodSeconds"] > int(pause) + config.deadline
    assert (service["spec"]["sessionAffinity"], config.replica) == ("ClientIP", False)
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")} == {
        "/healthz"
    }
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == service["spec"]["selector"] == budget["spec"]["selector"]["matchLabels"]
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["containerPort"] == config.port


def test_what_nginx_is_told_holds_for_the_command_beside_it():
    text = (DEPLOY / "nginx.conf").read_text()
    (command,) = re.findall(r"fewstep serve (--replica --port.*)", text)
    config = parse_arguments(Serve(), command.split(), "fewstep serve")
    assert config.replica
    assert config.address_connections == config.connections
    assert int(re.search(r"proxy_read_timeout (\d+)s", text)[1]) > config.deadline
    assert int(re.search(r"client_max_body_size (\d+)m", text)[1]) << 20 > ServerSettings().body_bytes
    assert "non_idempotent" in re.search(r"proxy_next_upstream (.*);", text)[1]


def test_the_lines_to_paste_start_what_the_files_name():
    page = (DEPLOY.parent / "docs/serving.md").read_text().partition("## Several replicas")[2]
    by_hand, by_ray = re.findall(r"```\n(.*?)```", page, re.DOTALL)[:2]
    nginx, ray = (DEPLOY / "nginx.conf").read_text(), yaml.safe_load((DEPLOY / "ray_serve.yaml").read_text())
    started = re.findall(r"^fewstep serve (.*) &$", by_hand, re.MULTILINE)
    configs = [parse_arguments(Serve(), each.split(), "fewstep serve") for each in started]
    assert all(config.replica and config.address_connections == config.connections for config in configs)
    assert [f"127.0.0.1:{config.port}" for config in configs] == re.findall(r"^ *server (\S+) max", nginx, re.MULTILINE)
    assert f"listen {re.search(r'http://(.*)', by_hand)[1]};" in nginx
    assert re.search(r"http://(.*)", by_ray)[1] == f"{ray['http_options']['host']}:{ray['http_options']['port']}"
    for block, file in ((by_hand, "deploy/nginx.conf"), (by_ray, "deploy/ray_serve.yaml")):
        assert file in block
        assert len(block.splitlines()) == 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_behind_nginx_no_request_is_lost_with_a_process(tmp_path, number):
    served = [Command("--replica", "--address-connections", 512) for _ in range(2)]
    text = (DEPLOY / "nginx.conf").read_text().replace("127.0.0.1:8080", "127.0.0.1:18409")
    for port, each in zip(("7861", "7862"), served, strict=True):
        text = text.replace(f"127.0.0.1:{port}", each.url.split("//")[1].rstrip("/"))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {tmp_path / kind};" for kind in kinds)
    (tmp_path / "conf").write_text(
        f"daemon off; pid {tmp_path}/pid;\n" + text.replace("http {", f"http {{ access_log off; {folders}")
    )
    proxy = subprocess.Popen(["nginx", "-c", tmp_path / "conf", "-e", tmp_path / "errors"])

    def load(client):
        with httpx.Client(base_url="http://127.0.0.1:18409", timeout=60) as http:
            body = {"prompt": PROMPT, "seed": client, "steps": 8}
            return [http.post("/v1/images/generations", json=body).status_code for _ in range(12)]

    with ThreadPoolExecutor(6) as pool:
        loads = [pool.submit(load, client) for client in range(6)]
        time.sleep(1)
        served[0].send_signal(number)
        counts = Counter(status for going in loads for status in going.result(120))
    proxy.terminate()
    proxy.wait()
    assert counts == {200: 72}
    assert served[1].end()[0] == 0
    assert served[0].wait()[0] == (0 if number == signal.SIGTERM else -number)
