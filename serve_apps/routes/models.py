"""``GET /v1/models``, ``GET /health``: what is served. They answer HEAD as they answer GET."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve_apps.graph import GraphOf
from serve_apps.routes.methods import get_or_head

router = APIRouter()


@get_or_head(router, "/v1/models")
async def list_models(graph: GraphOf) -> JSONResponse:
    """Return the models served, with the base and the codec each belongs to."""
    return JSONResponse({"object": "list", "data": await graph.models()})


@get_or_head(router, "/v1/models/{model_id}")
async def get_model(model_id: str, graph: GraphOf) -> JSONResponse:
    """Return one of them."""
    return JSONResponse(await graph.model(model_id))


@get_or_head(router, "/health")
async def health(graph: GraphOf) -> JSONResponse:
    """Answer 200 once both models answer; ``asleep`` lists those that have no replica until somebody asks for one."""
    asleep = await graph.check_health()
    return JSONResponse({"status": "ok"} | ({"asleep": asleep} if asleep else {}))
