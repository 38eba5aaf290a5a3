"""Routes that only read: they answer HEAD as they answer GET."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter

Endpoint = TypeVar("Endpoint", bound=Callable[..., object])


def get(router: APIRouter, path: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint for GET and HEAD at a path of a router; the OpenAPI schema describes GET alone.

    FastAPI's own ``router.get`` answers HEAD with 405, and monitors ask with HEAD. A route of both methods would be
    described twice, under one operation id.
    """

    def register(endpoint: Endpoint) -> Endpoint:
        # The first one that matches answers, so that the second is read by the schema alone.
        router.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False)
        router.add_api_route(path, endpoint, methods=["GET"])
        return endpoint

    return register
