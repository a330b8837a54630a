"""A hub on this machine, for the real client: what repositories there are, what was sent and committed."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import huggingface_hub.constants
import pytest

LARGE = (".parquet", ".mp4", ".jpg", ".png", ".safetensors")  # what a repository's .gitattributes sends to LFS


@dataclass
class FakeHub:
    """repositories: {type/owner/name: only its owner sees it}; files: {repository: {path: content}}; tags: {repository:
    {tag: its files}}. refusal: (a part of an address, status) that is answered with `words` from now on."""

    repositories: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    tags: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    received: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    refusal: tuple[str, int] | None = None
    words: str = "no"
    address: str = ""

    def sent(self, repository: str) -> dict[str, bytes]:
        return self.files.get(repository, {})

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """A JSON value, or (status, value)."""
        if self.refusal is not None and self.refusal[0] in path:
            return self.refusal[1], {"error": self.words}
        if path.startswith("/store/"):
            assert hashlib.sha256(body).hexdigest() == path.removeprefix("/store/")
            self.received.append(path.removeprefix("/store/"))
            self.stored[self.received[-1]] = body
            return {}
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "me", "auth": {}}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return {"transfer": "basic", "objects": [self._action(of) for of in json.loads(body)["objects"]]}
        kind, owner, name, *rest = path.removeprefix("/api/").split("/")
        return self._on(f"{kind.removesuffix('s')}/{owner}/{name}", method, rest, body)

    def _create(self, asked: dict[str, Any]) -> Any:
        repository = f"{asked.get('type', 'model')}/{asked.get('organization') or 'me'}/{asked['name']}"
        url = _page(repository)
        if repository in self.repositories:
            return 409, {"error": "exists", "url": url}
        self.repositories[repository] = asked.get("private", asked.get("visibility") == "private")
        self.files[repository] = {".gitattributes": b""}
        return {"url": url}

    def _action(self, of: dict[str, Any]) -> dict[str, Any]:
        upload = {"upload": {"href": f"{self.address}/store/{of['oid']}"}}
        return {**of, **({} if of["oid"] in self.stored else {"actions": upload})}

    def _on(self, repository: str, method: str, rest: list[str], body: bytes) -> Any:
        if repository not in self.repositories:
            return 404, {"error": "Repository not found"}
        files = self.files[repository]
        match (method, *rest):
            case ("GET",) | ("GET", "revision", _):
                return {"id": repository.partition("/")[2], "private": self.repositories[repository], "sha": "0" * 40}
            case ("GET", "tree", _):
                return [{"type": "file", "path": p, "oid": "0", "size": len(c)} for p, c in files.items()]
            case ("POST", "preupload", _):
                asked = [of["path"] for of in json.loads(body)["files"]]
                modes = [(path, "lfs" if path.endswith(LARGE) else "regular") for path in asked]
                return {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes]}
            case ("POST", "commit", _):
                self._commit(files, [json.loads(line) for line in body.splitlines()])
                return {"commitUrl": f"{_page(repository)}/commit/0", "commitOid": "0" * 40}
            case ("POST", "tag", _):
                tags, tag = self.tags.setdefault(repository, {}), json.loads(body)["tag"]
                known, tags[tag] = tag in tags, tags.get(tag, dict(files))
                return (409, {"error": "Tag reference exists already"}) if known else {}
            case ("DELETE", "tag", tag):
                found = self.tags.get(repository, {}).pop(tag, None)
                return {} if found is not None else (404, {"error": "Invalid rev id"})
        return 404, {"error": f"{method} {rest}"}

    def _commit(self, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stored[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])


def _page(repository: str) -> str:
    return f"https://huggingface.co/{repository.removeprefix('model/').replace('dataset/', 'datasets/')}"


@contextmanager
def running_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """One that the client of this process talks to, with somebody logged in."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = hub.answer(self.command, self.path.partition("?")[0], body)
            status, value = found if isinstance(found, tuple) else (200, found)
            data = json.dumps(value).encode()
            self.send_response(status)
            if status == 404:
                code = {"Repository not found": "RepoNotFound"}.get(value["error"], "RevisionNotFound")
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = do_DELETE = respond

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
