"""A Hub on this machine that takes repositories and commits, over real HTTP, as the client sends them."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

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


@contextlib.contextmanager
def serve_writable_hub() -> Iterator[WritableHub]:
    hub = WritableHub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.handle_one()

        def do_POST(self) -> None:
            self.handle_one()

        def do_PUT(self) -> None:
            self.handle_one()

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            hub.asked.append(f"{self.command} {path}")
            if path.startswith("/storage/"):
                hub.stored[path.rpartition("/")[2]] = body
                return self.answer(200, {})
            if self.headers.get("Authorization", "").removeprefix("Bearer ") not in hub.tokens:
                return self.answer(401, {"error": "Invalid username or password."})
            if path == "/api/whoami-v2":
                return self.answer(200, {"name": "somebody", "type": "user", "auth": {"type": "access_token"}})
            if path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
                hub.private[repo] = bool(asked.get("private", asked.get("visibility") == "private"))
                return self.answer(200, {"url": f"{hub.url}/{repo}", "id": repo, "name": repo})
            if path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            parts = path.removesuffix(".git/info/lfs/objects/batch").strip("/").split("/")
            repo = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if repo not in hub.private:
                return self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            if path.endswith("/objects/batch"):
                return self.answer(
                    200, {"transfer": "basic", "objects": list(map(self.offer, json.loads(body)["objects"]))}
                )
            if "preupload" in parts:
                asked = json.loads(body)["files"]
                large = (".safetensors", ".png")
                modes = [
                    {
                        "path": each["path"], "shouldIgnore": False, "oid": None,
                        "uploadMode": "lfs" if each["path"].endswith(large) else "regular",
                    }
                    for each in asked
                ]  # fmt: skip
                return self.answer(200, {"files": modes})
            if "commit" in parts:
                return self.commit(repo, body)
            return self.answer(
                200, {"id": repo, "sha": COMMIT, "private": hub.private[repo], "siblings": [], "tags": []}
            )

        def offer(self, each: dict[str, object]) -> dict[str, object]:
            place = {"href": f"{hub.url}/storage/{each['oid']}"}
            return {**each, "authenticated": True, "actions": {"upload": place}}

        def commit(self, repo: str, body: bytes) -> None:
            if hub.status:
                return self.answer(hub.status, {"error": "no"})
            files = hub.files.setdefault(repo, {})
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    content = hub.stored[value["oid"]]
                    assert hashlib.sha256(content).hexdigest() == value["oid"]
                    files[value["path"]] = content
            return self.answer(
                200, {"commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )

        def answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
            said = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(said)),
                "Content-Type": "application/json",
                **(headers or {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said)

    with serve(Handler) as hub.url:
        yield hub
