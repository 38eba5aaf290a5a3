"""``POST /v1/wm/score``: how likely the inverse dynamics model finds each of some actions, for each of some targets.

``/v1/score`` is the same: its older name, which means something else on other servers of language models.
"""

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from serve_apps.graph import GraphOf
from serve_apps.http import json_openapi, read_json
from serve_apps.openai import ScoreFields, score_from_json
from serve_apps.openai.chat_replies import score_reply
from serve_apps.openai.pictures import PIXEL_URL
from serve_apps.recipe import IDM

router = APIRouter()
EXAMPLE = {"image": PIXEL_URL, "targets": [PIXEL_URL], "actions": ["move the red cup left", "take the red cup"]}
_BODY = json_openapi(ScoreFields, (), EXAMPLE)


@router.post("/v1/wm/score", openapi_extra=_BODY)
@router.post("/v1/score", openapi_extra=_BODY)
async def score(request: Request, graph: GraphOf) -> JSONResponse:
    """Score every action between the source and every target; ``best`` is the likeliest of all."""
    asked = await graph.parse(score_from_json, await read_json(request, graph.limits))
    model = await graph.model(asked.model or IDM, task=IDM)
    images_BHWC = await graph.prepare_all(asked.images, model["side_px"])
    scores = await graph.call(IDM, "score", model["id"], images_BHWC, asked.actions, model=model["id"])
    return JSONResponse(score_reply(asked, scores, model=model["id"]))
