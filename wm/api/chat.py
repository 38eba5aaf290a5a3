"""OpenAI's chat completions as questions to the inverse dynamics model: two images in, the action between them out.

``POST /v1/chat/completions``. What a client may send and this model cannot do is refused by name; what changes
nothing is accepted.
"""

import secrets
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wm.api.checks import MAX_SEED, explained, object_of
from wm.api.errors import ApiError, Limits
from wm.api.pictures import DATA_URL_SCHEMA, PIXEL_URL, data_url_bytes

MAX_MESSAGES = 64
ROLES = ("user", "system", "developer")
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "stop": ([],),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""OpenAI's fields for what this model does not do, with the values that ask for nothing; null asks for nothing too."""
NO_EFFECT = "For what this model does not do: only values that ask for nothing are accepted."
_IMAGE = {"type": "image_url", "image_url": {"url": PIXEL_URL}}
EXAMPLE = {
    "model": "idm",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What happened?"}, _IMAGE, _IMAGE]}],
    "logprobs": True,
}


class StreamOptions(BaseModel):
    """What a stream holds beside the answer."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    include_usage: bool = False
    """Whether a last chunk counts the tokens."""
    include_obfuscation: bool = False
    """Must be false: nothing is padded."""

    @model_validator(mode="after")
    def _plain(self) -> Self:
        if self.include_obfuscation:
            raise ApiError("stream_options.include_obfuscation = true is not supported", param="stream_options")
        return self


class ChatFields(BaseModel):
    """The fields of a question beside its messages and those of :data:`NEUTRAL`."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """An inverse dynamics model of GET /v1/models; the served one if left out."""
    n: int | None = Field(None, ge=1, le=10)
    """How many actions to propose, each a draw of its own; 1 if left out."""
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    """0, also if left out: the likeliest token every time, all proposals are equal. 1: drawn as the model believes."""
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Draw among the likeliest tokens that hold this share of the probability; no effect at temperature 0."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Same seed, same answer. A random one is drawn, and reported, if left out."""
    logprobs: bool | None = None
    """Whether each token comes with its log-probability. The last one is the end of the action."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """How many of the likeliest tokens are told in each place; needs logprobs."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Tokens of an action before its end; 32 if left out."""
    max_tokens: int | None = Field(None, ge=1)
    """As max_completion_tokens, its older name."""
    stream: bool | None = None
    """Whether the action comes token by token."""
    stream_options: StreamOptions | None = None
    """Only with stream."""
    user: str | None = Field(None, max_length=256)
    """Your name for the end user; nothing depends on it."""
    safety_identifier: str | None = Field(None, max_length=256)
    """As user."""
    prompt_cache_key: str | None = Field(None, max_length=256)
    """Nothing depends on it."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs = true", param="top_logprobs", code="invalid_value")
        if self.stream_options is not None and not self.stream:
            raise ApiError("stream_options needs stream = true", param="stream_options", code="invalid_value")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                f"max_tokens = {self.max_tokens} and max_completion_tokens = {self.max_completion_tokens} are two "
                "names of one thing; give one of them",
                param="max_tokens",
                code="invalid_value",
            )
        return self


@dataclass(frozen=True)
class ChatAsked:
    """A checked request. ``images``: source and target, the encoded bytes as sent, with the names of their fields."""

    images: tuple[tuple[str, bytes], tuple[str, bytes]]
    model: str | None
    n: int
    temperature: float
    top_p: float
    seed: int
    logprobs: bool
    top_logprobs: int
    max_new_tokens: int
    stream: bool
    include_usage: bool


def chat_from_json(body: bytes, limits: Limits) -> ChatAsked:
    """Check a JSON body; :class:`ApiError` names what is wrong."""
    values = object_of(body, limits)
    _need_neutral(values)
    if "messages" not in values:
        raise ApiError("messages is missing", param="messages", code="missing_required_parameter")
    messages = values.pop("messages")
    try:
        fields = ChatFields.model_validate(values, strict=True)
    except ValidationError as error:
        raise explained(error, ["messages", *ChatFields.model_fields, *NEUTRAL]) from error
    asked = fields.max_completion_tokens or fields.max_tokens
    if asked is not None and asked > limits.max_new_tokens:
        name = "max_completion_tokens" if fields.max_completion_tokens else "max_tokens"
        raise ApiError(
            f"{name} = {asked:,}: at most {limits.max_new_tokens:,} are accepted",
            param=name,
            code="integer_above_max_value",
        )
    options = fields.stream_options or StreamOptions()
    return ChatAsked(
        images=_images_of(messages, limits),
        model=fields.model,
        n=fields.n or 1,
        temperature=fields.temperature or 0.0,
        top_p=fields.top_p or 1.0,
        seed=secrets.randbelow(MAX_SEED + 1) if fields.seed is None else fields.seed,
        logprobs=bool(fields.logprobs),
        top_logprobs=fields.top_logprobs or 0,
        max_new_tokens=asked or limits.default_new_tokens,
        stream=bool(fields.stream),
        include_usage=options.include_usage,
    )


def _need_neutral(values: dict[str, Any]) -> None:
    """Take the fields that ask for nothing out of ``values``."""
    for name, allowed in NEUTRAL.items():
        value = values.pop(name, None)
        # In Python false equals 0.
        if value is None or any(value == one and (type(value) is bool) == (type(one) is bool) for one in allowed):
            continue
        raise ApiError(
            f"{name} = {value!r:.80} is not supported: this model names the action between two images and does nothing "
            "else; leave it out",
            param=name,
            code="unsupported_value",
        )


def _images_of(messages: Any, limits: Limits) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(f"messages: expected a list of 1 to {MAX_MESSAGES} messages", param="messages")
    found: list[tuple[str, bytes]] = []
    num_chars = 0
    for index, message in enumerate(messages):
        images, texts = _parts_of(message, f"messages[{index}]")
        found += images
        num_chars += sum(map(len, texts))
    if num_chars > limits.max_prompt_chars:
        raise ApiError(
            f"the texts of messages have {num_chars:,} characters; at most {limits.max_prompt_chars:,} are accepted",
            param="messages",
            code="string_above_max_length",
        )
    if len(found) != 2:
        raise ApiError(
            f"messages hold {len(found)} images; expected two image_url parts, the source first, then the target",
            param="messages",
            code="missing_required_parameter" if len(found) < 2 else "invalid_value",
        )
    return found[0], found[1]


def _parts_of(message: Any, name: str) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Images and texts of a message."""
    _need_object(message, name, required=("role", "content"), optional=("name",))
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise ApiError(f"{name}.role = {role!r:.80}: expected {', '.join(ROLES)}", param=f"{name}.role")
    if not isinstance(message.get("name", ""), str):
        raise ApiError(f"{name}.name: expected text", param=f"{name}.name")
    if isinstance(content, str):
        return [], [content]
    if not isinstance(content, list):
        raise ApiError(f"{name}.content: expected text or a list of parts", param=f"{name}.content")
    images: list[tuple[str, bytes]] = []
    texts: list[str] = []
    for index, part in enumerate(content):
        place = f"{name}.content[{index}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            _need_object(part, place, required=("type", "text"))
            texts.append(_text(part["text"], f"{place}.text"))
        elif kind == "image_url" and role == "user":
            images.append(_image(part, place))
        else:
            expected = "text or image_url" if role == "user" else "text, for images stand in messages of the user"
            raise ApiError(f"{place}.type = {kind!r:.80}: expected {expected}", param=f"{place}.type")
    return images, texts


def _image(part: dict[str, Any], place: str) -> tuple[str, bytes]:
    _need_object(part, place, required=("type", "image_url"))
    _need_object(part["image_url"], f"{place}.image_url", required=("url",), optional=("detail",))
    detail = part["image_url"].get("detail", "auto")
    if detail not in ("auto", None):
        raise ApiError(
            f"{place}.image_url.detail = {detail!r:.80}: images are read in one size; leave it out",
            param=f"{place}.image_url.detail",
            code="unsupported_value",
        )
    name = f"{place}.image_url.url"
    return name, data_url_bytes(part["image_url"]["url"], name)


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ApiError(f"{name}: expected text, got {type(value).__name__}", param=name)
    return value


def _need_object(value: Any, name: str, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise ApiError(f"{name}: expected an object with {', '.join(required)}", param=name)
    for key in required:
        if key not in value:
            raise ApiError(f"{name}.{key} is missing", param=f"{name}.{key}", code="missing_required_parameter")
    known = (*required, *optional)
    for key in value:
        if key not in known:
            says = f"unknown field {key!r:.80} in {name}; the fields are {', '.join(known)}"
            raise ApiError(says, param=f"{name}.{key:.80}", code="unknown_parameter")


def chat_schema() -> dict[str, Any]:
    """The JSON schema of a body, for the page that describes the server."""
    schema = ChatFields.model_json_schema()
    options = schema.pop("$defs")["StreamOptions"]
    options["properties"]["include_obfuscation"] |= {"const": False}
    text = _object({"type": {"const": "text"}, "text": {"type": "string"}})
    reference = _object({"url": DATA_URL_SCHEMA, "detail": {"const": "auto"}}, optional={"detail"})
    image = _object({"type": {"const": "image_url"}, "image_url": reference})
    said = [
        {
            "role": {"enum": roles},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": parts}}]},
            "name": {"type": "string"},
        }
        for roles, parts in ((["user"], [text, image]), (["system", "developer"], [text]))
    ]
    messages = {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {"anyOf": [_object(message, optional={"name"}) for message in said]},
        "description": "Two image_url parts in all, the source first, then the target. Texts change nothing.",
    }
    neutral = {name: {"enum": [*values, None], "description": NO_EFFECT} for name, values in NEUTRAL.items()}
    properties = {"messages": messages} | schema["properties"] | neutral
    properties["stream_options"] = {"anyOf": [options, {"type": "null"}], "description": "Only with stream."}
    return schema | {"properties": properties, "required": ["messages"]}


def _object(properties: dict[str, Any], optional: Set[str] = frozenset()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
