"""A server of this machine that speaks the part of OpenAI's API that a judge needs, and misbehaves on demand."""

import base64
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]
"""Status and JSON body."""


def completion(text: str | None, *, refusal: str | None = None, tokens: tuple[int, int] = (1000, 50)) -> Answer:
    """A chat completion as OpenAI's API answers it."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    return 200, {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "judge-1",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


def failure(status: int, message: str, code: str = "") -> Answer:
    """An error as OpenAI's API answers it."""
    return status, {"error": {"message": message, "type": "error", "code": code or None}}


def images_of(body: dict[str, Any]) -> list[bytes]:
    """The images of a request, in their order."""
    parts = body["messages"][0]["content"]
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [base64.b64decode(url.partition(",")[2]) for url in urls]


class JudgeServer:
    """Answers by ``answer(body, number)``, where number counts the requests for the same body from 0."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.answer = answer
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.url = ""

    def complete(self, body: dict[str, Any]) -> Answer:
        """Count the request and answer it."""
        with self.lock:
            digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            number = self.counts[digest]
            self.counts[digest] += 1
            self.bodies.append(body)
        return self.answer(body, number)

    def run_batch(self, file_id: str) -> dict[str, Any]:
        """Answer a file of requests; the batch is complete when it is asked for the second time."""
        replies: dict[str, list[str]] = {"output": [], "error": []}
        for line in self.files[file_id].splitlines():
            request = json.loads(line)
            status, body = self.complete(request["body"])
            # A batch has no line for a request that was not answered in time.
            if status == 408:
                continue
            response = {"custom_id": request["custom_id"], "response": {"status_code": status, "body": body}}
            replies["output" if status == 200 else "error"].append(json.dumps(response))
        batch = {"id": f"batch_{len(self.batches)}", "object": "batch", "status": "in_progress", "looks": 0}
        batch |= {"endpoint": "/v1/chat/completions", "input_file_id": file_id, "completion_window": "24h"}
        for kind, lines in replies.items():
            self.files[f"{kind}-{batch['id']}"] = "\n".join(lines).encode()
            batch[f"{kind}_file_id"] = f"{kind}-{batch['id']}"
        self.batches[batch["id"]] = batch | {"created_at": 0}
        return self.batches[batch["id"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Any"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        judge: JudgeServer = self.server.judge
        judge.keys.append(self.headers["Authorization"])
        if self.path == "/v1/chat/completions":
            self.reply(*judge.complete(json.loads(data)))
        elif self.path == "/v1/files":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = BytesParser(policy=HTTP).parsebytes(head + data).iter_parts()
            content = {
                part.get_param("name", header="content-disposition"): part.get_payload(decode=True) for part in parts
            }
            name = f"file-{len(judge.files)}"
            judge.files[name] = content["file"]
            self.reply(
                200,
                {
                    "id": name,
                    "object": "file",
                    "bytes": len(data),
                    "created_at": 0,
                    "filename": "f",
                    "purpose": "batch",
                },
            )
        elif self.path == "/v1/batches":
            self.reply(200, judge.run_batch(json.loads(data)["input_file_id"]))

    def do_GET(self) -> None:
        judge: JudgeServer = self.server.judge
        name = self.path.split("/")[3]
        if self.path.startswith("/v1/files/"):
            self.reply(200, judge.files[name])
        elif name not in judge.batches:
            self.reply(*failure(404, "no such batch"))
        else:
            batch = judge.batches[name]
            batch["looks"] += 1
            if batch["looks"] > 1 and batch["status"] == "in_progress":
                batch["status"] = "completed"
            self.reply(200, batch)

    def reply(self, status: int, body: dict[str, Any] | bytes) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        # The client waits so long before it repeats: nothing to wait for here.
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def judge_server(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[JudgeServer]:
    """Run a server on a free port of loopback."""
    judge = JudgeServer(answer)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.judge = judge  # type: ignore[attr-defined]
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
