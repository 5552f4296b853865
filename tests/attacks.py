"""What a hostile client sends, in small and in large; each function returns when it has sent it all."""

import base64
import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib

from PIL import Image

PROMPT = "a small red star above a blue ring on a white background"
_MASK = b"\0\0\0\0"


def png(side, kind="RGB"):
    """A picture of one colour: small as a file, large when it is decoded."""
    file = io.BytesIO()
    Image.new(kind, (side, side), {"I;16": 40_000, "L": 255}.get(kind, "red")).save(file, "png", compress_level=1)
    return file.getvalue()


def place(url):
    host, port = url.removeprefix("http://").strip("/").split(":")
    return host, int(port)


def connect(url):
    return socket.create_connection(place(url), timeout=20)


def head(path, *lines):
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close", *lines, "", ""]).encode()


def read_all(connection):
    answer = b""
    with contextlib.suppress(OSError):
        while received := connection.recv(65536):
            answer += received
    return answer


def send(connection, content):
    """Sends what the server takes of it."""
    with contextlib.suppress(OSError):
        connection.sendall(content)


def together(count, act):
    threads = [threading.Thread(target=act, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def post(url, path, body, kind="application/json", **headers):
    with connect(url) as connection:
        lines = [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        send(connection, head(path, *lines) + body)
        return read_all(connection)


def open_page(url):
    """Returns a socket that has become a WebSocket."""
    connection = connect(url)
    connection.sendall(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += connection.recv(1)
    assert b" 101 " in answer, answer
    return connection


def frame(content, opcode=1, fin=True):
    size = len(content)
    length = struct.pack("!B", 0x80 | size) if size < 126 else (
        struct.pack("!BH", 0x80 | 126, size) if size < 1 << 16 else struct.pack("!BQ", 0x80 | 127, size)
    )  # fmt: skip
    return struct.pack("!B", opcode | (0x80 if fin else 0)) + length + _MASK + content


def message(seq, **more):
    return json.dumps({"seq": seq, "prompt": PROMPT, "steps": 1, **more}).encode()


# Each takes the server's address and how much of it is sent.


def idle_sockets(url, count):
    opened = []
    try:
        for _ in range(count):
            opened.append(connect(url))
        time.sleep(count / 500)
    finally:
        for each in opened:
            each.close()


def half_closed_sockets(url, count):
    for i in range(count):
        with connect(url) as connection:
            send(connection, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"[: 10 * (i % 6)])
            connection.shutdown(socket.SHUT_WR)
            read_all(connection)


def open_bodies(url, count):
    """Bodies of 15 MiB of which the last byte does not come."""
    size, part = 15 << 20, b'{"init_images": ["' + b"A" * ((1 << 20) - 18)

    def act(_):
        with connect(url) as connection:
            send(connection, head("/sdapi/v1/img2img", "Content-Type: application/json", f"Content-Length: {size}"))
            for i in range(15):
                send(connection, part if i == 0 else b"A" * ((1 << 20) - (i == 14)))
            time.sleep(0.5)

    together(count, act)


def open_forms(url, count):
    size, start = 15 << 20, b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'

    def act(_):
        with connect(url) as connection:
            lines = ["Content-Type: multipart/form-data; boundary=b", f"Content-Length: {size}"]
            send(connection, head("/v1/images/edits", *lines) + start)
            for _ in range(14):
                send(connection, b"\r\n-" * ((1 << 20) // 3))
            time.sleep(0.5)

    together(count, act)


def large_pictures_at_sockets(url, count, side=4000):
    """On eight pages, each message before the one before it is decoded."""
    text = message(1, image=base64.b64encode(png(side)).decode())

    def act(_):
        with open_page(url) as page:
            for _ in range(max(1, count // 8)):
                send(page, frame(text))
            page.settimeout(15)
            with contextlib.suppress(OSError):
                page.recv(100)

    together(8, act)


def large_pictures(url, count, side=4000):
    kinds = [base64.b64encode(png(side, kind)).decode() for kind in ("RGB", "RGBA", "I;16", "P")]

    def act(i):
        body = {"prompt": PROMPT, "steps": 1, "init_images": [kinds[i % 4]], "mask": kinds[0]}
        post(url, "/sdapi/v1/img2img", json.dumps(body).encode())

    together(count, act)


def nested_documents(url, count):
    """15 MB of JSON each: deep, wide, of many keys, of escapes, of digits, to a route and to a page."""
    size = 14_700_000
    bodies = [
        b"[" * (size // 2) + b"]" * (size // 2), b'{"init_images":[' + b"[]," * (size // 3) + b"[]]}",
        b'{"init_images":["' + b"\\u0041" * (size // 6) + b'"]}', b'{"seed":' + b"9" * size + b"}",
        b'{"prompt":"' + b"x" * size + b'"}', b'{"a":' * 10_000, b'{"init_images":["' + b'\\"' * (size // 2) + b'"]}',
    ]  # fmt: skip

    def act(i):
        body = bodies[i % len(bodies)]
        post(url, "/sdapi/v1/img2img", body)
        with open_page(url) as page:
            send(page, frame(body))
            page.settimeout(15)
            with contextlib.suppress(OSError):
                page.recv(100)

    together(count, act)


def packed_bodies(url, count):
    bomb = zlib.compress(b'{"prompt":"' + b"x" * 20_000_000, 9)
    for _ in range(count):
        answer = post(url, "/v1/images/generations", bomb, Content_Encoding="deflate")
        assert not answer or b" 415 " in answer, answer


def forms_of_many_parts(url, count):
    part = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n'
    bodies = [
        part * (15_000_000 // len(part)),
        b"--b\r\n" + b"A: b\r\n" * 2_400_000,
        b"\r" * 15_000_000,
        b"&a=1" * 3_000_000,
    ]

    def act(i):
        which = i % len(bodies)
        form = "application/x-www-form-urlencoded" if which == 3 else "multipart/form-data; boundary=b"
        post(url, "/v1/images/edits", bodies[which], form)

    together(count, act)


def tiny_chunks(url, count):
    def act(_):
        with connect(url) as connection:
            lines = ["Content-Type: application/json", "Transfer-Encoding: chunked"]
            send(connection, head("/sdapi/v1/img2img", *lines))
            send(connection, b"1\r\nx\r\n" * 200_000)
            time.sleep(0.5)

    together(count, act)


def tiny_frames(url, count):
    """Pings, fragments of a letter, and messages of a letter, without end."""

    def act(i):
        floods = [frame(b"", 9), frame(b"", 10), frame(b"x", 0, fin=False), frame(b"x", 1)]
        with open_page(url) as page:
            if i % 4 == 2:
                send(page, frame(b"x", 1, fin=False))
            for _ in range(20):
                send(page, floods[i % 4] * 10_000)

    together(count, act)


def answers_that_are_not_read(url, count):
    opened = []
    try:
        for _ in range(count):
            connection = connect(url)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            send(connection, b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 50)
            opened.append(connection)
        time.sleep(1)
    finally:
        for each in opened:
            each.close()


_PROBE = """
import socket, sys, threading, time
place, end, times, wrong = (sys.argv[1], int(sys.argv[2])), threading.Event(), [], []
threading.Thread(target=lambda: (sys.stdin.read(), end.set())).start()
while not end.is_set() or not times:
    begun, answer = time.perf_counter(), b""
    try:
        with socket.create_connection(place, timeout=20) as connection:
            connection.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n")
            while received := connection.recv(65536):
                answer += received
    except OSError as error:
        wrong.append(repr(error))
    if b"200 OK" not in answer:
        wrong.append(answer.decode())
    times.append(time.perf_counter() - begun)
    if len(times) == 1:
        print("begun", flush=True)
    time.sleep(0.02)
print(max(times), len(times), *map(ascii, wrong[:3]), sep="\\n")
"""


class Watch:
    """A process that asks for /healthz on new connections, again and again; meanwhile the server is weighed."""

    def __init__(self, command):
        self.command, self.slowest, self.asked, self.failures = command, 0.0, 0, []
        self.lightest = self.heaviest = resident(command.process.pid)
        self._end = threading.Event()

    def __enter__(self):
        asking = [sys.executable, "-S", "-c", _PROBE, *map(str, place(self.command.url))]
        self._probe = subprocess.Popen(asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._probe.stdout.readline()
        self._thread = threading.Thread(target=self._weigh)
        self._thread.start()
        return self

    def __exit__(self, *_):
        said = self._probe.communicate("")[0].splitlines()
        self._end.set()
        self._thread.join()
        self.slowest, self.asked, self.failures = float(said[0]), int(said[1]), said[2:]

    def _weigh(self):
        while not self._end.is_set():
            self.heaviest = max(self.heaviest, resident(self.command.process.pid))
            time.sleep(0.01)

    @property
    def grown(self):
        """Bytes by which the process was heavier than at the start, at most."""
        return self.heaviest - self.lightest

    def settle(self, allowed, seconds):
        """Waits until the process has grown by no more than that, and returns by how much."""
        end = time.monotonic() + seconds
        while (left := resident(self.command.process.pid) - self.lightest) > allowed and time.monotonic() < end:
            time.sleep(0.1)
        return left


def resident(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
