"""The server's app in this process: models behind objects that act as Ray Serve's handles."""

from typing import Any

from fastapi import FastAPI

from serve_apps.graph import Graph
from serve_apps.ingress import app_of
from serve_apps.recipe import ServeRecipe
from serve_apps.replicas import Both, Sampler, Verifier


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


def local_graph(recipe: ServeRecipe) -> Graph:
    if recipe.roles != "apart":
        both = LocalHandle(Both(recipe))
        return Graph(recipe, both, both)  # type: ignore[arg-type]
    verifier = LocalHandle(Verifier(recipe))
    return Graph(recipe, LocalHandle(Sampler(recipe, verifier)), verifier)  # type: ignore[arg-type]


def local_app(recipe: ServeRecipe) -> FastAPI:
    return app_of(local_graph(recipe))
