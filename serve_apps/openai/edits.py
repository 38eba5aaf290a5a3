"""OpenAI's image-edit requests, ``POST /v1/images/edits``: multipart, or JSON with ``images[].image_url`` as data URLs,
with a few fields of our own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from pydantic import Field, ValidationInfo, model_validator

from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import image_bytes
from serve_apps.openai.json_bodies import parse_object
from serve_apps.openai.requests import (
    UNSUPPORTED,
    PredictionRequest,
    check_action,
    check_maximum,
    check_supported,
    limits_of,
)

if TYPE_CHECKING:
    from serve_apps.recipe import ServeRecipe
    from wm.dynamics import Search

IMAGE_FIELDS = ("image", "image[]", "images")


class EditRequest(PredictionRequest):
    """A request for the source image after an action."""

    prompt: str
    """The action to take in the image, in words."""
    n: int = Field(1, ge=1, le=10)
    """How many predictions to return, best first; best_of is at least as many."""
    verify: bool = True
    """Whether the inverse dynamics model ranks the candidates; false returns n of them as they come."""
    stream: bool = False
    """Whether to answer with server-sent events: previews as the image grows, then the predictions, best first."""
    partial_images: int = Field(0, ge=0, le=3)
    """Previews of a streamed answer: the first candidate so far, the rest of it still the source image."""
    return_candidates: bool = False
    """Whether the reply holds every candidate that differs, best first, beside the n best."""

    @model_validator(mode="after")
    def _check_fields(self, info: ValidationInfo) -> Self:
        limits = limits_of(info)
        fields_set = self.model_fields_set
        self.prompt = check_action(self.prompt, "prompt", limits)
        # Fields that would have no effect are refused: whoever sends them expects one.
        if self.partial_images and not self.stream:
            raise ApiError(f"partial_images = {self.partial_images} needs stream = true", param="partial_images")
        if "min_gain_nats" in fields_set and not self.verify:
            raise ApiError("min_gain_nats with verify = false: nothing says when to stop", param="min_gain_nats")
        if "verifier" in fields_set and not self.verify:
            raise ApiError("verifier with verify = false: nothing is verified", param="verifier")
        # The server's number, where the request leaves it open.
        if "best_of" not in fields_set:
            self.best_of = max(self.n, limits.default_best_of) if self.verify else self.n
            return self
        if self.best_of < self.n:
            raise ApiError(f"n = {self.n} is more than best_of = {self.best_of}", param="n", code="invalid_value")
        check_maximum(self.best_of, limits.max_best_of, "best_of")
        if not self.verify and self.best_of != self.n:
            raise ApiError(
                f"best_of = {self.best_of} with verify = false: it must equal n = {self.n} then",
                param="best_of",
                code="invalid_value",
            )
        return self

    def to_search(self, recipe: "ServeRecipe") -> "Search":
        """Build the settings of the search: the request's, the recipe's where it gives none."""
        from wm.dynamics import Search

        # With adaptive N no fewer are sampled than are returned.
        gain = self.gain_or(recipe) if self.verify else None
        return Search(num_candidates=self.best_of, min_gain_nats=gain, min_candidates=1 if gain is None else self.n)


def edit_from_form(items: Iterable[tuple[str, str | bytes]], limits: Limits) -> tuple[EditRequest, bytes]:
    """Check the parts of a multipart form.

    A text field that is empty is the same as left out, as HTML forms send it. ``name[key]`` is a part of ``name``.

    Args:
        items: Name and value of each part: bytes of a file, text of a field.
        limits: What one request may ask for.

    Returns:
        The request, and the encoded source image.

    Raises:
        ApiError: It names the part that is wrong.
    """
    values: dict[str, object] = {}
    images: list[bytes] = []
    for name, value in items:
        base = name.partition("[")[0]
        if base in IMAGE_FIELDS:
            images += _images_of_part(value, base)
        # An empty file input is what a browser sends where none was chosen.
        elif base in UNSUPPORTED:
            if value:
                check_supported([base])
        elif isinstance(value, bytes):
            message = f"field {name!r:.80} is a file; the file goes into the field image"
            raise ApiError(message, param=name, code="unknown_parameter")
        elif base in EditRequest.ignored() or (not value and name != "prompt"):
            continue
        elif name in values:
            raise ApiError(f"field {name!r:.80} is given more than once", param=name)
        else:
            values[name] = value.removeprefix("\ufeff")  # of a file that was read as UTF-8 with its byte-order mark
    return _check(values, images, limits, strict=False)


def edit_from_json(body: bytes, limits: Limits) -> tuple[EditRequest, bytes]:
    """Check a JSON body: ``images: [{"image_url": "data:…"}]`` as OpenAI has it, or ``image: "base64"``.

    Args:
        body: As received.
        limits: What one request may ask for.

    Returns:
        The request, and the encoded source image.

    Raises:
        ApiError: It names the field that is wrong.
    """
    values = parse_object(body, limits)
    # OpenAI's clients send a list, others one image.
    references: list[object] = []
    for name in ("image", "images"):
        reference = values.pop(name, [])
        references += reference if isinstance(reference, list) else [reference]
    check_supported(values)
    images = [image_bytes(reference, "image") for reference in references]
    return _check(values, images, limits, strict=True)


def _images_of_part(value: str | bytes, name: str) -> list[bytes]:
    """Return the image of a part of a form: a file, a text, or a file without a name, which forms have as text."""
    if isinstance(value, bytes):
        return [value]
    if not value or value.isascii() or value.lstrip()[:5].lower() == "data:":
        return [image_bytes(value, name)] if value else []
    try:
        return [value.encode("latin-1")]  # as such text is read where it is no UTF-8
    except UnicodeEncodeError:
        return [image_bytes(value, name)]


def _check(
    values: Mapping[str, object], images: Sequence[bytes], limits: Limits, *, strict: bool
) -> tuple[EditRequest, bytes]:
    request = EditRequest.from_values(values, limits, strict=strict)
    if len(images) != 1:
        raise ApiError(
            f"{len(images)} images are given; expected exactly one, the source, in the field image",
            param="image",
            code="missing_required_parameter" if not images else "invalid_value",
        )
    return request, images[0]
