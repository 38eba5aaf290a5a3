"""The served graph as the routes see it: the two roles, the limits, and how a picture is made ready."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from copy import copy
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, Request
from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.calls import call, method_of, stream
from serve_apps.catalog import Catalog
from serve_apps.keys import Key
from serve_apps.recipe import FDM, IDM, ServeRecipe
from wm.api import ApiError, prepare_images
from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square


class Graph:
    """FDM sampler and IDM verifier, each behind a deployment handle (or what acts as one)."""

    def __init__(self, recipe: ServeRecipe, sampler: DeploymentHandle, verifier: DeploymentHandle) -> None:
        self.recipe, self.limits = recipe, recipe.limits()
        self._handles = {FDM: sampler, IDM: verifier}
        self._key: Key | None = None
        self._catalog = Catalog(recipe, self.call)
        # A large picture takes 0.1 GB while it is scaled down: few at a time.
        self._decoding = asyncio.Semaphore(2)

    async def call(self, role: str, method: str, *arguments: Any, model: str = FDM) -> Any:
        """What a method of ``fdm`` or ``idm`` returns; see :func:`serve_apps.calls.call`. ``model``: which one is at
        work, so that a replica that has it is asked."""
        return await call(method_of(self._handles[role], method, model), *arguments)

    def stream(self, role: str, method: str, *arguments: Any, model: str = FDM) -> AsyncGenerator[Any, None]:
        """What a generator of ``fdm`` or ``idm`` yields; see :func:`serve_apps.calls.stream`."""
        return stream(method_of(self._handles[role], method, model), *arguments)

    async def model(self, name: str, *, task: str | None = None) -> dict[str, Any]:
        """What ``GET /v1/models`` tells of a model. 404 for an unknown name, 400 for one that does not do ``task``."""
        if not self._may_use(name):
            message = f"this API key may not use the model {name!r:.80}"
            raise ApiError(message, status=403, param="model", code="model_not_found")
        found = await self._catalog.entry(name)
        if task is not None and found["task"] != task:
            lacks = {FDM: "predicts no images", IDM: "describes no actions"}[task]
            raise ApiError(f"model {name!r:.80} {lacks}; use {task!r}", param="model")
        return found

    async def models(self) -> list[dict[str, Any]]:
        """All of them."""
        return [entry for entry in await self._catalog.entries() if self._may_use(entry["id"])]

    async def prepare(self, image: bytes, side_px: int, name: str = "image") -> Pixels:
        """The picture, square, of the model's size; uint8 (side_px, side_px, 3). 400 for what is none."""

        def prepare() -> Pixels:
            return fit_square(decode_image(image, name, self.limits.max_pixels), side_px)

        async with self._decoding:
            try:
                with metrics.stage("prepare"):
                    return await asyncio.to_thread(prepare)
            except InputError as error:
                raise ApiError(str(error), param=name, code="invalid_image") from error

    async def prepare_all(self, images: Sequence[tuple[str, bytes]], side_px: int) -> Pixels:
        """Several named pictures, uint8 (B, side_px, side_px, 3); see :func:`wm.api.prepare_images`."""
        async with self._decoding:
            with metrics.stage("prepare"):
                return await asyncio.to_thread(prepare_images, images, side_px, self.limits)

    def for_key(self, key: Key) -> "Graph":
        """The same one, within the limits of a key."""
        graph = copy(self)
        graph._key = key
        if key.max_best_of is not None:
            most = min(key.max_best_of, self.limits.max_best_of)
            default = min(most, self.limits.default_best_of)
            graph.limits = replace(self.limits, max_best_of=most, default_best_of=default)
        return graph

    def _may_use(self, model: str) -> bool:
        return self._key is None or self._key.models is None or model in self._key.models

    async def need_health(self) -> None:
        """Returns once both models answer."""
        await asyncio.gather(*(self.call(role, "describe", role) for role in self._handles))


async def _graph(request: Request) -> Graph:
    # async: FastAPI sends what is not to a thread, which costs more than all of this.
    found: Graph = request.app.state.graph
    key: Key | None = getattr(request.state, "key", None)
    return found if key is None else found.for_key(key)


GraphOf = Annotated[Graph, Depends(_graph)]
"""A route's parameter that is the graph of its app, within the limits of the request's key."""
