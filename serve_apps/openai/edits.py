"""OpenAI's image-edit requests as plain data. The form is that of ``POST /v1/images/edits`` of OpenAI's API
(multipart, or JSON with ``images[].image_url`` as data URLs), with a few fields of our own: ``best_of``,
``seed``, ``temperature``, ``top_k``, ``top_p``, ``guidance``, ``guidance_image``, ``verify``, ``margin``,
``return_candidates``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from serve_apps.openai.checks import (
    MAX_SEED,
    check_action,
    check_length,
    explained,
    image_bytes,
    object_of,
    without_nulls,
)
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.fields import UNSUPPORTED, PictureFields, PicturesAsked, check_supported

IMAGE_FIELDS = ("image", "image[]", "images")


class EditFields(PictureFields):
    """The fields of an edit beside its image."""

    prompt: str
    """The action to take in the image, in words."""
    n: int = Field(1, ge=1, le=10)
    """How many predictions to return, best first."""
    best_of: int | None = Field(None, ge=1, le=MAX_SEED)
    """How many candidates to draw and verify; at least n."""
    verify: bool = True
    """Whether the inverse dynamics model ranks the candidates; false returns n draws as they come."""
    stream: bool = False
    """Whether to answer with server-sent events: previews as the image grows, then the predictions, best first."""
    partial_images: int = Field(0, ge=0, le=3)
    """Previews of a streamed answer: the first candidate so far, the rest of it still the source image."""
    return_candidates: bool = False
    """Whether the reply holds every candidate that differs, best first, beside the n best."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_action(self.prompt, "prompt")
        if self.partial_images and not self.stream:
            raise ApiError(f"partial_images = {self.partial_images} needs stream = true", param="partial_images")
        if self.margin is not None and not self.verify:
            raise ApiError("margin with verify = false: nothing tells when to stop", param="margin")
        if self.verifier is not None and not self.verify:
            raise ApiError("verifier with verify = false: nothing is verified", param="verifier")
        return self


@dataclass(frozen=True, kw_only=True)
class Edit(PicturesAsked):
    """A checked request for one step."""

    prompt: str
    n: int
    best_of: int
    verify: bool
    stream: bool
    partial_images: int
    return_candidates: bool


def edit_from_form(items: Iterable[tuple[str, str | bytes]], limits: Limits) -> Edit:
    """Check the parts of a multipart form (file parts as bytes, fields as text).

    A text field that is empty is the same as left out, as HTML forms send it. ``name[key]`` is a part of ``name``.
    """
    values: dict[str, Any] = {}
    images: list[bytes] = []
    for name, value in items:
        base = name.partition("[")[0]
        if base in IMAGE_FIELDS:
            images += _images_of_part(value, base)
        elif base in UNSUPPORTED:
            if value:
                check_supported([base])
        elif isinstance(value, bytes):
            message = f"field {name!r:.80} is a file; the file goes into the field image"
            raise ApiError(message, param=name, code="unknown_parameter")
        elif base in EditFields.ignored() or (not value and name != "prompt"):
            continue
        elif name in values:
            raise ApiError(f"field {name!r:.80} is given more than once", param=name)
        else:
            values[name] = value.removeprefix("\ufeff")  # of a file that was read as UTF-8 with its byte-order mark
    return _check(values, images, limits, strict=False)


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


def edit_from_json(body: bytes, limits: Limits) -> Edit:
    """Check a JSON body: ``images: [{"image_url": "data:…"}]`` as OpenAI has it, or ``image: "base64"``."""
    values = without_nulls(object_of(body, limits))
    references: list[Any] = []
    for name in ("image", "images"):
        given = values.pop(name, [])
        references += given if isinstance(given, list) else [given]
    check_supported(values)
    images = [image_bytes(reference, "image") for reference in references]
    return _check(values, images, limits, strict=True)


def _check(values: Mapping[str, Any], images: Sequence[bytes], limits: Limits, *, strict: bool) -> Edit:
    try:
        fields = EditFields.model_validate(values, strict=strict)
    except ValidationError as error:
        raise explained(error, EditFields.names()) from error
    check_length(fields.prompt, "prompt", limits)
    if len(images) != 1:
        raise ApiError(
            f"{len(images)} images are given; expected exactly one, the source, in the field image",
            param="image",
            code="missing_required_parameter" if not images else "invalid_value",
        )
    return Edit(
        image=images[0],
        prompt=fields.prompt.strip(),
        n=fields.n,
        best_of=_best_of(fields, limits),
        verify=fields.verify,
        stream=fields.stream,
        partial_images=fields.partial_images,
        return_candidates=fields.return_candidates,
        **fields.asked(),
    )


def _best_of(fields: EditFields, limits: Limits) -> int:
    if fields.best_of is None:
        return max(fields.n, limits.default_best_of) if fields.verify else fields.n
    if fields.best_of < fields.n:
        raise ApiError(f"n = {fields.n} is more than best_of = {fields.best_of}", param="n", code="invalid_value")
    if fields.best_of > limits.max_best_of:
        raise ApiError(
            f"best_of = {fields.best_of}: at most {limits.max_best_of} are accepted",
            param="best_of",
            code="integer_above_max_value",
        )
    if not fields.verify and fields.best_of != fields.n:
        raise ApiError(
            f"best_of = {fields.best_of} with verify = false: it must equal n = {fields.n} then",
            param="best_of",
            code="invalid_value",
        )
    return fields.best_of
