"""``POST /v1/wm/score``: how likely the inverse dynamics model finds each of some actions, for each of some targets.

``/v1/score`` is the same: its older name, which means something else on other servers of language models.
"""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from serve_apps.calls import call
from serve_apps.graph import GraphOf
from serve_apps.http import read_json
from serve_apps.names import IDM
from serve_apps.openai.chat_replies import score_reply
from serve_apps.openai.images import PIXEL_URL
from serve_apps.openai.score import ScoreRequest, score_from_json
from serve_apps.openapi import json_openapi

router = APIRouter()
EXAMPLE = {"image": PIXEL_URL, "targets": [PIXEL_URL], "actions": ["move the red cup left", "take the red cup"]}
_BODY = json_openapi(ScoreRequest, (), EXAMPLE)


@router.post("/v1/wm/score", openapi_extra=_BODY)
@router.post("/v1/score", openapi_extra=_BODY)
async def score(request: Request, graph: GraphOf) -> JSONResponse:
    """Score every action between the source and every target; ``best`` is the likeliest of all."""
    score_request, images = await graph.parse(score_from_json, await read_json(request, graph.limits))
    model = await graph.model(score_request.model, task=IDM)
    images_BHWC = await graph.prepare(images, model["side_px"])
    scores = await call(graph.idm, "score", score_request, images_BHWC, model=score_request.model)
    return JSONResponse(score_reply(score_request, scores))
