"""A web server on this machine that is the Hub as far as huggingface_hub needs it: repositories, uploads, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"
"""Of the only account."""


@dataclass
class Repository:
    """Files by name, and whether the repository is private."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False


@dataclass
class Hub:
    """What the server holds, how it fails, and what was asked of it."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    large: tuple[str, ...] = ("model.safetensors",)  # files that go to the storage of large files
    blobs: dict[str, bytes] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)  # pattern of a path -> status of every answer
    card_errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub

    def do_GET(self):
        self._respond(self._get)

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        self._respond(self._post)

    def do_PUT(self):
        self._respond(self._put)

    def _respond(self, handle):
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {self.path}")
        self.hub.bodies.append(self.body)
        for pattern, status in self.hub.statuses.items():
            if re.search(pattern, self.path):
                return self._answer(status, b"no")
        return handle()

    def _answer(self, status: int, body: bytes, **headers: str):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, table: Any, status: int = 200):
        self._answer(status, json.dumps(table).encode(), Content_Type="application/json")

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _missing(self, code: str, status: int = 404):
        self._answer(status, b"", X_Error_Code=code)

    def _get(self):
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            repository = self._repository(found[1])
            if repository is None:
                return None
            siblings = [{"rfilename": name} for name in repository.files]
            return self._json({"id": found[1], "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repository = self._repository(found[1])
            if repository is None:
                return None
            if found[2] not in ("main", COMMIT):
                return self._missing("RevisionNotFound")
            if found[3] not in repository.files:
                return self._missing("EntryNotFound")
            content = repository.files[found[3]]
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self._answer(200, content, X_Repo_Commit=COMMIT, ETag=etag)
        return self._missing("EntryNotFound")

    def _repository(self, name: str) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._may()):
            self._missing("RepoNotFound", 401)
            return None
        return repository

    def _post(self):
        if not self._may():
            return self._answer(401, b"")
        path, hub = self.path.split("?")[0], self.hub
        if path == "/api/repos/create":
            wanted = json.loads(self.body)
            name = f"{wanted['organization']}/{wanted['name']}"
            if name in hub.repositories:
                return self._json({"error": "exists", "url": f"{hub.url}/{name}"}, 409)
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            hub.repositories[name] = Repository(private=private)
            return self._json({"url": f"{hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            errors = [{"message": text} for text in hub.card_errors]
            return self._json({"errors": errors, "warnings": []}, 400 if errors else 200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = json.loads(self.body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"] in hub.large else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            return self._json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{hub.url}/storage/{each['oid']}", "header": {}}}}
                for each in json.loads(self.body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(hub.repositories[found[1]])
            return self._json({"commitOid": COMMIT, "commitUrl": f"{hub.url}/{found[1]}/commit/{COMMIT}"})
        return self._missing("EntryNotFound")

    def _commit(self, repository: Repository):
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                assert entry["key"] == "header", entry

    def _put(self):
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.hub.blobs[digest] = self.body
        self._answer(200, b"")

    def log_message(self, *args):
        pass


@contextmanager
def serve_hub() -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub(url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
