"""``GET /docs``: the reference of all endpoints by Swagger UI, whose files this server has itself: no network is
needed, and no other host's scripts run."""

from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.responses import FileResponse

from serve_apps.openai.errors import ApiError

POLICY = "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"

# Swagger UI's, and their types.
FILES = {"swagger-ui-bundle.js": "text/javascript; charset=utf-8", "swagger-ui.css": "text/css; charset=utf-8"}

router = APIRouter(include_in_schema=False)


@router.api_route("/docs", methods=["GET", "HEAD"])
async def reference(request: Request) -> HTMLResponse:
    """Return the page."""
    # Relative addresses: the page may be behind a proxy with a prefix.
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title=request.app.title,
        swagger_js_url="docs/files/swagger-ui-bundle.js",
        swagger_css_url="docs/files/swagger-ui.css",
        swagger_favicon_url="playground/icon.svg",
    )
    page.headers.update({"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})
    return page


@router.api_route("/docs/files/{name}", methods=["GET", "HEAD"])
async def file(name: str) -> FileResponse:
    """One of :data:`FILES`."""
    if name not in FILES:
        raise ApiError(f"no such file: {name!r:.80}", status=404, code="not_found")
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
    return FileResponse(str(files("fastapi_offline") / "static" / name), media_type=FILES[name], headers=headers)
