"""``/v1/wm/comparisons``: two models' predictions of one action, shown blind; the choice is kept as a vote.

Only where the recipe names a store. Both images come in one answer, in a random order, of one size and format, without
scores: nothing in it differs by model but the pixels.
"""

import asyncio
import hashlib
import secrets
from collections.abc import Sequence
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.calls import call
from serve_apps.comparisons import folder_of, list_folders
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import read_json
from serve_apps.names import FDM
from serve_apps.openai.comparisons import (
    ChoiceRequest,
    ComparisonRequest,
    choice_from_json,
    comparison_from_json,
)
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError, JsonObject
from serve_apps.openai.images import PIXEL_URL
from serve_apps.openai.requests import MAX_SEED
from serve_apps.openapi import json_openapi
from serve_apps.results import EditResult
from serve_apps.routes.edits import size_of
from serve_apps.routes.methods import get_or_head
from wm.images import Pixels
from wm.study.playground import MAX_AGE_S, Comparison

router = APIRouter()
_BODY = json_openapi(ComparisonRequest, {"image"}, {"image": PIXEL_URL, "action": "move the red cup left"})
_CHOICE = json_openapi(ChoiceRequest, (), {"choice": "left"})
_ERROR: JsonObject = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
_FULL: dict[int | str, JsonObject] = {
    507: _ERROR | {"description": "The disk with the choices is full; nothing was stored"}
}
_OF_CHOICES: dict[int | str, JsonObject] = _FULL | {
    409: _ERROR | {"description": "Another choice was made before; it counts"},
    410: _ERROR | {"description": "The images were shown too long ago"},
}


# async: FastAPI sends what is not to a thread, which costs more than all of this.
async def _store(request: Request) -> DeploymentHandle:
    handle: DeploymentHandle = request.app.state.comparisons
    return handle


# A route's parameter that is the deployment with the store.
StoreOf: TypeAlias = Annotated[DeploymentHandle, Depends(_store)]


@get_or_head(router, "/v1/wm/comparisons")
async def describe_comparisons(graph: GraphOf, store: StoreOf) -> JSONResponse:
    """Return which models can be compared, and how many choices are stored; not which: `wm study export` reads them."""
    names, num_choices = await _list_models(graph), await call(store, "count")
    return JSONResponse({"object": "wm.comparisons", "models": names, "choices": num_choices})


@router.post("/v1/wm/comparisons", openapi_extra=_BODY, responses=_FULL)
async def compare(request: Request, graph: GraphOf, store: StoreOf) -> JSONResponse:
    """Predict what the source looks like after ``action`` by two models; a choice reveals which is whose."""
    body, image = await graph.parse(comparison_from_json, await read_json(request, graph.limits))
    # 1. Who is compared: the order is chance, and no request can choose it.
    names = await _choose_order(graph, body.models)
    seed = secrets.randbelow(MAX_SEED + 1) if body.seed is None else body.seed
    edits = [body.to_edit(name, seed, graph.limits) for name in names]
    model = await graph.predicting_model(edits[0])
    await graph.predicting_model(edits[1])
    # 2. Who compares, before any work is done: a full disk, or a code that nobody has, is said at once.
    code = await call(store, "join", body.participant)
    # 3. Both predictions at once: their images grow together.
    (source_HWC,) = await graph.prepare([("image", image)], model["side_px"])
    results = await _predict(graph, edits, source_HWC)
    with metrics.stage("encode_image"):
        images = [await graph.encode(edit, result.pixels[0]) for edit, result in zip(edits, results, strict=True)]
    # 4. What is shown is on the disk first: a choice counts whatever dies meanwhile.
    folders = list_folders(graph.recipe)
    comparison: Comparison = await call(
        store,
        "add",
        Comparison(
            participant=code,
            systems=(names[0], names[1]),
            folders={name: str(folder_of(folders, name)) for name in names},
            action=body.action,
            source_sha256=hashlib.sha256(source_HWC.tobytes()).hexdigest(),
            seed=seed,
            num_candidates=body.best_of,
        ),
    )
    metrics.record(metrics.COMPARISONS, event="shown")
    reply: JsonObject = {
        "id": comparison.item_id,
        "object": "wm.comparison",
        "created": int(comparison.shown_at_s),
        "expires_at": int(comparison.shown_at_s + MAX_AGE_S),
        "participant": code,
        "size": size_of(edits[0], model),
        "output_format": edits[0].output_format,
        "left": {"b64_json": images[0]},
        "right": {"b64_json": images[1]},
    }
    return JSONResponse(reply, headers={"Cache-Control": "no-store"})


@router.post("/v1/wm/comparisons/{comparison_id}", openapi_extra=_CHOICE, responses=_OF_CHOICES)
async def choose(comparison_id: str, request: Request, graph: GraphOf, store: StoreOf) -> JSONResponse:
    """Keep the choice between the two images, and return which model made which. The same choice again is no error."""
    choice = (await graph.parse(choice_from_json, await read_json(request, graph.limits))).choice
    comparison: Comparison = await call(store, "choose", comparison_id, choice)
    metrics.record(metrics.COMPARISONS, event=choice)
    reply = {
        "id": comparison.item_id,
        "object": "wm.comparison.choice",
        "choice": choice,
        "left": {"model": comparison.systems[0]},
        "right": {"model": comparison.systems[1]},
        "action": comparison.action,
        "seed": comparison.seed,
        "best_of": comparison.num_candidates,
    }
    return JSONResponse(reply, headers={"Cache-Control": "no-store"})


async def _list_models(graph: Graph) -> list[str]:
    return [entry["id"] for entry in await graph.models() if entry["task"] == FDM]


async def _choose_order(graph: Graph, names: Sequence[str] | None) -> list[str]:
    """Return two models, those that are asked for or any two that the key may use, in random order."""
    # Neither the order in a request nor that of the list says who is left: chance alone.
    if names is None:
        names = await _list_models(graph)
        if len(names) < 2:
            served = ", ".join(names) or "none"
            message = f"two forward models are needed to compare, and there is {served}; give the server baseline=DIR"
            raise ApiError(f"{message} or adapters=DIR", param="models")
    return secrets.SystemRandom().sample(names, 2)


async def _predict(graph: Graph, edits: Sequence[EditRequest], source_HWC: Pixels) -> list[EditResult]:
    try:
        # A group, not gather: where one model fails, the other's work is given up.
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(call(graph.fdm, "predict", edit, source_HWC, model=edit.model)) for edit in edits
            ]
    except BaseExceptionGroup as group_error:
        # The other one was cancelled: one reason is enough.
        raise group_error.exceptions[0] from group_error
    return [task.result() for task in tasks]
