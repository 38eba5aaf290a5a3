"""``GET /v1/examples``: images that the playground offers to click, with what can be done in each.

They need a key where the rest of the API does: they may be of anybody's data. Without any the list is empty.
"""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fastapi import APIRouter, Depends, Request, Response

from serve_apps.assets import Asset, answer, to_asset
from serve_apps.examples import Example
from serve_apps.openai.errors import ApiError
from serve_apps.routes.methods import get_or_head

HEADERS = {
    "Cache-Control": "private, no-cache",  # kept by the browser alone, and asked about by its ETag
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",  # an image opened by its address
}

router = APIRouter()


@dataclass(frozen=True)
class Gallery:
    """The examples of a server as they are sent."""

    listing: Asset
    images: dict[str, Asset]
    """By their names."""


def build_gallery(examples: Sequence[Example]) -> Gallery:
    """Build the answers once: they never change while a server runs.

    Args:
        examples: Of the recipe's folder; there may be none.
    """
    # Thumbnails are in the list itself: a page of 24 images costs one request of a key's allowance.
    entries = [
        {
            "id": example.name,
            "object": "example",
            "actions": example.actions,
            "thumbnail": f"data:{example.thumbnail_type};base64,{base64.b64encode(example.thumbnail).decode()}",
        }
        for example in examples
    ]
    listing = json.dumps({"object": "list", "data": entries}).encode()
    images = {example.name: to_asset(example.png, "image/png") for example in examples}
    return Gallery(to_asset(listing, "application/json"), images)


async def _gallery(request: Request) -> Gallery:
    gallery: Gallery = request.app.state.gallery
    return gallery


GalleryOf: TypeAlias = Annotated[Gallery, Depends(_gallery)]


@get_or_head(router, "/v1/examples")
async def list_examples(request: Request, gallery: GalleryOf) -> Response:
    """Return the example images: the id, actions that can happen there, and a thumbnail of each as a data URL."""
    return answer(request, gallery.listing, HEADERS)


@get_or_head(router, "/v1/examples/{example_id}", media_type="image/png")
async def get_example(example_id: str, request: Request, gallery: GalleryOf) -> Response:
    """Return one of them as PNG: its middle square, at most 1024 pixels a side."""
    image = gallery.images.get(example_id)
    if image is None:
        raise ApiError(f"no such example: {example_id!r:.80}", status=404, code="not_found")
    return answer(request, image, HEADERS)
