"""The deployment that speaks HTTP."""

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from serve_apps.graph import Graph
from serve_apps.http import create_app
from serve_apps.keys import KeyRing
from serve_apps.loopback import keep_replica_local
from serve_apps.middleware.api_keys_guard import Guarded
from serve_apps.middleware.cors import cors_layers
from serve_apps.middleware.trace_and_bounds import Bounded, Traced
from serve_apps.recipe import ServeRecipe
from serve_apps.routes import chat, edits, models, playground, reference, rollouts, score


def app_of(graph: Graph, *, adds_id: bool = True) -> FastAPI:
    """All endpoints over a graph, within what its recipe allows. ``adds_id``: see :class:`Traced`."""
    app = create_app("wm: verified predictions of a world model", _layers(graph.recipe, adds_id))
    app.state.graph = graph
    for routes in (edits, chat, score, rollouts, models, playground, reference):
        app.include_router(routes.router)
    return app


def _layers(recipe: ServeRecipe, adds_id: bool) -> list[Middleware]:
    """Outermost first. A browser must be able to read every error, so that its layer is around all that refuse."""
    cors = cors_layers(recipe.cors_origins)
    guard = []
    if recipe.keys:
        guard = [Middleware(Guarded, ring=KeyRing(recipe.keys), names_keys=recipe.key_names_in_metrics)]
    bounds = Middleware(
        Bounded,
        most=recipe.max_requests,
        most_bytes=recipe.max_held_bytes,
        most_bytes_each=max(recipe.max_body_bytes, recipe.max_held_bytes // 2),
        timeout_s=recipe.timeout_s,
    )
    return [*cors, Middleware(Traced, adds_id=adds_id), *guard, bounds]


@serve.ingress()
class Ingress:
    """OpenAI's HTTP interface in front of the sampler and the verifier."""

    def __init__(self, recipe: ServeRecipe, sampler: DeploymentHandle, verifier: DeploymentHandle) -> None:
        # Before Ray opens the port: it does so once this is made.
        keep_replica_local(ray.util.get_node_ip_address())
        self._graph = Graph(recipe, sampler, verifier)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return app_of(self._graph, adds_id=False)
