"""``POST /v1/images/edits``: the source after an action, as OpenAI's clients ask for it."""

import time
from collections.abc import AsyncGenerator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from serve_apps import metrics
from serve_apps.calls import call, stream
from serve_apps.catalog import CatalogEntry
from serve_apps.graph import Graph, GraphOf
from serve_apps.http import read_edit
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import JsonObject
from serve_apps.openai.requests import PredictionRequest
from serve_apps.openapi import edit_openapi
from serve_apps.results import EditResult, Preview
from serve_apps.sse import event_stream

router = APIRouter()


@router.post("/v1/images/edits", openapi_extra=edit_openapi())
async def edit_image(request: Request, graph: GraphOf) -> Response:
    """Predict what the source looks like after the action in ``prompt``; best candidates first.

    An image editor (``kind`` in /v1/models) samples no codes: settings of sampling and previews are refused by name,
    there is no ``usage``, and candidates without an image are counted in ``failed`` and named in ``failures``.
    """
    edit, image = await read_edit(request, graph.limits, graph.work)
    model = await graph.predicting_model(edit)
    with metrics.stages_s() as stages_s:
        # 1. The image is decoded here, in fair shares: a replica gets pixels.
        (source_HWC,) = await graph.prepare([("image", image)], model["side_px"])
        if edit.stream:
            items = stream(graph.fdm, "predict_with_previews", edit, source_HWC, model=edit.model)
            return await event_stream(_events(graph, edit, model, items))
        # 2. The FDM server samples, and has its candidates scored by the IDM server.
        result: EditResult = await call(graph.fdm, "predict", edit, source_HWC, model=edit.model)
        # 3. Files of the images, again in fair shares.
        reply = await build_reply(graph, edit, model, result)
    return JSONResponse(reply, headers={"Server-Timing": metrics.server_timing({**result.stages_s, **stages_s})})


async def _events(
    graph: Graph, edit: EditRequest, model: CatalogEntry, items: AsyncGenerator[Preview | EditResult, None]
) -> AsyncGenerator[JsonObject, None]:
    """Yield OpenAI's events: ``image_edit.partial_image``, then ``image_edit.completed`` for each of the ``n`` best."""
    common = {"background": "opaque", "output_format": edit.output_format, "quality": "auto"}
    index = 0
    async for item in items:
        if isinstance(item, Preview):
            yield common | {
                "type": "image_edit.partial_image",
                "b64_json": await graph.encode(edit, item.pixels),
                "partial_image_index": index,
                "progress": item.progress,
                "created_at": int(time.time()),
                "size": size_of(edit, model),
            }
            index += 1
            continue
        reply = await build_reply(graph, edit, model, item)
        images, created_s, candidates = reply.pop("data"), reply.pop("created"), reply.pop("candidates", None)
        for row, image_entry in enumerate(images):
            event = {"type": "image_edit.completed", "created_at": created_s, **common, **reply, **image_entry}
            # They are many: only the first event has them.
            yield event | ({"candidates": candidates} if candidates is not None and row == 0 else {})


async def build_reply(graph: Graph, edit: EditRequest, model: CatalogEntry, result: EditResult) -> JsonObject:
    """Build OpenAI's ``ImagesResponse``, with each image's ``verification``, the seed and the counts beside it.

    Args:
        graph: Encodes the images.
        edit: The request.
        model: Of the FDM that sampled.
        result: What its server returned.
    """
    with metrics.stage("encode_image"):
        images = [await graph.encode(edit, pixels_HWC) for pixels_HWC in result.pixels]
    # Duplicates come last, so that the first are the best that differ.
    entries = [
        {"b64_json": image, "verification": verification}
        for image, verification in zip(images, result.verifications, strict=False)
    ]
    num_sampled = len(result.verifications) + len(result.failures)
    reply: JsonObject = {
        "created": int(time.time()),
        "data": entries[: edit.n],
        "background": "opaque",
        "output_format": edit.output_format,
        "size": size_of(edit, model),
        **usage_of(model, result.action_tokens, num_sampled),
        "model": model["id"],
        "seed": edit.seed,
        "best_of": edit.best_of,
        "drawn": num_sampled,
        "distinct": result.num_distinct,
    }
    # Never silently fewer: candidates without an image are named.
    if result.failures:
        reply |= {"failed": len(result.failures), "failures": list(result.failures)}
    if edit.return_candidates:
        reply["candidates"] = [
            entry
            for entry, verification in zip(entries, result.verifications, strict=False)
            if verification["duplicate_of"] is None
        ]
    return reply | ({"safety_identifier": edit.end_user} if edit.end_user else {})


def usage_of(model: CatalogEntry, action_tokens: int | None, num_images: int) -> dict[str, JsonObject]:
    """Count OpenAI's ``usage`` of images that were sampled after one image and the words of actions.

    Args:
        model: That sampled.
        action_tokens: Of all actions.
        num_images: Images sampled.

    Returns:
        ``{"usage": …}``; nothing for a model that has no tokens, such as an image editor.
    """
    tokens_per_image = model.get("tokens_per_image")
    if tokens_per_image is None or action_tokens is None:
        return {}
    sampled = tokens_per_image * num_images
    return {
        "usage": {
            "input_tokens": tokens_per_image + action_tokens,
            "input_tokens_details": {"image_tokens": tokens_per_image, "text_tokens": action_tokens},
            "output_tokens": sampled,
            "output_tokens_details": {"image_tokens": sampled, "text_tokens": 0},
            "total_tokens": tokens_per_image + action_tokens + sampled,
        }
    }


def size_of(request: PredictionRequest, model: CatalogEntry) -> str:
    """Return OpenAI's ``size`` of the images of a reply.

    Args:
        request: May ask for one.
        model: Has one of its own.
    """
    side_px = request.side_px or model["side_px"]
    return f"{side_px}x{side_px}"
