"""The deployment that speaks HTTP."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.middleware import Middleware

from serve_apps.calls import follow_session
from serve_apps.examples import load_examples
from serve_apps.exposure import check_guarded, find_proxy_host
from serve_apps.graph import Graph
from serve_apps.http import create_app
from serve_apps.keys import KeyRing
from serve_apps.loopback import keep_replica_local
from serve_apps.middleware.api_keys import ApiKeyMiddleware
from serve_apps.middleware.cors import cors_middlewares
from serve_apps.middleware.leases import Leases
from serve_apps.middleware.tracing_and_limits import LimitsMiddleware, TraceMiddleware
from serve_apps.recipe import ServeRecipe
from serve_apps.replica_log import keep_in_serve_log
from serve_apps.routes import chat, comparisons, edits, examples, models, playground, reference, rollouts, score
from serve_apps.routes.examples import build_gallery


def build_app(
    graph: Graph,
    *,
    adds_id: bool = True,
    limits: DeploymentHandle | None = None,
    votes: DeploymentHandle | None = None,
) -> FastAPI:
    """Build the app of all endpoints over a graph, within what its recipe allows.

    Args:
        graph: The models.
        adds_id: Of :class:`TraceMiddleware`.
        limits: Of the deployment that keeps the limits of keys for several processes; None: this one keeps them.
        votes: Of the deployment that keeps comparisons and their votes; None: nothing is compared.
    """
    app = create_app("wm: verified predictions of a world model", _build_middlewares(graph.recipe, adds_id, limits))
    app.state.graph = graph
    app.state.gallery = build_gallery(load_examples(graph.recipe.examples, graph.limits))
    for routes in (edits, chat, score, rollouts, models, examples, playground, reference):
        app.include_router(routes.router)
    if votes is not None:
        app.state.comparisons = votes
        app.include_router(comparisons.router)
    return app


def _build_middlewares(recipe: ServeRecipe, adds_id: bool, limits: DeploymentHandle | None = None) -> list[Middleware]:
    """Build the middlewares, outermost first.

    A browser must be able to read every error, so that CORS is around all that refuse.
    """
    # 1. CORS: also a refusal must be readable to a page.
    cors = cors_middlewares(recipe.cors_origins)
    # 2. Keys, where there are any: who has none reaches no limit of others.
    guard = []
    if recipe.keys:
        ring, leases = KeyRing(recipe.keys), None if limits is None else Leases(limits.exchange.remote)
        guard = [
            Middleware(ApiKeyMiddleware, ring=ring, names_keys=recipe.key_names_in_metrics, leases=leases),
        ]
    # 3. Bounds; a key may hold half of all bytes, so that two can always work.
    bounds = Middleware(
        LimitsMiddleware,
        max_requests=recipe.max_requests,
        max_bytes=recipe.max_held_bytes,
        max_bytes_each=max(recipe.max_body_bytes, recipe.max_held_bytes // 2),
        timeout_s=recipe.timeout_s,
    )
    return [*cors, Middleware(TraceMiddleware, adds_id=adds_id), *guard, bounds]


@serve.ingress()
class Ingress:
    """Speak HTTP in OpenAI's form, in front of the FDM and the IDM server."""

    def __init__(
        self,
        recipe: ServeRecipe,
        fdm: DeploymentHandle,
        idm: DeploymentHandle,
        limits: DeploymentHandle | None = None,
        votes: DeploymentHandle | None = None,
    ) -> None:
        keep_replica_local()
        keep_in_serve_log()
        # Whatever started it: a cluster may have had a Serve before that listens on every address.
        check_guarded(recipe, find_proxy_host())
        self._graph = Graph(recipe, follow_session(fdm), follow_session(idm))
        self._limits, self._votes = limits, votes

    def __serve_build_asgi_app__(self) -> FastAPI:
        return build_app(self._graph, adds_id=False, limits=self._limits, votes=self._votes)
