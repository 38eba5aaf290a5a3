"""A server of this machine that speaks the part of the Hugging Face hub's API that an upload needs."""

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What the server holds and was asked."""

    url: str = ""
    token: str = "hf_test"
    status: int = 0
    """Answer every request with it; 0: as the hub does."""
    private: dict[str, bool] = field(default_factory=dict)
    """Kind and name of each repository, such as ``models/me/fdm``."""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Repository → name → content, of all commits."""
    created: list[dict[str, Any]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    """Digest → content of large files."""
    uploads: list[str] = field(default_factory=list)
    """Digests that were sent, one a time."""

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Answer a request: status, JSON or text, headers."""
        if path.startswith("/object/"):
            digest = path.removeprefix("/object/")
            self.objects[digest] = body
            self.uploads.append(digest)
            return 200, {}, {}
        if self.status:
            return self.status, {"error": "as the test asked"}, {}
        if headers.get("authorization") != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        value = json.loads(body) if body and "ndjson" not in headers.get("content-type", "") else {}
        if path == "/api/repos/create":
            self.created.append(value)
            name = f"{value['type']}s/{value['organization']}/{value['name']}"
            self.private[name] = value.get("visibility") == "private" or bool(value.get("private"))
            return 200, {"url": f"{self.url}/{name}", "name": name}, {}
        if path.endswith("/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(item) for item in value["objects"]]}, {}
        # The check of a card's head finds nothing wrong.
        _, _, kind, owner, rest = path.split("/", 4) if path != "/api/validate-yaml" else ("",) * 5
        name, _, ask = rest.partition("/")
        return self._of_repo(f"{kind}/{owner}/{name}", ask.split("/")[0], value, body)

    def _object(self, item: dict[str, Any]) -> dict[str, Any]:
        # Without an action the client knows that the server has it.
        known = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] in self.objects:
            return known
        return known | {"actions": {"upload": {"href": f"{self.url}/object/{item['oid']}", "header": {}}}}

    def _of_repo(self, repo: str, ask: str, value: Any, body: bytes) -> tuple[int, Any, dict[str, str]]:
        if repo == "//":
            return 200, {"warnings": [], "errors": []}, {}
        if repo not in self.private:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        if ask == "preupload":
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith((".safetensors", ".parquet")) else "regular",
                    "shouldIgnore": False,
                }
                for item in value["files"]
            ]
            return 200, {"files": modes}, {}
        if ask == "commit":
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
            name = repo.removeprefix("models/")
            return 200, {"commitUrl": f"{self.url}/{name}/commit/1", "commitOid": "1" * 40, "commitMessage": ""}, {}
        return 200, {"id": repo.partition("/")[2], "private": self.private[repo], "sha": "1" * 40, "siblings": []}, {}

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files = self.files.setdefault(repo, {})
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub on a free port of this machine while the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self._read_body()
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, value, more = hub.answer(self.command, self.path.partition("?")[0], headers, body)
            data = json.dumps(value).encode()
            self.send_response(status)
            for name, text in ({"Content-Type": "application/json", "Content-Length": str(len(data))} | more).items():
                self.send_header(name, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _read_body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            # Streams of unknown length: each chunk follows its size in hexadecimal.
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_POST = do_PUT = do_HEAD = _reply  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
