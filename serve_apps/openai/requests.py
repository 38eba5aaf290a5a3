"""Define what all requests share: one type an endpoint, from the wire to the settings of ``wm``.

A request type validates the form that clients send, is what travels to the replicas, and builds the settings of
``wm.dynamics`` and ``wm.sampling`` there (``to_search``, ``to_sampling``). Encoded images are parsed beside it: they
are decoded before a replica is asked. What is wrong is an :class:`ApiError` that names the field.
"""

import inspect
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from serve_apps.names import FDM, IDM, MAX_GUIDANCE_SCALE
from serve_apps.openai.errors import ApiError, JsonObject, Limits
from serve_apps.openai.json_bodies import check_names

if TYPE_CHECKING:  # torch is for the replicas alone: what builds settings imports them there
    from serve_apps.recipe import ServeRecipe
    from wm.dynamics import Sampling

# Seeds are 31-bit: every JSON reader and every generator takes them as they are.
MAX_SEED = 2**31 - 1
MAX_SIDE_PX = 2048
OutputFormat = Literal["png", "jpeg", "webp"]
# Fields of OpenAI's clients that would change the answer, and why this server has none.
UNSUPPORTED = {
    "mask": "this server takes no mask",
    "markup": "this server takes no markup",
    "frame_count": "a prediction is one frame",
    "frame_duration_ms": "a prediction is one frame",
    "svg": "predictions are png, jpeg or webp",
}
_HALF_PAIR = re.compile("[\ud800-\udfff]")


class ApiRequest(BaseModel):
    """The base of all requests: fields that clients send and that change no answer, typed ``object``, here and in what
    is derived. They are accepted whatever they hold, so that no client fails, and are not kept."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    IMAGES: ClassVar[tuple[str, ...]] = ()
    """Fields that hold images and are parsed beside the others."""
    UNSUPPORTED: ClassVar[Mapping[str, str]] = {}
    """Fields of other clients that would change the answer, and why this server has none."""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Names of fields in earlier versions, and today's."""

    user: object = None
    """Your name for the end user. No effect."""
    safety_identifier: object = None
    """As user. No effect."""
    metadata: object = None
    """Your own notes. No effect: nothing is stored."""
    store: object = None
    """No effect: nothing is stored."""
    service_tier: object = None
    """No effect: all requests are served alike."""
    prompt_cache_key: object = None
    """No effect."""
    prompt_cache_options: object = None
    """No effect."""
    prompt_cache_retention: object = None
    """No effect."""

    @classmethod
    def ignored(cls) -> list[str]:
        """List the fields that nothing depends on."""
        return [name for name, field in cls.model_fields.items() if field.annotation is object]

    @classmethod
    def effective(cls) -> list[str]:
        """List all other fields, those of the derived class first."""
        declared = [name for base in cls.__mro__ for name in inspect.get_annotations(base)]
        ignored = {*cls.ignored()}
        return [name for name in dict.fromkeys(declared) if name in cls.model_fields and name not in ignored]

    @classmethod
    def from_values(cls, values: Mapping[str, object], limits: Limits, *, strict: bool) -> Self:
        """Validate the fields of a request.

        Args:
            values: By name, without images.
            limits: What the request may ask for, and what it gets where it does not say.
            strict: False: numbers may be texts, as in a form.

        Raises:
            ApiError: It names the field that is wrong.
        """
        check_supported([name for name in values if name in cls.UNSUPPORTED])
        # Unknown names first, one by one, for the reason that check_names gives.
        names = [*cls.IMAGES, *cls.effective()]
        check_names(values, cls.model_fields, listed_names=names, renamed=cls.RENAMED)
        # Not kept: a client's metadata would travel to every replica.
        ignored = {*cls.ignored()}
        own_values = {name: value for name, value in values.items() if name not in ignored}
        try:
            return cls.model_validate(own_values, strict=strict, context=limits)
        except ValidationError as error:
            raise explain_error(error, names) from error


class PredictionRequest(ApiRequest):
    """How images are sampled, and how they are returned."""

    IMAGES = ("image",)
    UNSUPPORTED = UNSUPPORTED
    RENAMED = {
        "margin": "min_gain_nats",
        "guidance": "guidance_scale",
        "guidance_image": "image_guidance_scale",
        "beam": "num_beams",
    }

    model: str = FDM
    """A forward dynamics model of GET /v1/models."""
    verifier: str = IDM
    """The inverse dynamics model of GET /v1/models that ranks."""
    # A factory is not part of the schema, unlike a default. 0 until the server's limits are known.
    best_of: int = Field(default_factory=int, ge=1, le=MAX_SEED)
    """How many candidates to sample and verify; the server's num_candidates if left out."""
    min_gain_nats: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Adaptive N: fewer than best_of are sampled where one more is expected to gain no more than so many nats an action
    token; 0 never stops early."""
    seed: int = Field(default_factory=lambda: secrets.randbelow(MAX_SEED + 1), ge=0, le=MAX_SEED)
    """Same seed, same answer. A random one is chosen, and reported, if left out."""
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    """Of the image tokens; 0 decodes greedily, so that all candidates are equal."""
    top_k: int | None = Field(None, ge=0, le=MAX_SEED)
    """Sample among the k most likely codes only; 0 for all."""
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Sample among the most likely codes that hold this share of the probability."""
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    """Classifier-free guidance: scale of what the action adds to the source image; 1 for none."""
    image_guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    """Scale of what the source image adds to nothing at all; 1 for none. With either, three times the work."""
    size: str = Field("auto", pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    """auto (the model's own size) or WIDTHxHEIGHT, square: the prediction is scaled to it."""
    output_format: OutputFormat = "png"
    """png is lossless."""
    output_compression: int = Field(100, ge=0, le=100)
    """Quality of jpeg and webp; no effect on png, which is lossless."""
    background: Literal["auto", "opaque"] = "auto"
    """Predictions are always opaque."""
    response_format: Literal["b64_json"] = "b64_json"
    """Images come inside the reply; this server keeps no files to link to."""
    user: str | None = Field(None, max_length=256)
    """Your name for the end user; returned as safety_identifier."""
    safety_identifier: str | None = Field(None, max_length=256)
    """As user, and preferred over it."""
    quality: object = None
    """No effect: there is one quality."""
    input_fidelity: object = None
    """No effect: the source image is always read in full."""
    moderation: object = None
    """No effect: nothing is moderated."""
    style: object = None
    """No effect."""
    complexity: object = None
    """No effect."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        side_px = self.side_px
        # The model's images are square.
        if side_px is not None and (self.size != f"{side_px}x{side_px}" or side_px > MAX_SIDE_PX):
            raise ApiError(
                f"size = {self.size!r}: expected auto or a square of at most {MAX_SIDE_PX}x{MAX_SIDE_PX}",
                param="size",
                code="invalid_value",
            )
        return self

    @property
    def side_px(self) -> int | None:
        """Pixels a side of the images returned; None: the model's own size."""
        return None if self.size == "auto" else int(self.size.partition("x")[0])

    @property
    def end_user(self) -> str | None:
        """Whom the request is for, if it says."""
        return self.safety_identifier or self.user or None

    def to_sampling(self, recipe: "ServeRecipe") -> "Sampling":
        """Build the settings of sampling: the request's, the recipe's where it gives none."""
        from wm.dynamics import Sampling

        names = ("temperature", "top_k", "top_p", "guidance_scale", "image_guidance_scale")
        settings = {name: getattr(recipe if getattr(self, name) is None else self, name) for name in names}
        # OpenAI's clients ask for greedy decoding by temperature 0.
        temperature = settings.pop("temperature")
        return Sampling(temperature=temperature or 1.0, greedy=temperature == 0, **settings)

    def gain_or(self, recipe: "ServeRecipe") -> float | None:
        """Return ``min_gain_nats``, the recipe's if the request gives none."""
        return recipe.min_gain_nats if self.min_gain_nats is None else self.min_gain_nats


def limits_of(info: ValidationInfo) -> Limits:
    """Return the limits that a request is validated under."""
    return info.context if isinstance(info.context, Limits) else Limits()


def check_supported(names: Mapping[str, object] | Sequence[str]) -> None:
    """Raise :class:`ApiError` for the first of :data:`UNSUPPORTED` among the names of a request's fields."""
    for name in names:
        if name in UNSUPPORTED:
            raise ApiError(f"{name} is not supported: {UNSUPPORTED[name]}", param=name, code="unsupported_value")


def check_maximum(value: int, maximum: int, name: str) -> None:
    """Raise :class:`ApiError` for more than the server accepts.

    Args:
        value: As sent.
        maximum: The server's.
        name: The field, for the message.
    """
    if value > maximum:
        message = f"{name} = {value}: at most {maximum} are accepted"
        raise ApiError(message, param=name, code="integer_above_max_value")


def check_action(text: str, name: str, limits: Limits) -> str:
    """Return an action without white space around it; raise :class:`ApiError` unless it is words, and not too many.

    Args:
        text: As sent.
        name: The field, for the message.
        limits: The length of an action.
    """
    if not text.strip():
        raise ApiError(f"{name} is empty; expected the action to take in the image, in words", param=name)
    if "\0" in text:
        raise ApiError(f"{name} contains a NUL character", param=name, code="invalid_value")
    # UTF-8 has no such character: it could be sent back in no reply.
    if _HALF_PAIR.search(text):
        raise ApiError(f"{name} is not valid Unicode: it holds half a surrogate pair", param=name)
    if len(text) > limits.max_prompt_chars:
        raise ApiError(
            f"{name} has {len(text):,} characters; at most {limits.max_prompt_chars:,} are accepted",
            param=name,
            code="string_above_max_length",
        )
    return text.strip()


def check_actions(actions: Sequence[str], limits: Limits) -> list[str]:
    """Check each of a list, as :func:`check_action` does.

    Args:
        actions: As sent.
        limits: The length of an action.
    """
    return [check_action(action, f"actions[{index}]", limits) for index, action in enumerate(actions)]


def explain_error(error: ValidationError, names: Sequence[str]) -> ApiError:
    """Describe the first mistake that pydantic found in OpenAI's words.

    Args:
        error: Of the validation.
        names: The fields that are known.
    """
    item = error.errors()[0]
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in item["loc"])
    name = "".join(parts).removeprefix(".")[:80] or None
    if item["type"] == "extra_forbidden":
        hint = "; the fields are " + ", ".join(names) if len(item["loc"]) == 1 else ""
        return ApiError(f"unknown field {name!r:.80}{hint}", param=name, code="unknown_parameter")
    if item["type"] == "missing":
        return ApiError(f"{name} is missing", param=name, code="missing_required_parameter")
    return ApiError(f"{name} = {item['input']!r:.80}: {item['msg'].lower()}", param=name, code="invalid_value")


def json_schema(request: type[ApiRequest], **options: Any) -> JsonObject:
    """Build the schema of a JSON body: a field that may be left out may be null, and what has no effect comes last.

    Args:
        request: Its type.
        options: Those of ``model_json_schema``.
    """
    schema = request.model_json_schema(**options)
    required = {*schema.get("required", ())}
    properties = {name: schema["properties"][name] for name in (*request.effective(), *request.ignored())}
    schema["properties"] = {name: entry if name in required else _nullable(entry) for name, entry in properties.items()}
    return schema


def _nullable(entry: JsonObject) -> JsonObject:
    """Return the schema of a value, or null. One without a type allows null already."""
    notes = {key: entry[key] for key in ("title", "description", "default", "examples") if key in entry}
    kind = {key: value for key, value in entry.items() if key not in notes}
    choices = kind.get("anyOf", [kind])
    if not kind or {"type": "null"} in choices:
        return entry
    return {"anyOf": [*choices, {"type": "null"}]} | notes
