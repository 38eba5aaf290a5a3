"""The served graph as the routes see it: the two roles, the limits, and blocking work in fair shares."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.calls import call, method_of, stream
from serve_apps.catalog import Catalog
from serve_apps.fair import FairThreads, PixelBudget
from serve_apps.keys import Key
from serve_apps.openai import ApiError, Limits, count_pixels_of, prepare_image
from serve_apps.recipe import FDM, IDM, ServeRecipe
from wm.images import Pixels

T = TypeVar("T")
SMALL_BYTES = 2**16
"""A body of so many bytes is parsed where it was read: changing threads would cost more."""


class Graph:
    """FDM sampler and IDM verifier, each behind a deployment handle (or what acts as one)."""

    def __init__(self, recipe: ServeRecipe, sampler: DeploymentHandle, verifier: DeploymentHandle) -> None:
        self.recipe, self.limits = recipe, recipe.limits()
        self._handles = {FDM: sampler, IDM: verifier}
        self._key: Key | None = None
        self._client = ""
        self._catalog = Catalog(recipe, self.call)
        # A large image takes 0.1 GB while it is scaled down: few threads.
        self._threads = FairThreads()
        self._budget = PixelBudget(*recipe.pixel_budget())

    async def call(self, role: str, method: str, *arguments: Any, model: str = FDM) -> Any:
        """Return what a method of ``fdm`` or ``idm`` returns; see :func:`serve_apps.calls.call`. ``model``: which one
        is at work, so that a replica that has it is asked."""
        return await call(method_of(self._handles[role], method, model), *arguments)

    def stream(self, role: str, method: str, *arguments: Any, model: str = FDM) -> AsyncGenerator[Any, None]:
        """Yield what a generator of ``fdm`` or ``idm`` yields; see :func:`serve_apps.calls.stream`."""
        return stream(method_of(self._handles[role], method, model), *arguments)

    async def model(self, name: str, *, task: str | None = None) -> dict[str, Any]:
        """Describe what ``GET /v1/models`` reports of a model. 404 for an unknown name, 400 for one that does not do
        ``task``."""
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

    async def work(self, cost: float, function: Callable[[], T]) -> T:
        """Call a blocking function in a thread, when it is this client's turn.

        Args:
            cost: Of the work, in bytes or pixels that are gone through.
            function: Takes no arguments.

        Returns:
            What ``function`` returns.
        """
        return await self._threads.run(self._client, cost, function)

    async def parse(self, parse: Callable[[bytes, Limits], T], body: bytes) -> T:
        """Check a body; what is long enough to hold up others is parsed off the event loop."""
        check = partial(parse, body, self.limits)
        return check() if len(body) <= SMALL_BYTES else await self.work(len(body), check)

    async def prepare(self, image: bytes, side_px: int, name: str = "image") -> Pixels:
        """Decode an image and fit it to the model: see :meth:`prepare_all`. Returns uint8 (side_px, side_px, 3)."""
        images_BHWC = await self.prepare_all([(name, image)], side_px)
        pixels_HWC: Pixels = images_BHWC[0]
        return pixels_HWC

    async def prepare_all(self, images: Sequence[tuple[str, bytes]], side_px: int) -> Pixels:
        """Decode named images and fit them to the model.

        Each image is a job of its own, so that a request of many, or of large ones, lets others go between.

        Returns:
            uint8 (B, side_px, side_px, 3).

        Raises:
            ApiError: 400 for what is no image or has too many pixels; 429 or 503 where too many wait to be decoded.
        """
        with metrics.stage("prepare"):
            counts = await self.work(
                sum(len(data) for _, data in images), partial(count_pixels_of, images, self.limits)
            )
            with self._budget.reserve(self._client, sum(counts)):
                fitted: list[Pixels] = [
                    await self.work(count, partial(prepare_image, name, data, side_px, self.limits))
                    for (name, data), count in zip(images, counts, strict=True)
                ]
        return np.stack(fitted)

    def for_client(self, address: str) -> "Graph":
        """Return the same graph, whose work is charged to an address. An IPv6 host owns a network of 64 bits."""
        graph = copy(self)
        try:
            parsed = ip_address(address)
        except ValueError:
            graph._client = address
        else:
            # A socket of both families has IPv4 clients as ::ffff:A.B.C.D, all of which are in one network of 64 bits.
            parsed = getattr(parsed, "ipv4_mapped", None) or parsed
            graph._client = str(parsed if parsed.version == 4 else ip_network((parsed, 64), strict=False))
        return graph

    def for_key(self, key: Key) -> "Graph":
        """Return the same one, within the limits of a key, whose work is charged to the key."""
        graph = copy(self)
        graph._key, graph._client = key, key.sha256
        if key.max_best_of is not None:
            most = min(key.max_best_of, self.limits.max_best_of)
            default = min(most, self.limits.default_best_of)
            graph.limits = replace(self.limits, max_best_of=most, default_best_of=default)
        return graph

    def _may_use(self, model: str) -> bool:
        return self._key is None or self._key.models is None or model in self._key.models

    async def need_health(self) -> None:
        """Return once both models answer."""
        await asyncio.gather(*(self.call(role, "describe", role) for role in self._handles))


async def _graph(request: Request) -> Graph:
    # async: FastAPI sends what is not to a thread, which costs more than all of this.
    found: Graph = request.app.state.graph
    key: Key | None = getattr(request.state, "key", None)
    if key is not None:
        return found.for_key(key)
    return found.for_client(request.client.host if request.client else "")


GraphOf = Annotated[Graph, Depends(_graph)]
"""A route's parameter that is the graph of its app, within the limits of the request's key."""
