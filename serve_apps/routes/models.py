"""What is served: ``GET /v1/models``, ``GET /health``."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve_apps.graph import GraphOf
from serve_apps.reading import get

router = APIRouter()


@get(router, "/v1/models")
async def list_models(graph: GraphOf) -> JSONResponse:
    """Return the models served, with the base and the codec each belongs to."""
    return JSONResponse({"object": "list", "data": await graph.models()})


@get(router, "/v1/models/{model_id}")
async def get_model(model_id: str, graph: GraphOf) -> JSONResponse:
    """One of them."""
    return JSONResponse(await graph.model(model_id))


@get(router, "/health")
async def health(graph: GraphOf) -> JSONResponse:
    """200 once both models answer."""
    await graph.need_health()
    return JSONResponse({"status": "ok"})
