"""The base of the model deployments: a process with the recipe's models, adapters of their base, and the thread that
runs them all."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import ray
import torch

from serve_apps import metrics
from serve_apps.adapters import Adapters, list_adapters
from serve_apps.loopback import keep_replica_local
from serve_apps.model_thread import ModelThread
from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from serve_apps.replica_log import keep_in_serve_log
from serve_apps.results import AdapterEntry, ModelEntry
from wm.dynamics import Role, find_shared_base, load_role, load_roles
from wm.errors import InputError
from wm.files.mirror import shown
from wm.images import Pixels
from wm.models import ImageCodec, load_codec, read_manifest
from wm.models.manifest import is_adapter
from wm.models.vlm import UnifiedVLM
from wm.sampling import ImageEngine, ModelRunner

# An image grows in so many parts at least, where it has as many tokens: requests join, and progress is reported,
# often enough for an early preview, seldom enough to cost nothing.
MIN_UPDATES = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Codebook ids (N,) of an image.
Codes = Sequence[int]
# Images of a large request that are encoded before others have their turn.
MAX_IMAGES_A_TURN = 8


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A model and what decodes with it."""

    vlm: UnifiedVLM
    runner: ModelRunner

    @cached_property
    def pool(self) -> ImageEngine:
        """The engine's scheduler, in which the images of all requests for this model grow together."""
        line_tokens = max(1, self.vlm.tokens_per_image // MIN_UPDATES)
        return ImageEngine(self.vlm, self.runner, line_tokens=line_tokens)


class ModelServer:
    """A process with the recipe's models for :attr:`TASKS`, and with adapters of their base as they are asked for.

    A model is named ``fdm``, ``idm``, ``baseline``, or ``base:NAME`` for an adapter.
    """

    TASKS: ClassVar[tuple[str, ...]]

    def __init__(self, recipe: ServeRecipe) -> None:
        if ray.is_initialized():  # not where a test makes one in its own process
            keep_replica_local(ray.util.get_node_ip_address())
            keep_in_serve_log()
        torch.set_num_threads(recipe.num_threads(self.TASKS[0]))
        folder = recipe.base or (recipe.fdm if FDM in self.TASKS else recipe.idm)
        self._recipe = recipe
        try:
            base, roles = _load_models(recipe, self.TASKS)
            if recipe.baseline and FDM in self.TASKS:
                roles[BASELINE] = _load_baseline(recipe, recipe.baseline, base)
            self._codec = load_codec(folder, device=recipe.device)
        except InputError as error:
            # Whoever starts the server has named URIs, and knows nothing of this node's copies.
            raise InputError(shown(error)) from error
        self._thread = ModelThread()
        self._own = {name: _serve(role) for name, role in roles.items()}
        self._base = base
        self._adapters = None
        if recipe.adapters and base is not None:
            self._adapters = Adapters(recipe.adapters, base, _serve, recipe.max_adapters)

    def describe(self, name: str) -> ModelEntry:
        """Describe one of the recipe's own models."""
        model = self._own[name].vlm
        return {
            "task": IDM if name == IDM else FDM,
            "family": model.family,
            "base": model.base_id,
            "codec": model.codec_id,
            "tokens_per_image": model.tokens_per_image,
            "side_px": self._codec.side_px,
        }

    def describe_adapters(self) -> list[AdapterEntry]:
        """Describe the adapters in the recipe's folder, of both tasks."""
        if self._recipe.adapters is None or self._base is None:
            return []
        return list_adapters(self._recipe.adapters, self._base.model.base_id)

    async def check_health(self) -> None:
        """Decode a token with each of the recipe's models, in its turn; raise what that raises."""
        for model in self._own.values():
            await self._thread.call(_decode_token, model)

    async def _model(self, name: str) -> ServedModel:
        """Return a model by its name; an adapter is loaded if it is not in memory."""
        own = self._own.get(name)
        if own is not None:
            return own
        # While an application is replaced, replicas of the recipe before are asked too: another model would be wrong.
        if self._adapters is None:
            raise ApiError.unavailable(f"this replica has no model {name!r:.80} yet; try again", "model_starting")
        return await self._adapters.load(name)

    async def _encode(self, images_BHWC: Pixels) -> list[list[int]]:
        """Encode images uint8 (B, height, width, 3), square, of the codec's size, as codebook ids (B, N)."""
        codes: list[list[int]] = []
        with metrics.stage("encode"):
            for start in range(0, len(images_BHWC), MAX_IMAGES_A_TURN):
                part_BHWC = images_BHWC[start : start + MAX_IMAGES_A_TURN]
                codes += await self._thread.batch(_encode, self._codec, part_BHWC)
        return codes

    async def _decode(self, codes_KN: Sequence[Codes]) -> Pixels:
        """Decode codes to pixels, uint8 (K, height, width, 3)."""
        with metrics.stage("decode"):
            return await self._thread.batch(_decode, self._codec, codes_KN)


def _load_models(recipe: ServeRecipe, tasks: Sequence[str]) -> tuple[Role | None, dict[str, Role]]:
    """Load the recipe's models for ``tasks``, and the bare base that they are adapters of, where they share it."""
    dtype = DTYPES[recipe.dtype]
    folders = {FDM: recipe.fdm, IDM: recipe.idm}
    # Adapters are applied as they run over the bare base, the recipe's two as well.
    if recipe.adapters or recipe.base_sharing == "shared":
        base = load_role(find_shared_base(recipe.fdm, recipe.idm, recipe.base), device=recipe.device, dtype=dtype)
        return base, {task: load_role(folders[task], base=recipe.base, over=base) for task in tasks}
    if len(tasks) > 1:
        both = load_roles(recipe.fdm, recipe.idm, base=recipe.base, device=recipe.device, dtype=dtype)
        return None, {FDM: both.fdm, IDM: both.idm}
    return None, {task: load_role(folders[task], base=recipe.base, device=recipe.device, dtype=dtype) for task in tasks}


def _load_baseline(recipe: ServeRecipe, folder: str, base: Role | None) -> Role:
    """Load the second forward model, over the weights of the shared base where it is that base or an adapter of it."""
    manifest = read_manifest(folder)
    is_of_base = base is not None and manifest is not None and manifest.base_id == base.model.base_id
    if is_of_base and is_adapter(folder):
        return load_role(folder, base=recipe.base, over=base)
    if is_of_base and base is not None and manifest is not None and manifest.kind == "base":
        return base
    own_base = recipe.base if is_adapter(folder) else None
    return load_role(folder, base=own_base, device=recipe.device, dtype=DTYPES[recipe.dtype])


def _serve(role: Role) -> ServedModel:
    return ServedModel(role.model, role.runner)


@torch.no_grad()
def _decode_token(model: ServedModel) -> None:
    _, last_PH = model.runner.prefill([[model.vlm.bos_id]])
    model.runner.image_logits(last_PH)


def _encode(codec: ImageCodec, requests: Sequence[Pixels]) -> list[list[list[int]]]:
    """Encode the images of several requests in one pass."""
    codes_BN = codec.encode(np.concatenate(requests)).tolist()
    ends = np.cumsum([len(images_BHWC) for images_BHWC in requests])
    return [codes_BN[end - len(images_BHWC) : end] for images_BHWC, end in zip(requests, ends, strict=True)]


def _decode(codec: ImageCodec, requests: Sequence[Sequence[Codes]]) -> list[Pixels]:
    """Decode the codes of several requests in one pass."""
    codes = [np.asarray(codes_KN) for codes_KN in requests]
    ends = np.cumsum([len(codes_KN) for codes_KN in codes])[:-1]
    return np.split(codec.decode(np.concatenate(codes)), ends)
