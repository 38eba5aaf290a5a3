"""The base of the model deployments: a process with the recipe's models, adapters of their base, and the thread that
runs them all."""

import asyncio
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import ClassVar

import numpy as np
import ray
import torch

from serve_apps import metrics
from serve_apps.adapters import Adapters, list_adapters
from serve_apps.loopback import keep_replica_local
from serve_apps.model_kinds import check_kinds, read_kinds
from serve_apps.model_loading import ServedModel, load_models
from serve_apps.model_thread import ModelThread
from serve_apps.names import FDM, IDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from serve_apps.replica_log import keep_in_serve_log
from serve_apps.results import AdapterEntry, ModelEntry
from serve_apps.served_editor import EditorModel
from serve_apps.served_models import CodeModel
from wm.dynamics import Observation, Role, codes_of, observe_codes, pixels_of
from wm.errors import InputError
from wm.files.mirror import shown
from wm.images import Pixels
from wm.models import ImageCodec

# Images of a large request that are encoded before others have their turn.
MAX_IMAGES_A_TURN = 8
# How often it is looked whether a health check waits for a call of an editor.
POLL_S = 1.0


class ModelServer:
    """A process with the recipe's models for :attr:`TASKS`, and with adapters of their base as they are asked for.

    A model is named ``fdm``, ``idm``, ``baseline``, or ``base:NAME`` for an adapter.
    """

    TASKS: ClassVar[tuple[str, ...]]

    def __init__(self, recipe: ServeRecipe) -> None:
        keep_replica_local()
        if ray.is_initialized():  # not where a test makes one in its own process
            keep_in_serve_log()
        torch.set_num_threads(recipe.num_threads(self.TASKS[0]))
        self._recipe = recipe
        try:
            self._kinds = read_kinds(recipe)
            check_kinds(recipe, self._kinds)
            loaded = load_models(recipe, self._kinds, self.TASKS)
        except InputError as error:
            # Whoever starts the server has named URIs, and knows nothing of this node's copies.
            raise InputError(shown(error)) from error
        self._thread = ModelThread()
        self._own = loaded.models
        self._base = loaded.base
        self._adapters = None
        if recipe.adapters and loaded.base is not None and loaded.codec is not None:
            serve_role = partial(_serve, loaded.codec)
            self._adapters = Adapters(recipe.adapters, loaded.base, serve_role, recipe.max_adapters)

    def describe(self, name: str) -> ModelEntry:
        """Describe one of the recipe's own models."""
        return self._own[name].describe(IDM if name == IDM else FDM)

    def describe_adapters(self) -> list[AdapterEntry]:
        """Describe the adapters in the recipe's folder, of both tasks."""
        if self._recipe.adapters is None or self._base is None:
            return []
        return list_adapters(self._recipe.adapters, self._base.model.base_id)

    async def check_health(self) -> None:
        """Ask each of the recipe's models for a little work, in its turn; raise what that raises."""
        editors = [model for model in self._own.values() if isinstance(model, EditorModel)]
        for model in self._own.values():
            check = asyncio.ensure_future(model.check_health(self._thread))
            # A call of an editor may take minutes. Ray Serve would take a replica that waits so long for a dead one.
            while not (await asyncio.wait({check}, timeout=POLL_S))[0]:
                if any(editor.is_working for editor in editors):
                    check.cancel()
                    for editor in editors:
                        editor.check_progress()
                    break
            else:
                check.result()

    async def _model(self, name: str) -> ServedModel:
        """Return a model by its name; an adapter is loaded if it is not in memory."""
        own = self._own.get(name)
        if own is not None:
            return own
        # While an application is replaced, replicas of the recipe before are asked too: another model would be wrong.
        if self._adapters is None:
            raise ApiError.unavailable(f"this replica has no model {name!r:.80} yet; try again", "model_starting")
        return await self._adapters.load(name)

    async def _observe(self, model: ServedModel, images_BHWC: Pixels | Sequence[Pixels]) -> list[Observation]:
        """Make observations of images in the form that this replica's models exchange.

        Args:
            model: Which reads them.
            images_BHWC: uint8 (B, height, width, 3), square, of the model's size.

        Returns:
            Codes where both models have one codec. Else pixels, with the codes that the model reads beside them.
        """
        if not isinstance(model, CodeModel):
            return [Observation.from_pixels(pixels_HWC) for pixels_HWC in images_BHWC]
        if self._kinds.exchanges_codes:
            return observe_codes(await self._encode(model.codec, images_BHWC), model.codec)
        observations = [Observation.from_pixels(pixels_HWC) for pixels_HWC in images_BHWC]
        with metrics.stage("encode"):
            await asyncio.gather(
                *(
                    self._thread.batch(_read_codes, model.codec, observation, max_items=MAX_IMAGES_A_TURN)
                    for observation in observations
                )
            )
        return observations

    async def _encode(self, codec: ImageCodec, images_BHWC: Pixels | Sequence[Pixels]) -> list[list[int]]:
        """Encode images uint8 (B, height, width, 3), square, of the codec's size, as codebook ids (B, N)."""
        codes: list[list[int]] = []
        with metrics.stage("encode"):
            for start in range(0, len(images_BHWC), MAX_IMAGES_A_TURN):
                part_BHWC = np.asarray(images_BHWC[start : start + MAX_IMAGES_A_TURN])
                codes += await self._thread.batch(_encode, codec, part_BHWC)
        return codes

    async def _decode(self, observations: Sequence[Observation]) -> list[Pixels]:
        """Return pixels, uint8 (height, width, 3) each; those that are codes are decoded."""
        with metrics.stage("decode"):
            return await self._thread.batch(_read_pixels, self, observations)


def _serve(codec: ImageCodec, role: Role) -> ServedModel:
    return CodeModel(role.model, role.runner, codec)


def _encode(codec: ImageCodec, requests: Sequence[Pixels]) -> list[list[list[int]]]:
    """Encode the images of several requests in one pass."""
    codes_BN = codec.encode(np.concatenate(requests)).tolist()
    ends = np.cumsum([len(images_BHWC) for images_BHWC in requests])
    return [codes_BN[end - len(images_BHWC) : end] for images_BHWC, end in zip(requests, ends, strict=True)]


def _read_codes(codec: ImageCodec, requests: Sequence[Observation]) -> Sequence[object]:
    """Encode observations, which keep their codes beside their pixels, in one pass."""
    return codes_of(requests, codec)


def _read_pixels(_: "ModelServer", requests: Sequence[Sequence[Observation]]) -> list[list[Pixels]]:
    """Decode the observations of several requests in one pass; they keep their pixels."""
    pixels = iter(pixels_of([item for request in requests for item in request]))
    return [list(islice(pixels, len(request))) for request in requests]
