"""Requests to an image editor: what it has no way to do is refused by name, as it would otherwise change nothing."""

from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError
from serve_apps.openai.requests import PredictionRequest

# How codes are sampled, with the values that ask for nothing; null asks for nothing too.
NEUTRAL: dict[str, tuple[float, ...]] = {
    "temperature": (1.0,),
    "top_k": (0,),
    "top_p": (1.0,),
    "guidance_scale": (),
    "image_guidance_scale": (),
}


def check_no_codes(request: PredictionRequest) -> None:
    """Check that a request to an image editor asks for nothing that only models with image codes can do.

    Args:
        request: An edit or a rollout.

    Raises:
        ApiError: It names the field.
    """
    for name, allowed in NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in allowed:
            raise ApiError(
                f"{name} = {value:g}: model {request.model!r:.80} is an image editor and samples no codes; its server "
                "has its settings; leave it out",
                param=name,
                code="unsupported_value",
            )
    # What a pipeline has in between is noise, and decoding it takes as long as several steps.
    if isinstance(request, EditRequest) and request.partial_images:
        raise ApiError(
            f"partial_images = {request.partial_images}: model {request.model!r:.80} is an image editor, which has no "
            "previews; leave it out",
            param="partial_images",
            code="unsupported_value",
        )
