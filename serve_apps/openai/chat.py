"""OpenAI's chat completions as questions to the inverse dynamics model: two images in, the action between them out.

``POST /v1/chat/completions``. The question is the last turn of the user; what was said before it, by whomever, changes
nothing. What a client may send and this model cannot do is refused by name; what changes nothing is accepted.
"""

import secrets
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from serve_apps.openai.checks import IGNORED_OF_IMAGES, MAX_SEED, check_names, explained, object_of, without_nulls
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.ignored_fields import IgnoredFields, json_schema
from serve_apps.openai.pictures import DATA_URL_SCHEMA, PIXEL_URL, data_url_bytes

MAX_MESSAGES = 10_000
"""Of a history; with two a question, more than anybody asks. The size of a body bounds what they hold."""
MAX_PARTS = 1_000
"""Of the last turn."""
MAX_CHAT_VALUES = 16 * MAX_MESSAGES
"""JSON values of a body: as many as a history of answers has that a client kept with all their fields."""
INSTRUCTIONS = ("system", "developer")
ANSWERS = ("assistant", "tool", "function")
ROLES = ("user", *INSTRUCTIONS, *ANSWERS)
IGNORED_OF_PARTS = ("cache_control", "prompt_cache_breakpoint")
"""What clients say of a part for the sake of a cache."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "audio": (),
    "continue_final_message": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "ignore_eos": (False,),
    "logit_bias": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "moderation": (),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "stop": ([], ""),
    "stop_token_ids": ([],),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "web_search_options": (),
}
"""Fields of OpenAI's and vLLM's clients for what this model does not do, with the values that ask for nothing; null
asks for nothing too."""
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

    include_usage: bool | None = None
    """Whether a last chunk counts the tokens. An answer that is not streamed always does."""
    include_obfuscation: bool | None = None
    """Must be false: nothing is padded."""
    continuous_usage_stats: bool | None = None
    """Must be false: only the last chunk counts the tokens."""

    @model_validator(mode="after")
    def _plain(self) -> Self:
        for name in ("include_obfuscation", "continuous_usage_stats"):
            if getattr(self, name):
                raise ApiError(f"stream_options.{name} = true is not supported", param="stream_options")
        return self


class ChatFields(IgnoredFields):
    """The fields of a question beside its messages and those of :data:`NEUTRAL`."""

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
    """How many of the likeliest tokens are reported at each position; needs logprobs."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """Tokens of an action before its end, at most as many as the server and the model allow; 32 if left out."""
    max_tokens: int | None = Field(None, ge=1)
    """As max_completion_tokens, its older name."""
    stream: bool | None = None
    """Whether the action comes token by token."""
    stream_options: StreamOptions | None = None
    """What a stream holds beside the answer."""
    reasoning_effort: object = None
    """No effect: this model does not reason before it answers."""
    verbosity: object = None
    """No effect: an action has the words that it has."""
    prediction: object = None
    """No effect."""
    parallel_tool_calls: object = None
    """No effect: no tool is called."""
    chat_template_kwargs: object = None
    """No effect: texts are not read."""
    priority: object = None
    """No effect: all requests are served alike."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs = true", param="top_logprobs", code="invalid_value")
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
    values = without_nulls(object_of(body, limits, max_values=MAX_CHAT_VALUES))
    _check_neutral(values)
    if "messages" not in values:
        raise ApiError("messages is missing", param="messages", code="missing_required_parameter")
    messages = values.pop("messages")
    names = ["messages", *ChatFields.effective()]
    check_names(values, ChatFields.model_fields, shown=names)
    if isinstance(options := values.get("stream_options"), dict):
        check_names(options, StreamOptions.model_fields, inside="stream_options")
    try:
        fields = ChatFields.model_validate(values, strict=True)
    except ValidationError as error:
        raise explained(error, names) from error
    stream_options = fields.stream_options or StreamOptions()
    return ChatAsked(
        images=_images_of(messages),
        model=fields.model,
        n=fields.n or 1,
        temperature=fields.temperature or 0.0,
        top_p=fields.top_p or 1.0,
        seed=secrets.randbelow(MAX_SEED + 1) if fields.seed is None else fields.seed,
        logprobs=bool(fields.logprobs),
        top_logprobs=fields.top_logprobs or 0,
        max_new_tokens=_max_new_tokens(fields, limits),
        stream=bool(fields.stream),
        include_usage=bool(stream_options.include_usage),
    )


def _max_new_tokens(fields: ChatFields, limits: Limits) -> int:
    """Tokens of an action: what is asked for, or the limit, which an action hardly ever reaches."""
    # A client that allows more gets the same answer: it is shorter, or its finish_reason says that it is cut off.
    bounds = {
        min(count, limits.max_new_tokens)
        for count in (fields.max_tokens, fields.max_completion_tokens)
        if count is not None
    }
    if len(bounds) > 1:
        raise ApiError(
            f"max_tokens = {fields.max_tokens} and max_completion_tokens = {fields.max_completion_tokens} are two "
            "names of one thing; give one of them",
            param="max_tokens",
            code="invalid_value",
        )
    return bounds.pop() if bounds else limits.default_new_tokens


def _check_neutral(values: dict[str, Any]) -> None:
    """Take the fields that ask for nothing out of ``values``."""
    # Tools that must not be called change no answer.
    choices = {"tools": "tool_choice", "functions": "function_call"}
    unused = {name for name, choice in choices.items() if values.get(choice) == "none"}
    for name, allowed in NEUTRAL.items():
        value = values.pop(name, None)
        if value is None or name in unused:
            continue
        if name == "logit_bias" and isinstance(value, dict) and not any(value.values()):
            continue
        # In Python false equals 0.
        if any(value == one and (type(value) is bool) == (type(one) is bool) for one in allowed):
            continue
        raise ApiError(
            f"{name} = {value!r:.80} is not supported: this model names the action between two images and does nothing "
            "else; leave it out",
            param=name,
            code="unsupported_value",
        )


def _images_of(messages: Any) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    """Return the last two images of the user's last turn, with the names of their fields."""
    if not isinstance(messages, list) or not 1 <= len(messages) <= MAX_MESSAGES:
        raise ApiError(f"messages: expected a list of 1 to {MAX_MESSAGES:,} messages", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    references: list[tuple[str, Any]] = []
    num_parts = 0
    for index in _last_turn(messages):
        name = f"messages[{index}].content"
        content = _check_content(messages[index], f"messages[{index}]", optional=("name", "id", *IGNORED_OF_PARTS))
        num_parts += len(content)
        if num_parts > MAX_PARTS:
            raise ApiError(f"{name}: at most {MAX_PARTS:,} parts are read in a turn", param=name)
        for row, part in enumerate(content):
            references += _reference_of(part, f"{name}[{row}]")
    # Images before these two, of this turn too, are a history: nobody decodes them.
    images = [(name, data_url_bytes(reference, name)) for name, reference in references[-2:]]
    if len(images) < 2:
        before = "; images of older turns are not asked about, send them again" if len(messages) > 1 else ""
        raise ApiError(
            f"messages hold {len(images)} images in the user's last turn; expected two image_url parts, the source "
            f"first, then the target{before}",
            param="messages",
            code="missing_required_parameter",
        )
    return images[0], images[1]


def _check_message(message: Any, name: str) -> None:
    """Raise unless a message has a role; an instruction may hold text alone. Nothing else of a history is looked at."""
    if not isinstance(message, Mapping):
        raise ApiError(f"{name}: expected an object with role, content", param=name)
    if "role" not in message:
        raise ApiError(f"{name}.role is missing", param=f"{name}.role", code="missing_required_parameter")
    role = message["role"]
    if role not in ROLES:
        raise ApiError(f"{name}.role = {role!r:.80}: expected {', '.join(ROLES)}", param=f"{name}.role")
    content = message.get("content")
    if role in INSTRUCTIONS and isinstance(content, list):
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind != "text":
                field = f"{name}.content[{index}].type"
                raise ApiError(
                    f"{field} = {kind!r:.80}: expected text, for images stand in messages of the user", param=field
                )


def _last_turn(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return indices of the user's last messages with no answer in between, first one first."""
    turn: list[int] = []
    for index in reversed(range(len(messages))):
        if messages[index]["role"] == "user":
            turn.append(index)
        elif turn and messages[index]["role"] in ANSWERS:
            break
    return turn[::-1]


def _check_content(message: Mapping[str, Any], name: str, *, optional: Sequence[str]) -> list[Any]:
    """Return the parts of a user's message; none of a plain text, which changes nothing."""
    _check_object(message, name, required=("role", "content"), optional=optional)
    if not isinstance(message.get("name") or "", str):
        raise ApiError(f"{name}.name: expected text", param=f"{name}.name")
    content = message["content"]
    if isinstance(content, str):
        return []
    if not isinstance(content, list):
        raise ApiError(f"{name}.content: expected text or a list of parts", param=f"{name}.content")
    return content


def _reference_of(part: Any, name: str) -> list[tuple[str, Any]]:
    """Where the image of a part is, with the name of its field; empty for a text."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text":
        _check_object(part, name, required=("type", "text"), optional=IGNORED_OF_PARTS)
        _check_text(part["text"], f"{name}.text")
        return []
    if kind != "image_url":
        raise ApiError(f"{name}.type = {kind!r:.80}: expected text or image_url", param=f"{name}.type")
    _check_object(part, name, required=("type", "image_url"), optional=(*IGNORED_OF_IMAGES, *IGNORED_OF_PARTS))
    field, reference = f"{name}.image_url", part["image_url"]
    if isinstance(reference, str):
        return [(field, reference)]
    _check_object(reference, field, required=("url",), optional=IGNORED_OF_IMAGES)
    return [(f"{field}.url", reference["url"])]


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise ApiError(f"{name}: expected text, got {type(value).__name__}", param=name)


def _check_object(value: Any, name: str, *, required: Sequence[str], optional: Sequence[str] = ()) -> None:
    if not isinstance(value, Mapping):
        raise ApiError(f"{name}: expected an object with {', '.join(required)}", param=name)
    for key in required:
        if value.get(key) is None:
            raise ApiError(f"{name}.{key} is missing", param=f"{name}.{key}", code="missing_required_parameter")
    known = (*required, *optional)
    for key in value:
        if key not in known and value[key] is not None:
            says = f"unknown field {key!r:.80} in {name}; the fields are {', '.join(known)}"
            raise ApiError(says, param=f"{name}.{key:.80}", code="unknown_parameter")


def chat_schema() -> dict[str, Any]:
    """Build the JSON schema of a body, for the page that describes the server."""
    schema = json_schema(ChatFields)
    options = schema.pop("$defs")["StreamOptions"]
    for name in ("include_obfuscation", "continuous_usage_stats"):
        options["properties"][name] |= {"enum": [False, None]}
    neutral = {name: {"enum": [*values, None], "description": NO_EFFECT} for name, values in NEUTRAL.items()}
    effective = {name: schema["properties"][name] for name in ChatFields.effective()}
    ignored = {name: schema["properties"][name] for name in ChatFields.ignored()}
    properties = {"messages": _messages_schema()} | effective | neutral | ignored
    properties["stream_options"] = {
        "anyOf": [options, {"type": "null"}],
        "description": "What a stream holds beside the answer.",
    }
    return schema | {"properties": properties, "required": ["messages"]}


def _messages_schema() -> dict[str, Any]:
    cache: dict[str, Any] = {name: {} for name in IGNORED_OF_PARTS}
    beside: dict[str, Any] = {name: {} for name in IGNORED_OF_IMAGES if name != "type"}
    text = _object({"type": {"const": "text"}, "text": {"type": "string"}} | cache, optional={*cache})
    reference = _object({"url": DATA_URL_SCHEMA} | beside, optional={*beside})
    image = _object(
        {"type": {"const": "image_url"}, "image_url": {"anyOf": [reference, DATA_URL_SCHEMA]}} | beside | cache,
        optional={*beside, *cache},
    )
    name: dict[str, Any] = {"name": {"type": ["string", "null"]}}
    asking, instructing = (
        _object(
            {
                "role": {"enum": roles},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": parts}}]},
            }
            | name,
            optional={"name"},
        )
        for roles, parts in ((["user"], [text, image]), ([*INSTRUCTIONS], [text]))
    )
    answering = {"type": "object", "properties": {"role": {"enum": [*ANSWERS]}}, "required": ["role"]}
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": MAX_MESSAGES,
        "items": {"anyOf": [asking, instructing, answering]},
        "description": "The last two image_url parts of the user's last turn are asked about, the source first, then "
        "the target. Texts and older turns change nothing.",
    }


def _object(properties: dict[str, Any], optional: Set[str] = frozenset()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
