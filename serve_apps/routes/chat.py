"""``POST /v1/chat/completions``: what happened between two images, as OpenAI's clients ask for it."""

import time
import uuid
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps.graph import Graph, GraphOf
from serve_apps.http import read_json
from serve_apps.messages import WhatHappened
from serve_apps.openai import ChatAsked, chat_from_json
from serve_apps.openai.chat import EXAMPLE, chat_schema
from serve_apps.openai.chat_replies import ChatChunks, Head, chat_reply
from serve_apps.recipe import IDM
from serve_apps.sse import event_stream

router = APIRouter()
_CONTENT = {"application/json": {"schema": chat_schema(), "example": EXAMPLE}}


@router.post("/v1/chat/completions", openapi_extra={"requestBody": {"required": True, "content": _CONTENT}})
async def complete_chat(request: Request, graph: GraphOf) -> Response:
    """Name the action between two images, the source and the target; texts beside them change nothing."""
    asked = await graph.parse(chat_from_json, await read_json(request, graph.limits))
    model = await graph.model(asked.model or IDM, task=IDM)
    question = WhatHappened(
        await graph.prepare_all(asked.images, model["side_px"]),
        {
            "num_samples": asked.n,
            "seed": asked.seed,
            "num_top": asked.top_logprobs,
            "max_new_tokens": asked.max_new_tokens,
        },
        {"temperature": asked.temperature, "top_p": asked.top_p} if asked.temperature else {"greedy": True},
        model["id"],
    )
    if asked.stream:
        return await event_stream(_chunks(graph, asked, model["id"], question), done=True)
    prompt_tokens, *steps = await graph.call(IDM, "propose", question, model=question.model)
    return JSONResponse(chat_reply(asked, _head(model["id"], prompt_tokens), steps))


async def _chunks(
    graph: Graph, asked: ChatAsked, model_id: str, question: WhatHappened
) -> AsyncGenerator[dict[str, Any], None]:
    found = graph.stream(IDM, "propose_stream", question, model=question.model)
    try:
        chunks = ChatChunks(asked, _head(model_id, await anext(found)))
        opening = chunks.opening()
        async for step in found:
            # Only now: what cannot be decoded is an answer with a status of its own.
            for chunk in (*opening, *chunks.step(step)):
                yield chunk
            opening = []
        for chunk in chunks.closing():
            yield chunk
    finally:
        await found.aclose()


def _head(model_id: str, prompt_tokens: int) -> Head:
    return Head(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()), model_id, prompt_tokens)
