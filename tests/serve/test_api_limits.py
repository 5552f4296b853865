"""Who may speak to the server, and what it refuses before it is read; clients that dawdle, crowd and leave."""

import json
import socket
import struct
import time
import zlib

import httpx
import openai
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fewstep.serve.jobs import EngineLimits
from serving import PROMPT, ask, read_answer, serving


def test_others_pages_and_other_names_are_refused(served):
    port = served.url.rsplit(":", 1)[1]
    for headers, code in (
        ({"origin": "https://elsewhere.example"}, "bad_origin"),
        ({"origin": "null"}, "bad_origin"),
        ({"origin": "http://[::1"}, "bad_origin"),
        ({"host": f"elsewhere.example:{port}"}, "bad_host"),
    ):
        answer = served.http.get("/api/model", headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, code)
        assert "access-control-allow-origin" not in answer.headers
    with pytest.raises(InvalidStatus), connect(f"ws://127.0.0.1:{port}/ws", origin="https://elsewhere.example"):
        pass
    assert served.http.get("/api/model", headers={"origin": served.url}).status_code == 200
    for name in ("localhost", "LOCALHOST", "localhost."):
        assert served.http.get("/api/model", headers={"host": f"{name}:{port}"}).status_code == 200
    assert "set-cookie" not in served.http.get("/?token=another").headers  # none is wanted here


def test_a_token_guards_every_route_but_healthz(bundled):
    with serving(bundled, token="secret") as served:
        paths = ["/", "/page.js", "/api/model", "/metrics", "/openapi.json", "/docs", "/v1/models", "/nowhere"]
        for path in paths:
            assert served.http.get(path).status_code == 401, path
            assert served.http.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
        assert served.http.get("/healthz").status_code == 200
        with pytest.raises(InvalidStatus), connect(f"{served.url.replace('http', 'ws')}/ws"):
            pass
        assert served.http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        with connect(f"{served.url.replace('http', 'ws')}/ws?token=secret") as page:
            ask(page, 1, steps=1)
            assert read_answer(page.recv(30))[0]["seq"] == 1
        with httpx.Client(
            base_url=served.url
        ) as browser:  # the link gives a cookie, with which the page loads the rest
            assert browser.get("/?token=secret").status_code == 200
            assert browser.get("/page.js").status_code == 200
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret", max_retries=0) as client:
            assert client.models.list().data


def raw(served, content, wait=30.0):
    """What comes back on a connection of its own, and after how long it was closed."""
    host, port = served.url.removeprefix("http://").split(":")
    begun, answer = time.monotonic(), b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        try:
            for part in content:
                connection.sendall(part)
            while received := connection.recv(65536):
                answer += received
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer, time.monotonic() - begun


def post_head(length, kind="application/json"):
    return (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n{length}\r\n\r\n".encode()
    )


def test_large_bodies_are_refused_before_they_are_there(served):
    answer, _ = raw(served, [post_head("Content-Length: 209715200")])
    assert answer.startswith(b"HTTP/1.1 413")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    answer, _ = raw(served, [post_head("Transfer-Encoding: chunked"), *[chunk] * 3200])
    assert answer.startswith(b"HTTP/1.1 413") or answer == b""  # closed while it was still being sent
    assert served.http.get("/healthz").status_code == 200


def test_who_dawdles_is_let_go(bundled):
    def drip(content, seconds):
        for byte in content:
            time.sleep(seconds)
            yield bytes([byte])

    with serving(bundled, header_seconds=0.5, body_seconds=0.5) as served:
        answer, seconds = raw(served, drip(b"GET / HTTP/1.1\r\nX: " + b"y" * 200, 0.05))
        assert answer == b""
        assert seconds < 5
        answer, seconds = raw(served, [post_head("Content-Length: 100"), b'{"prompt"'])
        assert answer.startswith(b"HTTP/1.1 408")
        assert seconds < 5
        answer, seconds = raw(served, [post_head("Content-Length: 100"), *drip(b"y" * 99, 0.1)])
        assert answer.startswith(b"HTTP/1.1 408") or answer == b""  # closed while it was still dripping
        assert seconds < 5


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bombs():
    signature, end = b"\x89PNG\r\n\x1a\n", chunk(b"IEND", b"")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    yield signature + header + chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000, 9)) + end
    small = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 100_000_000, 9))
    yield signature + small + text * 50 + chunk(b"IDAT", zlib.compress(b"\0" * 200)) + end
    yield signature + small + chunk(b"IDAT", zlib.compress(b"\0" * 400_000_000, 9)) + end
    yield b"GIF89a" + b"\0" * 100
    yield b""


def test_bombs_among_pictures_are_refused_with_memory_flat(served):
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    for content in bombs():
        answer = served.http.post("/v1/images/edits", data={"prompt": PROMPT}, files={"image": ("a.png", content)})
        assert answer.status_code in (200, 400), answer.text
        if answer.status_code == 400:
            assert answer.json()["error"]["param"] == "image"
    assert resident() - before < 150 << 20
    assert served.http.get("/healthz").status_code == 200


def test_a_full_queue_is_429_and_a_late_picture_504(bundled):
    with serving(bundled, EngineLimits(waiting=1)) as served:
        answer = served.http.post("/v1/images/generations", json={"prompt": PROMPT, "n": 4})
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        streamed = served.http.post("/v1/images/generations", json={"prompt": PROMPT, "n": 4, "stream": True})
        assert streamed.status_code == 429
    with serving(bundled, EngineLimits(deadline=1e-6)) as served:
        assert served.post("/v1/images/generations", 504, prompt=PROMPT)["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.slow)])
def test_clients_that_leave_leave_no_slot_behind(served, count):
    body = json.dumps({"prompt": PROMPT, "steps": 50}).encode()
    host, port = served.url.removeprefix("http://").split(":")
    for i in range(count):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(post_head(f"Content-Length: {len(body)}") + body)
            time.sleep(0.02 * (i % 3))
    begun = time.monotonic()
    served.post("/v1/images/generations", prompt=PROMPT, steps=1)
    assert time.monotonic() - begun < 10
    end = time.monotonic() + 10
    while served.engine.progress()[1]:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_too_many_pages_the_one_that_rests_longest_goes(bundled):
    with serving(bundled, sockets=2) as served:
        url = f"{served.url.replace('http', 'ws')}/ws"
        with connect(url) as first, connect(url) as second:
            ask(first, 1, steps=1)  # so that the second one has rested longer
            assert first.recv(30)
            with connect(url) as third:
                with pytest.raises(ConnectionClosed) as closed:
                    second.recv(5)
                assert closed.value.rcvd.code == 4001  # upon which page.js waits until it is used
                for page in (first, third):
                    ask(page, 2, steps=50, compare=[50] * 8)
                with connect(url) as fourth, pytest.raises(ConnectionClosed) as closed:
                    fourth.recv(5)  # all of them are painting
                assert closed.value.rcvd.code == 1013
                ask(first, 3, steps=1)
                while read_answer(first.recv(30))[0]["seq"] != 3:
                    pass
