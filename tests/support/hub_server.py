"""A server on loopback that speaks those endpoints of the Hugging Face Hub that make and fill repositories."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

OWNER = "owner"
LARGE = (".safetensors", ".parquet")
"""Files that are kept as large ones."""


class HubServer(ThreadingHTTPServer):
    """Repositories in memory; everything wants the token."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token = token
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        """``models/owner/name`` -> files."""
        self.private: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        """Large files by sha256."""
        self.commits: list[str] = []
        """Repositories, in the order of their commits."""
        self.refuses: str | None = None
        """Repository whose commits are refused."""

    def write(self, repository: str, folder: Path) -> Path:
        """Write a repository's files below a folder."""
        for name, data in self.repositories[repository].items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return folder


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: Any) -> None:
        """Nothing."""

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def _answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _serve(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        if path.startswith("/upload/"):  # a signed address: it takes no token
            self.server.objects[path.rpartition("/")[2]] = body
            return self._answer(200, {})
        if self.headers.get("authorization") != f"Bearer {self.server.token}":
            return self._answer(401, {"error": "Invalid username or password."})
        for pattern, serve in _ROUTES.items():
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                serve(self, body, *found.groups())
                return None
        return self._answer(404, {"error": f"{self.command} {path}"})

    do_GET = do_POST = do_PUT = _serve  # noqa: N815 (the base class names them)

    def _create(self, body: bytes) -> None:
        asked = json.loads(body)
        kind = asked.get("type") or "model"
        name = f"{kind}s/{asked.get('organization') or OWNER}/{asked['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(name, {})
        self.server.private.setdefault(name, asked.get("visibility") == "private")
        self._answer(409 if known else 200, {"url": f"{self.server.url}/{name.removeprefix('models/')}"})

    def _validate(self, body: bytes) -> None:
        head = json.loads(body)["content"].split("---\n")[1]
        errors = [] if "license" in yaml.safe_load(head) else [{"message": "license is missing"}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, body: bytes, repository: str) -> None:
        files = self.server.repositories[repository]
        answers = []
        for asked in json.loads(body)["files"]:
            name, large = asked["path"], asked["path"].endswith(LARGE)
            kept = files.get(name)
            answers.append(
                {
                    "path": name,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if kept is None else _digest(kept, large),
                }
            )
        self._answer(200, {"files": answers})

    def _batch(self, body: bytes, _repository: str) -> None:
        objects = []
        for asked in json.loads(body)["objects"]:
            entry: dict[str, Any] = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/upload/{asked['oid']}"}}
            objects.append(entry)
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, body: bytes, repository: str) -> None:
        if self.server.refuses is not None and repository.endswith(self.server.refuses):
            return self._answer(403, {"error": "You have read access only."})
        files = self.server.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.commits.append(repository)
        url = f"{self.server.url}/{repository.removeprefix('models/')}/commit/{'0' * 40}"
        return self._answer(200, {"success": True, "commitOid": "0" * 40, "commitUrl": url})

    def _tree(self, _body: bytes, repository: str) -> None:
        files = self.server.repositories[repository]
        self._answer(
            200, [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
        )

    def _info(self, _body: bytes, repository: str) -> None:
        siblings = [{"rfilename": name} for name in self.server.repositories[repository]]
        self._answer(200, {"id": repository.partition("/")[2], "sha": "0" * 40, "siblings": siblings})


def _digest(data: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


_NAME = r"((?:models|datasets)/[\w.-]+/[\w.-]+)"
_ROUTES: dict[str, Any] = {
    r"POST /api/repos/create": _Handler._create,
    r"POST /api/validate-yaml": _Handler._validate,
    rf"POST /api/{_NAME}/preupload/main": _Handler._preupload,
    r"POST /((?:datasets/)?[\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": _Handler._batch,
    rf"POST /api/{_NAME}/commit/main": _Handler._commit,
    rf"GET /api/{_NAME}/tree/main": _Handler._tree,
    rf"GET /api/{_NAME}(?:/revision/main)?": _Handler._info,
}


@contextmanager
def hub_server(token: str) -> Iterator[HubServer]:
    """A server without repositories."""
    server = HubServer(token)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
