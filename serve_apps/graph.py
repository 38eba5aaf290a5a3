"""The served models as the routes see them: the two roles, the limits of a client, and blocking work in fair shares."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Annotated, Any, TypeVar

import numpy as np
from fastapi import Depends, Request
from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.calls import call
from serve_apps.catalog import Catalog, CatalogEntry
from serve_apps.fair import FairThreads, PixelBudget
from serve_apps.keys import Key
from serve_apps.names import FDM, IDM, REPLICA_WAIT
from serve_apps.openai.editors import check_no_codes
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import NamedImage, count_pixels_of, encode_image, prepare_image
from serve_apps.openai.requests import PredictionRequest
from serve_apps.recipe import ServeRecipe
from serve_apps.waking import Waking
from wm.images import Pixels

T = TypeVar("T")
# A body of so many bytes is parsed where it was read: changing threads would cost more.
SMALL_BYTES = 2**16


class Graph:
    """The FDM and the IDM server, each behind a deployment handle (or what acts as one)."""

    def __init__(self, recipe: ServeRecipe, fdm: DeploymentHandle, idm: DeploymentHandle) -> None:
        self.recipe, self.limits = recipe, recipe.limits()
        self.fdm, self.idm = fdm, idm
        self._key: Key | None = None
        self._client = ""
        handles = {FDM: fdm, IDM: idm}
        self._catalog, self._waking = Catalog(recipe, handles), Waking(recipe, handles)
        # Of the request: the middleware reports from it.
        self.state: dict[str, Any] = {}
        # A large image takes 0.1 GB while it is scaled down: few threads.
        self._threads = FairThreads()
        self._budget = PixelBudget(*recipe.pixel_budget())

    async def model(self, name: str, *, task: str | None = None, with_verifier: bool = False) -> CatalogEntry:
        """Return a model's entry.

        Args:
            name: As a client sent it.
            task: What it is to do.
            with_verifier: Whether the inverse model will be asked as well.

        Raises:
            ApiError: 404 for an unknown name, 403 for one that the key may not use, 400 for one that does not do
                ``task``, 503 where it has no replica and gets none in time.
        """
        # Before it is looked up: a key learns nothing of models that are not for it.
        if not self._may_use(name):
            message = f"this API key may not use the model {name!r:.80}"
            raise ApiError(message, status=403, param="model", code="model_not_found")
        if not self._catalog.is_described:
            await self.wake(FDM, IDM)
        entry = await self._catalog.entry(name)
        if task is not None and entry["task"] != task:
            lacks = {FDM: "predicts no images", IDM: "describes no actions"}[task]
            raise ApiError(f"model {name!r:.80} {lacks}; use {task!r}", param="model")
        if task is not None:
            await self.wake(task, *([IDM] if with_verifier else []))
        return entry

    async def predicting_model(self, request: PredictionRequest) -> CatalogEntry:
        """Return the entry of a request's FDM, after a check of its verifier; raise as :meth:`model`."""
        is_verified = not isinstance(request, EditRequest) or request.verify
        entry = await self.model(request.model, task=FDM, with_verifier=is_verified)
        if entry["kind"] == "editor":
            check_no_codes(request)
        # A key that is for the FDM alone has its answers verified all the same.
        if "verifier" in request.model_fields_set:
            await self.model(request.verifier, task=IDM)
        return entry

    async def models(self) -> list[CatalogEntry]:
        """Return the entries of all models that the key may use."""
        if not self._catalog.is_described:
            await self.wake(FDM, IDM)
        return [entry for entry in await self._catalog.entries() if self._may_use(entry["id"])]

    async def wake(self, *tasks: str) -> None:
        """Wait until the models for ``tasks`` have replicas; the seconds are kept in :attr:`state`.

        Args:
            tasks: What the models do.

        Raises:
            ApiError: 503 where one has none in time.
        """
        waited_s = max(await asyncio.gather(*(self._waking.wait_for(task) for task in tasks)))
        if waited_s:
            self.state[REPLICA_WAIT] = waited_s + self.state.get(REPLICA_WAIT, 0.0)

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
        """Check a body; what is long enough to hold up others is parsed off the event loop.

        Args:
            parse: Of the endpoint; it raises :class:`ApiError`.
            body: As received.
        """
        check = partial(parse, body, self.limits)
        return check() if len(body) <= SMALL_BYTES else await self.work(len(body), check)

    async def prepare(self, images: Sequence[NamedImage], side_px: int) -> Pixels:
        """Decode named images and fit them to the model.

        Each image is a job of its own, so that a request of many, or of large ones, lets others go between.

        Args:
            images: The name of each, for errors, and its encoded bytes.
            side_px: Pixels a side that the model reads.

        Returns:
            uint8 (B, side_px, side_px, 3).

        Raises:
            ApiError: 400 for what is no image or has too many pixels; 429 or 503 where too many wait to be decoded.
        """
        with metrics.stage("prepare"):
            # 1. Sizes first: what is too large is refused before any of it is decoded.
            counts = await self.work(
                sum(len(data) for _, data in images), partial(count_pixels_of, images, self.limits)
            )
            # 2. Then the pixels, within what this client and all may have in memory.
            with self._budget.reserve(self._client, sum(counts)):
                fitted: list[Pixels] = [
                    await self.work(count, partial(prepare_image, name, data, side_px, self.limits))
                    for (name, data), count in zip(images, counts, strict=True)
                ]
        return np.stack(fitted)

    async def encode(self, request: PredictionRequest, pixels_HWC: Pixels) -> str:
        """Encode an image in the format and size that a request asks for, as base64.

        Each is a job of its own, so that others go between.

        Args:
            request: Its format, quality and size.
            pixels_HWC: uint8 (side, side, 3).
        """
        side_px = request.side_px or len(pixels_HWC)
        encode = partial(encode_image, pixels_HWC, request.output_format, request.output_compression, side_px)
        return base64.b64encode(await self.work(side_px**2, encode)).decode()

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
        """Return the same graph within the limits of a key, to which its work is charged."""
        # The catalog, the threads and the budget are shared; the limits are this key's.
        graph = copy(self)
        graph._key, graph._client = key, key.sha256
        if key.max_best_of is not None:
            max_best_of = min(key.max_best_of, self.limits.max_best_of)
            default = min(max_best_of, self.limits.default_best_of)
            graph.limits = replace(self.limits, max_best_of=max_best_of, default_best_of=default)
        return graph

    def _may_use(self, model: str) -> bool:
        return self._key is None or self._key.models is None or model in self._key.models

    async def check_health(self) -> list[str]:
        """Return once the models answer that always have replicas.

        Returns:
            Those without a replica by their recipe's choice: whoever asks for health every few seconds must neither
            wake them nor keep them awake.
        """
        sleepers = [task for task in (FDM, IDM) if self.recipe.scales_to_zero(task)]
        handles = {FDM: self.fdm, IDM: self.idm}
        await asyncio.gather(
            *(call(handle, "describe", task, model=task) for task, handle in handles.items() if task not in sleepers)
        )
        return [task for task in sleepers if await self._waking.is_asleep(task)]


async def _graph(request: Request) -> Graph:
    # async: FastAPI sends what is not to a thread, which costs more than all of this.
    graph: Graph = request.app.state.graph
    key: Key | None = getattr(request.state, "key", None)
    own = graph.for_client(request.client.host if request.client else "") if key is None else graph.for_key(key)
    own.state = request.scope.setdefault("state", {})
    return own


# A route's parameter that is the graph of its app, within the limits of the request's key.
GraphOf = Annotated[Graph, Depends(_graph)]
