"""JSON bodies of requests that hold one image, the source, beside their other fields."""

from typing import TypeVar

from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import image_bytes
from serve_apps.openai.json_bodies import parse_object
from serve_apps.openai.requests import ApiRequest

RequestT = TypeVar("RequestT", bound=ApiRequest)


def from_json_with_image(kind: type[RequestT], body: bytes, limits: Limits) -> tuple[RequestT, bytes]:
    """Check a JSON body.

    Args:
        kind: The request's type.
        body: As received.
        limits: What one request may ask for.

    Returns:
        The request, and the encoded source image.

    Raises:
        ApiError: It names the field that is wrong.
    """
    values = parse_object(body, limits)
    reference = values.pop("image", None)
    request = kind.from_values(values, limits, strict=True)
    if reference is None:
        raise ApiError("image is missing: the source, as a data URL", param="image", code="missing_required_parameter")
    return request, image_bytes(reference, "image")
