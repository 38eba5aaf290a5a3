"""``POST /v1/wm/rollouts``: several actions one after the other, each prediction verified and then continued from.

``/v1/rollouts`` is the same: its older name.
"""

import base64
import time
import uuid
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps import metrics
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import json_openapi, read_json
from serve_apps.messages import Question, RolloutFound, StepFound
from serve_apps.openai import RolloutAsked, RolloutFields, rollout_from_json
from serve_apps.openai.edit_replies import encode_picture, usage_of
from serve_apps.openai.pictures import PIXEL_URL
from serve_apps.recipe import FDM, IDM
from serve_apps.sse import event_stream
from wm.images import Pixels

router = APIRouter()
EXAMPLE = {"image": PIXEL_URL, "actions": ["move the red cup left", "open the drawer"], "best_of": 8, "seed": 7}
_BODY = json_openapi(RolloutFields, {"image"}, EXAMPLE)


@router.post("/v1/wm/rollouts", openapi_extra=_BODY)
@router.post("/v1/rollouts", openapi_extra=_BODY)
async def roll_out(request: Request, graph: GraphOf) -> Response:
    """Predict what the source looks like after each of ``actions``, taken one after the other."""
    asked = await graph.parse(rollout_from_json, await read_json(request, graph.limits))
    model = await graph.model(asked.model or FDM, task=FDM)
    verifier = (await graph.model(asked.verifier, task=IDM))["id"] if asked.verifier else IDM
    events = _events(graph, asked, model, verifier, await graph.prepare(asked.image, model["side_px"]))
    if asked.stream:
        return await event_stream(events)
    whole: dict[str, Any] = {}
    async for event in events:
        whole = event
    return JSONResponse({key: value for key, value in whole.items() if key != "type"})


async def _events(
    graph: Graph, asked: RolloutAsked, model: dict[str, Any], verifier: str, source_HWC: Pixels
) -> AsyncGenerator[dict[str, Any], None]:
    margin = graph.recipe.margin if asked.margin is None else asked.margin
    search = {"num_candidates": asked.best_of, "num_beams": asked.beam, "max_unchanged": asked.max_unchanged}
    if margin is not None:
        search |= {"min_gain_nats": margin, "min_candidates": min(asked.beam, asked.best_of)}
    sampling = graph.recipe.sampling(asked)
    which = {"model": model["id"], "verifier": verifier}
    question = Question(source_HWC, asked.actions, asked.seed, search, sampling, **which)
    facts = {
        "id": f"rollout-{uuid.uuid4().hex}",
        "object": "rollout",
        "created": int(time.time()),
        "model": model["id"],
        "seed": asked.seed,
        "best_of": asked.best_of,
        "size": f"{asked.side_px or model['side_px']}x{asked.side_px or model['side_px']}",
        "output_format": asked.output_format,
    }
    facts |= {"safety_identifier": asked.safety_identifier} if asked.safety_identifier else {}
    async for item in graph.stream(FDM, "roll_out", question, model=question.model):
        if isinstance(item, StepFound):
            if asked.stream:
                yield {"type": "rollout.step"} | await _step(graph, asked, model, item)
        else:
            with metrics.stage("encode_picture"):
                whole = await _whole(graph, asked, model, item)
            yield {"type": "rollout.completed"} | facts | whole


async def _whole(graph: Graph, asked: RolloutAsked, model: dict[str, Any], found: RolloutFound) -> dict[str, Any]:
    return {
        "steps": [await _step(graph, asked, model, step) for step in found.steps],
        "logprob": found.endings[0].logprob,
        "mean_logprob": found.endings[0].mean_logprob,
        "beam": [
            {
                "logprob": ending.logprob,
                "mean_logprob": ending.mean_logprob,
                "guarded": ending.guarded,
                "b64_json": await _encode(graph, asked, model, ending.pixels),
            }
            for ending in found.endings
        ],
        "usage": usage_of(model["tokens_per_image"], found.action_tokens, found.num_drawn),
    }


async def _step(graph: Graph, asked: RolloutAsked, model: dict[str, Any], found: StepFound) -> dict[str, Any]:
    """``logprob``: sum over the sequence's actions so far, nats."""
    return {
        "step": found.step,
        "action": found.action,
        "b64_json": await _encode(graph, asked, model, found.pixels),
        "verification": found.entry,
        "logprob": found.logprob,
        "drawn": found.num_drawn,
    }


async def _encode(graph: Graph, asked: RolloutAsked, model: dict[str, Any], pixels_HWC: Pixels) -> str:
    """Base64 of an image in the format that was asked for. Each is a job of its own, so that others go between."""
    side_px = asked.side_px or model["side_px"]
    encode = partial(encode_picture, pixels_HWC, asked.output_format, asked.output_compression, asked.side_px)
    return base64.b64encode(await graph.work(side_px**2, encode)).decode()
