"""The server's app in this process: models behind objects that act as Ray Serve's handles."""

from typing import Any

from fastapi import FastAPI

from serve_apps.graph import Graph
from serve_apps.ingress import app_of
from serve_apps.recipe import FDM, IDM, ServeRecipe
from serve_apps.replicas import Replica


class LocalMethod:
    """A method as a handle has it: ``await m.remote(…)``, ``async for … in m.options(stream=True).remote(…)``."""

    def __init__(self, method: Any, streams: bool = False) -> None:
        self._method, self._streams = method, streams

    def options(self, *, stream: bool) -> "LocalMethod":
        return LocalMethod(self._method, stream)

    def remote(self, *arguments: Any) -> Any:
        found = self._method(*arguments)
        return found if hasattr(found, "__await__") or self._streams else _finished(found)


async def _finished(found: Any) -> Any:
    return found


class LocalHandle:
    """A deployment handle of an object in this process."""

    def __init__(self, servant: Any) -> None:
        self.servant = servant

    def __getattr__(self, name: str) -> LocalMethod:
        return LocalMethod(getattr(self.servant, name))


def local_replicas(recipe: ServeRecipe) -> tuple[Replica, Replica]:
    """The one that samples and the one that verifies; the same where the recipe has both roles in one process."""
    if recipe.roles != "apart":
        both = Replica(recipe, (FDM, IDM))
        return both, both
    verifier = Replica(recipe, (IDM,))
    return Replica(recipe, (FDM,), LocalHandle(verifier)), verifier  # type: ignore[arg-type]


def local_graph(recipe: ServeRecipe) -> Graph:
    sampler, verifier = map(LocalHandle, local_replicas(recipe))
    return Graph(recipe, sampler, verifier)  # type: ignore[arg-type]


def local_app(recipe: ServeRecipe) -> FastAPI:
    return app_of(local_graph(recipe))
