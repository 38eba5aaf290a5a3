"""Answer with bytes that are held in memory, so that a browser keeps them and asks whether they have changed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request, Response

COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True)
class Asset:
    """Bytes as they are sent. ``etag``: of its content, quoted."""

    content: bytes
    media_type: str
    etag: str


def to_asset(content: bytes, media_type: str) -> Asset:
    """Build the asset of some bytes.

    Args:
        content: The bytes.
        media_type: Theirs, with the charset of a text.
    """
    return Asset(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def answer(request: Request, asset: Asset, headers: Mapping[str, str]) -> Response:
    """Return an asset, or 304 to a browser that has it.

    Args:
        request: May name the versions that the browser has.
        asset: What it asks for.
        headers: Beside :data:`COMMON_HEADERS`.
    """
    headers = {**COMMON_HEADERS, **headers, "ETag": asset.etag}
    cached_tags = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    # The browser has this very one.
    if cached_tags & {asset.etag, "*"}:
        return Response(status_code=304, headers=headers)
    # Starlette gives the length; a server leaves the body out of an answer to HEAD.
    return Response(asset.content, media_type=asset.media_type, headers=headers)
