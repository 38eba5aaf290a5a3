"""Servers of the playground for its tests: any app at a port of this machine, and a scripted one that answers as no
good server does."""

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from serve_apps.http import create_app
from serve_apps.routes import playground
from wm.images import encode_png

HOSTILE = "<img src=x onerror=window.pwned=1><script>window.pwned=2</script>\"'` ${1} \u2028 é 名 &amp;"
KEY = "sk-of-this-test"


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The app's address while it is served in a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join(10)


def picture(value: int, side_px: int = 16) -> str:
    """Base64 of a flat PNG."""
    return base64.b64encode(encode_png(np.full((side_px, side_px, 3), value, np.uint8))).decode()


def verification(index: int) -> dict[str, Any]:
    scores = {"logprob": -2.0 - index, "mean_logprob": -0.25 * (index + 1), "tokens": 8, "rank": index}
    return scores | {"seed": 5, "index": index, "duplicate_of": None, "unchanged_share": 0.5}


def error(message: str, status: int, param: str | None = None, **headers: str) -> JSONResponse:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
    return JSONResponse(body, status_code=status, headers=headers)


class Scripted:
    """Answers by the words of the action. ``seen``: the bodies of the requests; ``left``: streams the client left."""

    def __init__(self, *, needs_key: bool = False, side_px: int = 16) -> None:
        self.seen: list[dict[str, Any]] = []
        self.left = 0
        self.app = create_app("scripted")
        self.app.include_router(playground.router)

        @self.app.middleware("http")
        async def need_key(request: Request, call_next: Any) -> Response:
            is_right = request.headers.get("authorization") == f"Bearer {KEY}"
            if needs_key and request.url.path.startswith("/v1") and not is_right:
                return error("no API key is given", 401)
            answer: Response = await call_next(request)
            return answer

        @self.app.get("/v1/models")
        async def models() -> dict[str, Any]:
            entries = [
                {"id": "fdm", "task": "fdm", "side_px": side_px, "family": HOSTILE},
                {"id": "idm", "task": "idm"},
            ]
            return {"object": "list", "data": entries}

        @self.app.post("/v1/images/edits")
        async def edit(request: Request) -> Response:
            body = await request.json()
            self.seen.append(body)
            return self._edit(body)

        @self.app.post("/v1/chat/completions")
        async def chat(request: Request) -> dict[str, Any]:
            self.seen.append(await request.json())
            tokens = [{"token": HOSTILE, "logprob": -0.5}]
            choice = {"message": {"content": HOSTILE}, "logprobs": {"content": tokens}}
            return {"choices": [choice], "logprob": -3.0, "mean_logprob": -0.5, "tokens": 6}

    def _edit(self, body: dict[str, Any]) -> Response:
        word = body["prompt"].split()[0]
        if word == "busy":
            return error("the server is busy; try again soon", 429, **{"retry-after": "7"})
        if word == "page":
            return Response("<h1>Bad gateway</h1>", 502, media_type="text/html")
        if word == "plain" and "stream" in body:
            return error("unknown field 'stream'", 400, "stream")
        entries = [{"b64_json": picture(60 + 60 * index), "verification": verification(index)} for index in range(2)]
        facts = {"seed": 5, "best_of": 8, "drawn": 8, "distinct": 2, "model": "fdm", "output_format": "png"}
        if word == "plain":
            return JSONResponse({"created": 1, "data": entries} | facts)
        if word == HOSTILE.split(maxsplit=1)[0]:
            return error(f"prompt = {HOSTILE}: no", 400, "prompt")
        return StreamingResponse(self._events(word, entries, facts), media_type="text/event-stream")

    async def _events(self, word: str, entries: list[dict[str, Any]], facts: dict[str, Any]) -> AsyncIterator[str]:
        def line(kind: str, **data: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n"

        preview = {"b64_json": picture(1), "partial_image_index": 0, "progress": 0.25, "output_format": "png"}
        yield line("image_edit.partial_image", **preview)
        if word == "slow":
            try:
                await asyncio.sleep(30)
            except (asyncio.CancelledError, GeneratorExit):
                self.left += 1
                raise
        if word == "cut":
            return
        if word == "fail":
            yield line("error", error={"message": f"the replicas died {HOSTILE}", "type": "server_error"})
            return
        yield line("image_edit.completed", **entries[0], **facts, candidates=entries)
