"""``GET /v1/models``, ``GET /health``: what is served. They answer HEAD as they answer GET."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from serve_apps.graph import GraphOf

EndpointT = TypeVar("EndpointT", bound=Callable[..., object])
router = APIRouter()


def get(path: str) -> Callable[[EndpointT], EndpointT]:
    """Register an endpoint for GET and HEAD; the OpenAPI schema describes GET alone.

    FastAPI's own ``router.get`` answers HEAD with 405, and monitors ask with HEAD. A route of both methods would be
    described twice, under one operation id.
    """

    def register(endpoint: EndpointT) -> EndpointT:
        # The first one that matches answers, so that the second is read by the schema alone.
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        router.add_api_route(path, endpoint, methods=["GET"])
        return endpoint

    return register


@get("/v1/models")
async def list_models(graph: GraphOf) -> JSONResponse:
    """Return the models served, with the base and the codec each belongs to."""
    return JSONResponse({"object": "list", "data": await graph.models()})


@get("/v1/models/{model_id}")
async def get_model(model_id: str, graph: GraphOf) -> JSONResponse:
    """Return one of them."""
    return JSONResponse(await graph.model(model_id))


@get("/health")
async def health(graph: GraphOf) -> JSONResponse:
    """Answer 200 once both models answer."""
    await graph.check_health()
    return JSONResponse({"status": "ok"})
