"""Serve the playground at ``/``: files of ``serve_apps/playground`` as they are.

The page speaks to this server alone, by the same requests as any client. It needs no key itself; its requests do, those
for example images among them.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from serve_apps.assets import Asset, answer, to_asset
from serve_apps.openai.errors import ApiError

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
    "Cache-Control": "no-cache",  # kept, and asked about by its ETag: a server started anew shows its own page
}

router = APIRouter(include_in_schema=False)


@cache
def assets() -> Mapping[str, Asset]:
    """Return the page's files by name: these and no others can be asked for."""
    files_by_name = {}
    for file in (files("serve_apps") / "playground").iterdir():
        media_type = TYPES.get(file.name.rpartition(".")[2])
        if file.is_file() and media_type:
            files_by_name[file.name] = to_asset(file.read_bytes(), media_type)
    return files_by_name


@router.api_route("/", methods=["GET", "HEAD"])
async def get_page(request: Request) -> Response:
    """Return the page itself."""
    return answer(request, assets()["index.html"], HEADERS)


@router.api_route("/playground/{name}", methods=["GET", "HEAD"])
async def get_asset(request: Request, name: str) -> Response:
    """Return a file of the page.

    Args:
        request: May name the version that the browser has.
        name: Part of the path.
    """
    if name not in assets():
        raise ApiError(f"no such file: {name!r:.80}", status=404, code="not_found")
    return answer(request, assets()[name], HEADERS)
