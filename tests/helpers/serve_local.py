"""The server's app in this process: models behind objects that act as Ray Serve's handles."""

from typing import Any

from fastapi import FastAPI

from serve_apps.comparisons import ComparisonServer, list_folders
from serve_apps.fdm_server import FDMServer, WorldModelServer
from serve_apps.graph import Graph
from serve_apps.idm_server import IDMServer
from serve_apps.ingress import build_app
from serve_apps.recipe import ServeRecipe

HALF_A_CORE = {name: {"ray_actor_options": {"num_cpus": 0.5}} for name in ("fdm_server", "idm_server")}
"""Recipe keys of a server whose replicas share the cores of a small machine."""


class LocalMethod:
    """A method as a handle has it: ``await m.remote(…)``, ``async for … in m.options(stream=True).remote(…)``."""

    def __init__(self, method: Any, streams: bool = False) -> None:
        self._method, self._streams = method, streams

    def options(self, *, stream: bool) -> "LocalMethod":
        return LocalMethod(self._method, stream)

    def remote(self, *arguments: Any) -> Any:
        result = self._method(*arguments)
        return result if hasattr(result, "__await__") or self._streams else _finished(result)


async def _finished(result: Any) -> Any:
    return result


class LocalHandle:
    """A deployment handle of an object in this process."""

    def __init__(self, server: Any) -> None:
        self.server = server

    def __getattr__(self, name: str) -> LocalMethod:
        return LocalMethod(getattr(self.server, name))


def local_servers(recipe: ServeRecipe) -> tuple[FDMServer, IDMServer]:
    """Build the FDM and the IDM server; they are one where the recipe has both models in one process."""
    if recipe.base_sharing != "separate":
        both = WorldModelServer(recipe)
        return both, both
    idm = IDMServer(recipe)
    return FDMServer(recipe, LocalHandle(idm)), idm


def local_graph(recipe: ServeRecipe) -> Graph:
    fdm, idm = map(LocalHandle, local_servers(recipe))
    return Graph(recipe, fdm, idm)


def local_app(recipe: ServeRecipe) -> FastAPI:
    votes = LocalHandle(ComparisonServer(recipe.comparisons, list_folders(recipe))) if recipe.comparisons else None
    return build_app(local_graph(recipe), votes=votes)
