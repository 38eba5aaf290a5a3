"""The deployment that speaks HTTP."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_apps.graph import Graph
from serve_apps.http import create_app
from serve_apps.recipe import ServeRecipe
from serve_apps.routes import chat, edits, models, playground, rollouts, score


def app_of(graph: Graph) -> FastAPI:
    """All endpoints over a graph."""
    app = create_app("wm: verified predictions of a world model")
    app.state.graph = graph
    for routes in (edits, chat, score, rollouts, models, playground):
        app.include_router(routes.router)
    return app


@serve.ingress()
class Ingress:
    """OpenAI's HTTP interface in front of the sampler and the verifier."""

    def __init__(self, recipe: ServeRecipe, sampler: DeploymentHandle, verifier: DeploymentHandle) -> None:
        self._graph = Graph(recipe, sampler, verifier)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return app_of(self._graph)
