"""``POST /v1/chat/completions``: what happened between two images, as OpenAI's clients ask for it."""

import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps.calls import call, stream
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import read_json
from serve_apps.names import IDM
from serve_apps.openai.chat import EXAMPLE, ChatRequest, chat_from_json, chat_schema
from serve_apps.openai.chat_replies import ChatChunks, Head, chat_reply
from serve_apps.openai.errors import JsonObject
from serve_apps.sse import event_stream
from wm.images import Pixels

router = APIRouter()
_CONTENT = {"application/json": {"schema": chat_schema(), "example": EXAMPLE}}


@router.post("/v1/chat/completions", openapi_extra={"requestBody": {"required": True, "content": _CONTENT}})
async def complete_chat(request: Request, graph: GraphOf) -> Response:
    """Name the action between two images, the source and the target; texts beside them change nothing."""
    chat, images = await graph.parse(chat_from_json, await read_json(request, graph.limits))
    model = await graph.model(chat.model, task=IDM)
    images_BHWC = await graph.prepare(images, model["side_px"])
    if chat.stream:
        return await event_stream(_chunks(graph, chat, images_BHWC), ends_with_done=True)
    prompt_tokens, *steps = await call(graph.idm, "propose", chat, images_BHWC, model=chat.model)
    return JSONResponse(chat_reply(chat, _head(chat.model, prompt_tokens), steps))


async def _chunks(graph: Graph, chat: ChatRequest, images_BHWC: Pixels) -> AsyncGenerator[JsonObject, None]:
    items = stream(graph.idm, "propose_stream", chat, images_BHWC, model=chat.model)
    try:
        chunks = ChatChunks(chat, _head(chat.model, await anext(items)))
        opening = chunks.opening()
        async for step in items:
            # Only now: what cannot be decoded is an answer with a status of its own.
            for chunk in (*opening, *chunks.step(step)):
                yield chunk
            opening = []
        for chunk in chunks.closing():
            yield chunk
    finally:
        await items.aclose()


def _head(model_id: str, prompt_tokens: int) -> Head:
    return Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model_id, prompt_tokens)
