"""The world model as a Ray Serve application: ingress → FDM sampler → IDM verifier.

``serve run serve_apps/world_model.yaml``, ``serve run serve_apps.world_model:build fdm=DIR idm=DIR`` or
``python -m serve_apps fdm=DIR idm=DIR``. The deployments move data; the method is in ``wm.dynamics``. Sampler and
verifier are one deployment where ``roles`` says so.
"""

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import Request
from fastapi.responses import JSONResponse
from ray import serve
from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_apps.http import create_app, edit_openapi, read_edit
from serve_apps.recipe import OTHER_CODEC, ServeRecipe, check_models
from serve_apps.replicas import FDM, IDM, Both, Sampler, Verifier
from wm.api import ApiError, Edit
from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square
from wm.replies import choose, edit_reply, encode_picture, unchanged_share, unranked_entries

TRIES = 4
"""Of a request, each on another replica, before it is given up."""
logger = logging.getLogger("ray.serve")


# Ray copies the app and the globals its routes use while the class below is made: helpers come first.
async def _call(method: Any, *arguments: Any) -> Any:
    """Await a deployment's method; its refusals become answers that say so. One whose replica dies is asked of
    another: what a method gives depends on its arguments alone."""
    for tries_left in reversed(range(TRIES)):
        try:
            return await _asked(method, *arguments)
        except RayActorError as error:
            if not tries_left:
                raise _unavailable("the replicas at work on this request died; try again", "replica_died") from error
            logger.warning("a replica died at work on a request (%s); asking another", error)
    raise AssertionError


async def _asked(method: Any, *arguments: Any) -> Any:
    try:
        return await method.remote(*arguments)
    except BackPressureError as error:
        raise _unavailable("the server is busy; try again soon", "overloaded") from error
    except RayTaskError as error:
        if isinstance(error.cause, InputError):
            raise ApiError(str(error.cause), code="invalid_value") from error
        raise


def _unavailable(message: str, code: str) -> ApiError:
    return ApiError(message, status=503, kind="server_error", code=code, headers={"Retry-After": "1"})


app = create_app("wm: verified predictions of a world model")


@serve.ingress(app)
class Ingress:
    """OpenAI's HTTP interface in front of the sampler and the verifier."""

    def __init__(self, recipe: ServeRecipe, sampler: DeploymentHandle, verifier: DeploymentHandle) -> None:
        self._recipe, self._sampler, self._verifier = recipe, sampler, verifier
        self._limits = recipe.limits()
        self._models: dict[str, dict[str, Any]] = {}
        # A large picture takes 0.1 GB while it is scaled down: few at a time.
        self._decoding = asyncio.Semaphore(2)

    @app.post("/v1/images/edits", openapi_extra=edit_openapi())
    async def edit_image(self, request: Request) -> JSONResponse:
        """Predict what the source looks like after the action in ``prompt``; best candidates first."""
        edit = await read_edit(request, self._limits)
        model = await self._model(edit.model or FDM)
        if model["task"] != FDM:
            raise ApiError(f"model {model['id']!r} predicts no images; use {FDM!r}", param="model")
        source_HWC = await self._prepare(edit.image, model["side_px"])
        source_N, codes_KN, action_tokens = await _call(
            self._sampler.sample, source_HWC, edit.prompt, edit.best_of, edit.seed, self._settings(edit)
        )
        ranking = choose(await self._ranking(edit, source_N, codes_KN), edit.n)
        chosen_KN = codes_KN[[entry["index"] for entry in ranking]]
        pixels_KHWC = await _call(self._sampler.decode, chosen_KN)
        side_px = edit.side_px or model["side_px"]
        pictures = [
            (
                encode_picture(pixels, edit.output_format, edit.output_compression, edit.side_px),
                entry | {"unchanged_share": unchanged_share(source_N, codes_N)},
            )
            for pixels, codes_N, entry in zip(pixels_KHWC, chosen_KN, ranking, strict=True)
        ]
        facts = {
            "model": model["id"],
            "side_px": side_px,
            "tokens_per_image": model["tokens_per_image"],
            "action_tokens": action_tokens,
            "distinct": len(np.unique(codes_KN, axis=0)),
        }
        return JSONResponse(edit_reply(edit, pictures=pictures, facts=facts, created_s=int(time.time())))

    @app.get("/v1/models")
    async def list_models(self) -> JSONResponse:
        """The models served, with the base and the codec each belongs to."""
        return JSONResponse({"object": "list", "data": [await self._model(name) for name in (FDM, IDM)]})

    @app.get("/v1/models/{model_id}")
    async def get_model(self, model_id: str) -> JSONResponse:
        return JSONResponse(await self._model(model_id))

    @app.get("/health")
    async def health(self) -> JSONResponse:
        """200 once both models answer."""
        await asyncio.gather(_call(self._sampler.describe, FDM), _call(self._verifier.describe, IDM))
        return JSONResponse({"status": "ok"})

    async def _model(self, name: str) -> dict[str, Any]:
        handles = {FDM: (self._sampler, self._recipe.fdm), IDM: (self._verifier, self._recipe.idm)}
        if name not in handles:
            raise ApiError(
                f"no such model: {name!r:.80}; the models are {', '.join(handles)}",
                status=404,
                param="model",
                code="model_not_found",
            )
        if not self._models:
            entries = {}
            for known, (handle, folder) in handles.items():
                created_s = int(Path(folder).stat().st_mtime) if Path(folder).exists() else 0
                entry = {"id": known, "object": "model", "created": created_s, "owned_by": "wm"}
                entries[known] = entry | await _call(handle.describe, known)
            codecs = [entry["codec"] for entry in entries.values()]
            if len(set(codecs)) > 1:
                message = OTHER_CODEC.format(*codecs)
                raise ApiError(message, status=503, kind="server_error", code="models_do_not_match")
            self._models = entries
        return self._models[name]

    async def _prepare(self, image: bytes, side_px: int) -> Pixels:
        def prepare() -> Pixels:
            return fit_square(decode_image(image, "image", self._limits.max_pixels), side_px)

        async with self._decoding:
            try:
                return await asyncio.to_thread(prepare)
            except InputError as error:
                raise ApiError(str(error), param="image", code="invalid_image") from error

    def _settings(self, edit: Edit) -> dict[str, Any]:
        """The request's sampling settings, the recipe's where it gives none."""
        temperature = self._recipe.temperature if edit.temperature is None else edit.temperature
        return {
            "temperature": temperature or 1.0,
            "greedy": temperature == 0,
            "top_k": self._recipe.top_k if edit.top_k is None else edit.top_k,
            "top_p": self._recipe.top_p if edit.top_p is None else edit.top_p,
            "guidance_text": self._recipe.guidance if edit.guidance is None else edit.guidance,
            "guidance_image": self._recipe.guidance_image if edit.guidance_image is None else edit.guidance_image,
        }

    async def _ranking(self, edit: Edit, source_N: np.ndarray, codes_KN: np.ndarray) -> list[dict[str, Any]]:
        if edit.verify:
            ranked: list[dict[str, Any]] = await _call(self._verifier.rank, source_N, edit.prompt, codes_KN, edit.seed)
            return ranked
        return unranked_entries(len(codes_KN), edit.seed)


def build(args: ServeRecipe) -> serve.Application:
    """The application of a recipe: what ``serve run`` and the YAML file name.

    Raises :class:`InputError` for models that are not there or do not go together (see :func:`check_models`).
    """
    check_models(args)
    # Workers may run in another folder.
    folders = {key: str(Path(value).resolve()) for key in ("fdm", "idm", "base") if (value := getattr(args, key))}
    args = args.model_copy(update=folders)
    both = serve.deployment(Both, name="FDMAndIDM", **_deployed(args, "sampler"))
    sampler = serve.deployment(Sampler, name="FDMSampler", **_deployed(args, "sampler"))
    verifier = serve.deployment(Verifier, name="IDMVerifier", **_deployed(args, "verifier"))
    # The ingress waits more than it computes: no core is set aside, so that two cores serve both models.
    ingress = serve.deployment(Ingress, name="Ingress", max_ongoing_requests=256, ray_actor_options={"num_cpus": 0})
    if args.roles != "apart":
        models = both.bind(args)
        return ingress.bind(args, models, models)
    return ingress.bind(args, sampler.bind(args), verifier.bind(args))


def _deployed(args: ServeRecipe, role: str) -> dict[str, Any]:
    """How many copies of a role there are, what each needs, how it is asked for."""
    least, most = getattr(args, f"{role}_replicas"), getattr(args, f"{role}_max_replicas")
    copies: dict[str, Any] = {"num_replicas": least}
    if most:
        scaling = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": args.target_ongoing_requests}
        delays = {"upscale_delay_s": args.upscale_delay_s, "downscale_delay_s": args.downscale_delay_s}
        copies = {"autoscaling_config": scaling | delays}
    return copies | {
        "max_constructor_retry_count": 2,
        "max_ongoing_requests": args.max_ongoing_requests,
        "max_queued_requests": args.max_queued_requests,
        "health_check_timeout_s": args.health_check_timeout_s,
        "graceful_shutdown_timeout_s": args.shutdown_timeout_s,
        "ray_actor_options": {"num_cpus": args.cpus_per_replica, "num_gpus": args.gpus_per_replica},
    }
