"""A server that hostile clients cannot take down: it answers others in time, within its memory, and is as before after.

Small in every run, on a server with few descriptors and little memory; large, with what the command has by default:
`pytest -m slow -s tests/serve/test_siege.py`.
"""

import asyncio
import base64
import functools
import json
import logging
import os
import resource
import socket
import threading
import time

import httpx
import pytest

import attacks
from attacks import PROMPT
from fewstep.serve.budget import Budget
from fewstep.serve.connections import Connection, Switchboard
from fewstep.serve.documents import parse_document
from fewstep.serve.errors import RefusedError
from fewstep.serve.faults import OnceAMinute
from fewstep.serve.listening import listen
from fewstep.serve.reading import ReadingPool
from fewstep.serve.settings import ServerSettings
from serving import Command, serving

MIB = 1 << 20
SMALL, LARGE = 160, 512
"""MiB for what clients send."""
BESIDE, KEPT = 100 * MIB, 64 * MIB
"""What the process may take beside it, and what may be left afterwards."""
SLOWEST = {SMALL: 2.0, LARGE: 0.25}
"""Seconds: small runs share their cores with other tests."""


def started(memory, descriptors):
    command = Command("--body-memory", memory, "--waiting", 16, descriptors=descriptors)
    command.memory = memory
    attacks.large_pictures(command.url, 8, 100)  # so that what is loaded late is loaded
    attacks.large_pictures_at_sockets(command.url, 16, 100)
    return command


def stopped(command):
    status, said, wrong = command.end()
    assert (status, said) == (0, "fewstep: stopped; what was accepted is done\n")
    assert wrong.count("\n") <= 3, wrong  # a fault is told once a minute
    assert "Traceback" not in wrong


@pytest.fixture(scope="module")
def besieged():
    command = started(SMALL, 200)
    yield command
    stopped(command)


@pytest.fixture(scope="module")
def besieged_long():
    command = started(LARGE, 1024)
    yield command
    stopped(command)


def check_withstands(command, attack, *how_much):
    with attacks.Watch(command) as watch:
        attack(command.url, *how_much)
    left = watch.settle(KEPT, 20)
    print(
        f"{attack.__name__} {how_much}: slowest {1e3 * watch.slowest:.0f} ms of {watch.asked}, "
        f"at most {watch.grown / MIB:.0f} MiB more, {left / MIB:.0f} MiB after"
    )
    assert not watch.failures
    assert watch.slowest < SLOWEST[command.memory]
    assert watch.grown < command.memory * MIB + BESIDE
    assert left < KEPT


ATTACKS = [
    (attacks.idle_sockets, (300,), (1100,)), (attacks.half_closed_sockets, (18,), (600,)),
    (attacks.open_bodies, (24,), (60,)), (attacks.open_forms, (24,), (60,)),
    (attacks.large_pictures_at_sockets, (8, 2000), (64,)), (attacks.large_pictures, (4, 1500), (32,)),
    (attacks.nested_documents, (7,), (28,)), (attacks.packed_bodies, (2,), (50,)),
    (attacks.forms_of_many_parts, (4,), (16,)), (attacks.tiny_chunks, (4,), (64,)),
    (attacks.tiny_frames, (4,), (32,)), (attacks.answers_that_are_not_read, (20,), (200,)),
]  # fmt: skip


@pytest.mark.parametrize(("attack", "small"), [(attack, small) for attack, small, _ in ATTACKS])
def test_others_are_answered_meanwhile(besieged, attack, small):
    check_withstands(besieged, attack, *small)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "large"), [(attack, large) for attack, _, large in ATTACKS])
def test_others_are_answered_meanwhile_in_large(besieged_long, attack, large):
    check_withstands(besieged_long, attack, *large)


def hear_close(page):
    page.settimeout(10)
    received = attacks.read_all(page)
    while received[0] != 0x88:  # an answer to a ping
        assert received[0] == 0x8A, received
        received = received[2 + received[1] :]
    return int.from_bytes(received[2:4], "big"), received[4 : 2 + received[1]].decode()


@pytest.mark.parametrize(
    ("sent", "code", "reason"),
    [
        (attacks.frame(b"\xff\xfe"), 1007, "a text is not UTF-8"),
        (attacks.frame(b'{"seq": 1', fin=False), 1008, "a message took more than 0.3 s"),
        (attacks.frame(b"x" * 100)[:50], 1008, "a message took more than 0.3 s"),
        (attacks.frame(b"", 9) * 1500, 1008, "too many frames a second"),
        (attacks.frame(b"x", 1, fin=False) + attacks.frame(b"x", 0, fin=False) * 1500, 1008, "too many frames"),
    ],
)
def test_what_a_page_must_not_send_is_told_it(bundled, capfd, sent, code, reason):
    with serving(bundled, body_seconds=0.3) as served, attacks.open_page(served.url + "/") as page:
        attacks.send(page, sent)
        found, said = hear_close(page)
    assert (found, said[: len(reason)]) == (code, reason)
    assert "Traceback" not in capfd.readouterr().err


def test_a_connection_too_many_takes_the_place_of_one_that_waits(bundled):
    with serving(bundled, connections=6, address_connections=4) as served:
        waiting = [attacks.connect(served.url + "/") for _ in range(4)]
        time.sleep(0.2)
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        assert attacks.read_all(waiting[0]).startswith(b"HTTP/1.1 503 Service Unavailable")
        for each in waiting:
            each.close()
        begun = [attacks.connect(served.url + "/") for _ in range(4)]
        for each in begun:  # four bodies that have begun and do not go on
            attacks.send(each, attacks.head("/v1/images/generations", "Content-Length: 10") + b"{")
        time.sleep(0.2)
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        assert attacks.read_all(begun[0]).startswith(b"HTTP/1.1 503")
        for each in begun:
            each.close()
        pages = [attacks.open_page(served.url + "/") for _ in range(4)]
        with attacks.connect(served.url + "/") as fifth:  # pages make room for pages alone
            assert b"as many connections as it takes" in attacks.read_all(fifth)
        for each in pages:
            each.close()


class Heard(asyncio.Protocol):
    """Stands for uvicorn's protocol, with no request under way."""

    cycle = None

    def __init__(self, heard):
        self.heard = heard

    def data_received(self, data):
        self.heard.append(data)


def test_who_has_asked_already_is_not_cut_off_for_those_behind_him():
    heard = []

    async def crowd():
        switchboard = Switchboard(ServerSettings(address_connections=2), 10)
        make = functools.partial(Connection, switchboard, Heard(heard))
        server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
        clients = []
        for _ in range(3):  # before the server's turn, who finds them all at once
            clients.append(socket.create_connection(server.sockets[0].getsockname(), 5))
            if len(clients) == 1:
                clients[0].sendall(b"GET")
        said = await asyncio.to_thread(clients[1].recv, 100)
        while not heard:
            await asyncio.sleep(0.01)
        for each in clients:
            each.close()
        server.close()
        return said

    assert asyncio.run(crowd()).startswith(b"HTTP/1.1 503")
    assert heard == [b"GET"]


def test_who_reads_nothing_of_his_answer_is_cut_off(bundled):
    with serving(bundled, unread_seconds=0.3) as served:
        name = served.post("/v1/images/generations", prompt=PROMPT, response_format="url")["data"][0]["url"]
        (kept,) = served.service.kept._pictures.values()
        object.__setattr__(kept, "content", b"x" * (32 * MIB))
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(attacks.place(served.url))
            path = "/" + name.split("/", 3)[3]
            attacks.send(connection, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
            time.sleep(1)
            connection.settimeout(5)
            assert len(attacks.read_all(connection)) < 32 * MIB
        assert len(served.http.get(path).content) == 32 * MIB
        assert served.service.budget.used == 0


def test_large_bodies_are_refused_when_they_fill_the_memory_and_small_ones_are_not(bundled):
    with serving(bundled, memory_bytes=8 * MIB) as served:
        head = attacks.head("/sdapi/v1/img2img", "Content-Type: application/json", f"Content-Length: {4 * MIB}")
        with attacks.connect(served.url + "/") as one, attacks.connect(served.url + "/") as other:
            attacks.send(one, head + b"x" * MIB)
            while served.service.budget.used < 2 * MIB:
                time.sleep(0.01)
            attacks.send(other, head + b"x" * MIB)
            answer = attacks.read_all(other)
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer.lower()
            assert b"the 8 MiB that they may; try again" in answer
            assert served.post("/v1/images/generations", prompt=PROMPT, steps=1)["data"]
        deadline = time.monotonic() + 5
        while served.service.budget.used and time.monotonic() < deadline:
            time.sleep(0.01)
        assert served.service.budget.used == 0
        start = base64.b64encode(attacks.png(1000)).decode()
        error = served.post("/sdapi/v1/img2img", 413, prompt=PROMPT, init_images=[start])["error"]
        assert "to decode it takes 15 MiB, and the server may use 4" in error["message"]


def test_what_takes_too_long_to_read_is_told_so(bundled):
    start = base64.b64encode(attacks.png(2000)).decode()
    with serving(bundled, read_seconds=0.001) as served:
        error = served.post("/sdapi/v1/img2img", 503, prompt=PROMPT, init_images=[start])["error"]
        assert "took more than 0.001 s to read" in error["message"]


def test_an_answer_holds_no_more_pixels_than_a_server_can_carry(bundled):
    start, mask = (base64.b64encode(attacks.png(170, kind)).decode() for kind in ("RGB", "L"))
    with serving(bundled, image_pixels=100_000) as served:
        body = {"prompt": PROMPT, "steps": 1, "init_images": [start], "mask": mask, "batch_size": 8}
        error = served.post("/sdapi/v1/img2img", 400, **body)["error"]
        assert "8 pictures of 170x170 are 231200 pixels to answer with; the limit is 200000" in error["message"]
        assert len(served.post("/sdapi/v1/img2img", **{**body, "batch_size": 2})["images"]) == 2


def test_nobody_decodes_for_who_has_gone():
    begun, ended = threading.Event(), []

    def work(reader):
        begun.set()
        try:
            while True:
                reader.check()
                time.sleep(0.001)
        finally:
            ended.append(time.monotonic())

    async def leave():
        pool = ReadingPool(Budget(MIB), 30)
        running = [asyncio.create_task(pool.run(work)) for _ in range(5)]  # two run, and three wait for a place
        await asyncio.to_thread(begun.wait)
        for task in running:
            task.cancel()
        await asyncio.wait(running)
        return await pool.run(lambda _: "the next one")

    assert asyncio.run(asyncio.wait_for(leave(), 10)) == "the next one"
    assert len(ended) <= 2


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ('{"image": "' + "A" * 100_000 + '"}', 200, ""),
        ('{"prompt": "\\\\", "image": "' + "A\\/" * 30_000 + '"}', 200, ""),
        ("[" * 32 + "]" * 32, 200, ""),
        ('{"prompt": "' + "A" * 100_000 + '"}', 413, "longer than 64 KiB without its pictures"),
        ('{"image": [' + "0," * 100_000 + "0]}", 413, "longer than 64 KiB without its pictures"),
        ('{"image": "A", "a": ["' + '", "' * 40_000 + '"]}', 413, "longer than 64 KiB without its pictures"),
        ("[" * 33 + "]" * 33, 400, "nested deeper than 32 levels"),
        ('{"a":' * 5000, 400, "nested deeper than 32 levels"),
        ('{"a":' * 50_000, 400, "nested deeper than 32 levels"),
        ('{"image": "' + "\\u0041" * 600_000 + '"}', 413, "more than 524288 backslashes"),
        ('{"image": "' + '\\"' * 100_000 + '"}', 413, "longer than 64 KiB"),
        ('{"seed": ' + "9" * 5000 + "}", 400, "a number of too many digits"),
        ('{"a": 1e999}', 400, "a number of too many digits"),
        ('{"a": NaN}', 400, "a number of too many digits"),
        ('{"image": "' + "A" * 100_000, 400, "is no JSON"),
    ],
)
def test_a_picture_in_a_document_may_be_long_and_the_rest_not(text, status, message):
    if status == 200:
        assert parse_document(text, ("image",)) == json.loads(text)
        return
    with pytest.raises(RefusedError, match=message) as refused:
        parse_document(text, ("image",))
    assert refused.value.status == status


@pytest.mark.parametrize("value", ["NaN", "1e999", "[" * 900 + "]" * 900])
def test_numbers_and_depths_that_no_answer_could_hold_are_refused(served, value):
    body = f'{{"prompt": "a", "x": {value}}}'
    answer = served.http.post("/sdapi/v1/txt2img", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_fault_is_logged_once_a_minute(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    filtering, told = OnceAMinute(), []
    for _ in range(130):
        record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "no descriptors", (), None)
        if filtering.filter(record):
            told.append(record.getMessage())
        clock[0] += 1
    assert told == ["no descriptors", *["no descriptors (and 59 more since the last time)"] * 2]


def test_short_answers_are_not_held_back(besieged):
    with httpx.Client(base_url=besieged.url) as client:
        taken = []
        for _ in range(30):
            begun = time.perf_counter()
            client.get("/healthz")
            taken.append(time.perf_counter() - begun)
    assert min(taken[1:]) < 0.03  # it was 40 ms, which the system waits for more to send


def test_who_comes_when_there_are_no_descriptors_is_turned_away():
    listening = listen("127.0.0.1", 0)
    listening.setblocking(False)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients = [socket.create_connection(listening.getsockname()) for _ in range(3)]
    free = os.dup(0)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))
        for _ in clients:
            with pytest.raises(BlockingIOError):
                listening.accept()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
    for client in clients:  # none is left waiting, which would wake the event loop again and again
        client.settimeout(5)
        assert client.recv(1) == b""
        client.close()
    listening.close()
