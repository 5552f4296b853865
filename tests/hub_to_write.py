"""A Hub on this machine that takes repositories and commits, over real HTTP, as the client sends them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from fake_hub import serve

COMMIT = "2" * 40


@dataclass
class WritableHub:
    """`files` are those of each repository by name; `private` says which repositories there are, and whether they are;
    `asked` is every request's method and path; `status` is what commits are answered, where not 0."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=lambda: {"hf_right"})
    status: int = 0
    stored: dict[str, bytes] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Answers what the client asks, a method for each kind of question."""

    hub: WritableHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer_any()

    do_POST = do_PUT = do_GET

    def answer_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/storage/"):
            self.hub.stored[path.rpartition("/")[2]] = body
            return self.answer(200, {})
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in self.hub.tokens:
            return self.answer(401, {"error": "Invalid username or password."})
        if path == "/api/whoami-v2":
            return self.answer(200, {"name": "somebody", "type": "user", "auth": {"type": "access_token"}})
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        return self.answer_of_repository(path, body)

    def create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
        self.hub.private[repo] = bool(asked.get("private", asked.get("visibility") == "private"))
        self.answer(200, {"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})

    def answer_of_repository(self, path: str, body: bytes) -> None:
        parts = path.removesuffix(".git/info/lfs/objects/batch").strip("/").split("/")
        repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
        if repo not in self.hub.private:
            return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if path.endswith("/objects/batch"):
            return self.answer(200, {"transfer": "basic", "objects": [*map(self.offer, json.loads(body)["objects"])]})
        if "preupload" in parts:
            return self.answer(200, {"files": [*map(choose_mode, json.loads(body)["files"])]})
        if "commit" in parts:
            return self.commit(repo, body)
        private = self.hub.private[repo]
        return self.answer(200, {"id": repo, "sha": COMMIT, "private": private, "siblings": [], "tags": []})

    def offer(self, each: dict[str, object]) -> dict[str, object]:
        place = {"href": f"{self.hub.url}/storage/{each['oid']}"}
        return {**each, "authenticated": True, "actions": {"upload": place}}

    def commit(self, repo: str, body: bytes) -> None:
        if self.hub.status:
            return self.answer(self.hub.status, {"error": "no"})
        files = self.hub.files.setdefault(repo, {})
        for line in map(json.loads, body.decode().splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                content = self.hub.stored[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
                files[value["path"]] = content
        address = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        return self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "success": True})

    def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        said = json.dumps(content).encode()
        self.send_response(status)
        told = {"Content-Length": str(len(said)), "Content-Type": "application/json", **(headers or {})}
        for name, value in told.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(said)


def choose_mode(each: dict[str, str]) -> dict[str, object]:
    """Large files are to be sent to the storage."""
    large = each["path"].endswith((".safetensors", ".png"))
    return {"path": each["path"], "shouldIgnore": False, "oid": None, "uploadMode": "lfs" if large else "regular"}


@contextlib.contextmanager
def serve_writable_hub() -> Iterator[WritableHub]:
    hub = WritableHub()
    with serve(type("HandlerOfOne", (Handler,), {"hub": hub})) as hub.url:
        yield hub
