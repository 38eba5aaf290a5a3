"""``POST /v1/images/edits``: the source after an action, as OpenAI's clients ask for it."""

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps import metrics
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import edit_openapi, read_edit
from serve_apps.messages import Found, Preview, Question
from serve_apps.openai import Edit
from serve_apps.openai.edit_replies import edit_events, edit_reply, encode_picture, preview_event
from serve_apps.recipe import FDM, IDM
from serve_apps.sse import event_stream
from wm.images import Pixels

router = APIRouter()


@router.post("/v1/images/edits", openapi_extra=edit_openapi())
async def edit_image(request: Request, graph: GraphOf) -> Response:
    """Predict what the source looks like after the action in ``prompt``; best candidates first."""
    edit = await read_edit(request, graph.limits, graph.work)
    model = await graph.model(edit.model or FDM, task=FDM)
    verifier = (await graph.model(edit.verifier, task=IDM))["id"] if edit.verifier else IDM
    with metrics.stages_s() as own:
        source = await graph.prepare(edit.image, model["side_px"])
        question = replace(question_of(edit, source, graph), model=model["id"], verifier=verifier)
        if edit.stream:
            return await event_stream(_events(graph, edit, model, question))
        found: Found = await graph.call(FDM, "predict", question, model=question.model)
        reply = edit_reply(edit, **await _answer(graph, edit, model, found))
    return JSONResponse(reply, headers={"Server-Timing": metrics.server_timing({**found.stages_s, **own})})


def question_of(edit: Edit, source_HWC: Pixels, graph: Graph) -> Question:
    """Return the request, with the recipe's settings where it gives none."""
    recipe = graph.recipe
    margin = recipe.margin if edit.margin is None else edit.margin
    search: dict[str, Any] = {"num_candidates": edit.best_of}
    if edit.verify and margin is not None:
        search |= {"min_gain_nats": margin, "min_candidates": edit.n}
    return Question(
        source_HWC,
        (edit.prompt,),
        edit.seed,
        search,
        recipe.sampling(edit),
        verify=edit.verify,
        num_pictures=None if edit.return_candidates else edit.n,
        num_previews=edit.partial_images,
    )


async def _events(
    graph: Graph, edit: Edit, model: dict[str, Any], question: Question
) -> AsyncGenerator[dict[str, Any], None]:
    side_px, index = edit.side_px or model["side_px"], 0
    async for item in graph.stream(FDM, "predict_with_previews", question, model=question.model):
        if isinstance(item, Preview):
            picture = await _encode(graph, edit, model, item.pixels)
            yield preview_event(
                edit, picture, index=index, progress=item.progress, side_px=side_px, created_s=int(time.time())
            )
            index += 1
            continue
        for event in edit_events(edit, **await _answer(graph, edit, model, item)):
            yield event


async def _answer(graph: Graph, edit: Edit, model: dict[str, Any], found: Found) -> dict[str, Any]:
    """Return the arguments of a reply beside the request."""
    with metrics.stage("encode_picture"):
        pictures = [await _encode(graph, edit, model, pixels) for pixels in found.pixels]
    facts = {
        "model": model["id"],
        "side_px": edit.side_px or model["side_px"],
        "tokens_per_image": model["tokens_per_image"],
        "action_tokens": found.action_tokens,
        "drawn": found.num_drawn,
        "distinct": found.num_distinct,
    }
    return {
        "pictures": list(zip(pictures, found.entries, strict=False)),
        "facts": facts,
        "created_s": int(time.time()),
    }


async def _encode(graph: Graph, edit: Edit, model: dict[str, Any], pixels_HWC: Pixels) -> bytes:
    side_px = edit.side_px or model["side_px"]
    encode = partial(encode_picture, pixels_HWC, edit.output_format, edit.output_compression, edit.side_px)
    return await graph.work(side_px**2, encode)
