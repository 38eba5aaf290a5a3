"""Serve the playground at ``/``: files of ``serve_apps/playground`` as they are, and sample images of the toy world.

The page speaks to this server alone, by the same requests as any client. It needs no key itself; its requests do.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from serve_apps.openai.errors import ApiError
from wm.images import encode_png
from wm.nano.world import State, actions_of, random_state, render
from wm.nano.world.actions import KINDS
from wm.nano.world.scenes import random_camera

TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup or a script, even by mistake
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag: a server started anew shows its own page
}
NUM_SAMPLES = 6
SAMPLES_SEED = 20

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file as it is sent. ``etag``: of its content, quoted."""

    content: bytes
    media_type: str
    etag: str


def _asset(content: bytes, media_type: str) -> Asset:
    return Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


@cache
def assets() -> Mapping[str, Asset]:
    """Return the page's files by name: these and no others can be asked for."""
    files_by_name = {}
    for file in (files("serve_apps") / "playground").iterdir():
        media_type = TYPES.get(file.name.rpartition(".")[2])
        if file.is_file() and media_type:
            files_by_name[file.name] = _asset(file.read_bytes(), media_type)
    return files_by_name


@dataclass(frozen=True)
class Sample:
    """An image of the toy world and, for each kind of action, one that can happen there."""

    image: Asset
    actions: tuple[str, ...]


@cache
def samples() -> tuple[Sample, ...]:
    """Return the same ones every time."""
    rng = np.random.default_rng(SAMPLES_SEED)
    scenes = []
    for _ in range(NUM_SAMPLES):
        state = random_state(rng)
        image = _asset(encode_png(render(state, random_camera(rng), rng)), "image/png")
        scenes.append(Sample(image, _choose_actions(state, rng)))
    return tuple(scenes)


def _choose_actions(state: State, rng: np.random.Generator) -> tuple[str, ...]:
    texts = []
    for kind in KINDS:
        possible = actions_of(state, kind)
        texts += [possible[int(rng.integers(len(possible)))].text()] if possible else []
    return tuple(texts)


@router.api_route("/", methods=["GET", "HEAD"])
async def get_page(request: Request) -> Response:
    """Return the page itself."""
    return _answer(request, assets()["index.html"])


@router.api_route("/playground/samples", methods=["GET", "HEAD"])
async def list_samples() -> dict[str, Any]:
    """List sample images, for models of the toy world, and what can be done in each."""
    return {
        "data": [
            {"url": f"playground/samples/{number}.png", "actions": list(sample.actions)}
            for number, sample in enumerate(samples())
        ]
    }


@router.api_route("/playground/samples/{number}.png", methods=["GET", "HEAD"])
async def get_sample_image(request: Request, number: str) -> Response:
    """Return a sample image: PNG, 48 x 48.

    Args:
        request: May name the version that the browser has.
        number: Part of the path, from 0.
    """
    # At most nine digits are read as a number: the path is anybody's text.
    if not (number.isdecimal() and number.isascii() and int(number[:9]) < NUM_SAMPLES):
        raise ApiError(f"no such sample: {number!r:.80}", status=404, code="not_found")
    return _answer(request, samples()[int(number)].image)


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def get_asset(request: Request, name: str) -> Response:
    """Return a file of the page.

    Args:
        request: May name the version that the browser has.
        name: Part of the path.
    """
    if name not in assets():
        raise ApiError(f"no such file: {name!r:.80}", status=404, code="not_found")
    return _answer(request, assets()[name])


def _answer(request: Request, asset: Asset) -> Response:
    headers = HEADERS | {"ETag": asset.etag}
    cached_tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    # The browser has this very file.
    if cached_tags & {asset.etag, "*"}:
        return Response(status_code=304, headers=headers)
    # Starlette gives the length; a server leaves the body out of an answer to HEAD.
    return Response(asset.content, media_type=asset.media_type, headers=headers)
