"""A Hub on this machine: folders as repositories, over real HTTP, with the answers that the real one gives to a no."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40
_NO = {"gated": (403, "GatedRepo"), "missing": (401, "RepoNotFound")}


@dataclass
class FakeHub:
    """`root/OWNER/NAME` are its repositories; `trouble` is gated, missing, an HTTP status, or a number of seconds."""

    root: Path
    url: str = ""
    trouble: str = ""
    status: int = 0
    delay: threading.Event | None = None
    storage: int = 0
    """An HTTP status that the storage behind the Hub, which then has the files, answers with."""
    asked: list[str] = field(default_factory=list)
    """What that storage was asked for."""
    fetched: list[str] = field(default_factory=list)


@contextlib.contextmanager
def serve_hub(root: Path) -> Iterator[FakeHub]:
    """Serves the repositories below `root` until the end."""
    hub = FakeHub(root)

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            if hub.delay is not None:
                hub.delay.wait(5)
            if hub.status or hub.trouble in _NO:
                status, code = _NO.get(hub.trouble, (hub.status, ""))
                return self.answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})
            path = self.path.partition("?")[0].strip("/").split("/")
            if path[0] == "storage":
                hub.asked.append(self.path)
                return self.answer(hub.storage, b"no")
            if "xet-read-token" in path:
                lasting = {"Access-Token": "t", "Token-Expiration": str(2**33), "Cas-Url": f"{hub.url}/storage"}
                return self.answer(200, b"{}", {f"X-Xet-{name}": value for name, value in lasting.items()})
            if path[0] == "api":
                return self.answer(200, json.dumps(self.describe("/".join(path[2:4]), tree="tree" in path)).encode())
            name = "/".join(path[4:])
            file = hub.root / path[0] / path[1] / name
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            if self.command == "GET":
                hub.fetched.append(name)
            content = file.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            return self.answer(200, content, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})

        def describe(self, source: str, *, tree: bool) -> object:
            files = [each for each in sorted((hub.root / source).rglob("*")) if each.is_file()]
            names = [each.relative_to(hub.root / source).as_posix() for each in files]
            if tree:
                sizes = [each.stat().st_size for each in files]
                stored = (
                    {"xetHash": "a" * 64, "lfs": {"oid": "b" * 64, "size": 1, "pointerSize": 1}} if hub.storage else {}
                )
                return [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40, **stored}
                    for name, size in zip(names, sizes, strict=True)
                ]
            siblings = [{"rfilename": name} for name in names]
            return {"id": source, "modelId": source, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

        def answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

    with serve(Handler) as hub.url:
        yield hub


@contextlib.contextmanager
def serve(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Answers requests in a thread while it lasts, and yields the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
