"""``POST /v1/wm/rollouts``: several actions one after the other, each prediction verified and then continued from.

``/v1/rollouts`` is the same: its older name.
"""

import time
import uuid
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps import metrics
from serve_apps.calls import stream
from serve_apps.catalog import CatalogEntry
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import read_json
from serve_apps.openai.errors import JsonObject
from serve_apps.openai.images import PIXEL_URL
from serve_apps.openai.rollouts import RolloutRequest, rollout_from_json
from serve_apps.openapi import json_openapi
from serve_apps.results import RolloutResult, RolloutStep
from serve_apps.routes.edits import size_of, usage_of
from serve_apps.sse import event_stream
from wm.images import Pixels

router = APIRouter()
EXAMPLE = {"image": PIXEL_URL, "actions": ["move the red cup left", "open the drawer"], "best_of": 8, "seed": 7}
_BODY = json_openapi(RolloutRequest, {"image"}, EXAMPLE)


@router.post("/v1/wm/rollouts", openapi_extra=_BODY)
@router.post("/v1/rollouts", openapi_extra=_BODY)
async def roll_out(request: Request, graph: GraphOf) -> Response:
    """Predict what the source looks like after each of ``actions``, taken one after the other."""
    rollout, image = await graph.parse(rollout_from_json, await read_json(request, graph.limits))
    model = await graph.predicting_model(rollout)
    (source_HWC,) = await graph.prepare([("image", image)], model["side_px"])
    events = _events(graph, rollout, model, source_HWC)
    if rollout.stream:
        return await event_stream(events)
    reply: JsonObject = {}
    async for event in events:
        reply = event
    return JSONResponse({key: value for key, value in reply.items() if key != "type"})


async def _events(
    graph: Graph, rollout: RolloutRequest, model: CatalogEntry, source_HWC: Pixels
) -> AsyncGenerator[JsonObject, None]:
    head = {
        "type": "rollout.completed",
        "id": f"rollout-{uuid.uuid4().hex}",
        "object": "rollout",
        "created": int(time.time()),
        "model": model["id"],
        "seed": rollout.seed,
        "best_of": rollout.best_of,
        "size": size_of(rollout, model),
        "output_format": rollout.output_format,
    }
    # What a client calls its user comes back as OpenAI sends it.
    head |= {"safety_identifier": rollout.end_user} if rollout.end_user else {}
    # Steps come as they are finished; the result has them again, of the sequence that won.
    async for item in stream(graph.fdm, "roll_out", rollout, source_HWC, model=rollout.model):
        if isinstance(item, RolloutResult):
            with metrics.stage("encode_image"):
                reply = await _build_reply(graph, rollout, model, item)
            yield head | reply
        elif rollout.stream:
            yield {"type": "rollout.step"} | await _build_step(graph, rollout, item)


async def _build_reply(graph: Graph, rollout: RolloutRequest, model: CatalogEntry, result: RolloutResult) -> JsonObject:
    return {
        "steps": [await _build_step(graph, rollout, step) for step in result.steps],
        # Of the steps, which are the best sequence's: the first of the beam.
        "logprob": result.beam[0].logprob,
        "mean_logprob": result.beam[0].mean_logprob,
        "beam": [
            {
                "logprob": end.logprob,
                "mean_logprob": end.mean_logprob,
                "guarded": end.guarded,
                "b64_json": await graph.encode(rollout, end.pixels),
            }
            for end in result.beam
        ],
        **usage_of(model, result.action_tokens, result.num_sampled),
    }


async def _build_step(graph: Graph, rollout: RolloutRequest, step: RolloutStep) -> JsonObject:
    """Build what a reply says of a step; ``logprob``: sum over the sequence's actions so far, nats."""
    # "failed" as "failures" of edits: absent where every candidate has an image.
    return {
        "step": step.step,
        "action": step.action,
        "b64_json": await graph.encode(rollout, step.pixels),
        "verification": step.verification,
        "logprob": step.logprob,
        "drawn": step.num_sampled,
        **({"failed": step.num_failed} if step.num_failed else {}),
    }
