"""Register endpoints that only read for GET and HEAD, described once in the OpenAPI schema."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

EndpointT = TypeVar("EndpointT", bound=Callable[..., object])


def get_or_head(router: APIRouter, path: str, *, media_type: str = "") -> Callable[[EndpointT], EndpointT]:
    """Register an endpoint for GET and HEAD; the OpenAPI schema describes GET alone.

    FastAPI's own ``router.get`` answers HEAD with 405, and monitors ask with HEAD. A route of both methods would be
    described twice, under one operation id.

    Args:
        router: Where the endpoint is registered.
        path: Its path.
        media_type: Of what it returns, for the schema; empty: JSON.
    """
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    responses: dict[int | str, dict[str, object]] = {200: {"content": content}} if media_type else {}

    def register(endpoint: EndpointT) -> EndpointT:
        # The first one that matches answers, so that the second is read by the schema alone.
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            responses=responses,
            # Else the schema would promise JSON too.
            response_class=Response if media_type else JSONResponse,
        )
        return endpoint

    return register
