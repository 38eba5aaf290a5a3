"""OpenAI's chat completions as questions to the inverse dynamics model: two images in, the action between them out.

``POST /v1/chat/completions``. The question is the last turn of the user; what was said before it, by whomever, changes
nothing. What a client may send and this model cannot do is refused by name; what changes nothing is accepted.
"""

import secrets
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from serve_apps.names import IDM
from serve_apps.openai.chat_messages import MAX_MESSAGES, find_images, messages_schema
from serve_apps.openai.errors import ApiError, JsonObject, Limits
from serve_apps.openai.images import PIXEL_URL, NamedImage
from serve_apps.openai.json_bodies import check_names, parse_object
from serve_apps.openai.requests import MAX_SEED, ApiRequest, json_schema, limits_of

if TYPE_CHECKING:
    from wm.dynamics import Sampling

# JSON values of a body: as many as a history of answers has that a client kept with all their fields.
MAX_CHAT_VALUES = 16 * MAX_MESSAGES
# Fields of OpenAI's and vLLM's clients for what this model does not do, with the values that ask for nothing; null
# asks for nothing too.
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


class ChatRequest(ApiRequest):
    """A request for the action between two images, beside its messages and the fields of :data:`NEUTRAL`."""

    IMAGES = ("messages",)

    model: str = IDM
    """An inverse dynamics model of GET /v1/models."""
    n: int = Field(1, ge=1, le=10)
    """How many actions to propose, each sampled on its own."""
    temperature: float = Field(0.0, ge=0, le=2, allow_inf_nan=False)
    """0: the likeliest token every time, all proposals are equal. 1: sampled as the model believes."""
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    """Sample among the likeliest tokens that hold this share of the probability; no effect at temperature 0."""
    seed: int = Field(default_factory=lambda: secrets.randbelow(MAX_SEED + 1), ge=0, le=MAX_SEED)
    """Same seed, same answer. A random one is chosen, and reported, if left out."""
    logprobs: bool = False
    """Whether each token comes with its log-probability. The last one is the end of the action."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """How many of the likeliest tokens are reported at each position; needs logprobs."""
    # A factory is not part of the schema, unlike a default. 0 until the server's limits are known.
    max_completion_tokens: int = Field(default_factory=int, ge=1)
    """Tokens of an action before its end, at most as many as the server and the model allow; 32 if left out."""
    max_tokens: int | None = Field(None, ge=1)
    """As max_completion_tokens, its older name."""
    stream: bool = False
    """Whether the action comes token by token."""
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
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
    def _check_fields(self, info: ValidationInfo) -> Self:
        if "top_logprobs" in self.model_fields_set and not self.logprobs:
            raise ApiError("top_logprobs needs logprobs = true", param="top_logprobs", code="invalid_value")
        # A client that allows more gets the same answer: it is shorter, or its finish_reason says that it is cut off.
        limits = limits_of(info)
        bounds = {min(count, limits.max_new_tokens) for count in (self.max_tokens, self.max_completion_tokens) if count}
        if len(bounds) > 1:
            raise ApiError(
                f"max_tokens = {self.max_tokens} and max_completion_tokens = {self.max_completion_tokens} are two "
                "names of one thing; give one of them",
                param="max_tokens",
                code="invalid_value",
            )
        self.max_completion_tokens = bounds.pop() if bounds else limits.default_new_tokens
        return self

    def to_sampling(self) -> "Sampling":
        """Build the settings of sampling."""
        from wm.dynamics import Sampling

        if not self.temperature:
            return Sampling(greedy=True)
        return Sampling(temperature=self.temperature, top_p=self.top_p)


def chat_from_json(body: bytes, limits: Limits) -> tuple[ChatRequest, list[NamedImage]]:
    """Check a JSON body.

    Args:
        body: As received.
        limits: What one request may ask for.

    Returns:
        The request, and the source and the target, encoded, with the names of their fields.

    Raises:
        ApiError: It names the field that is wrong.
    """
    values = parse_object(body, limits, max_values=MAX_CHAT_VALUES)
    # What this model does not do is refused first, by name, whatever else is wrong.
    _check_neutral(values)
    if "messages" not in values:
        raise ApiError("messages is missing", param="messages", code="missing_required_parameter")
    messages = values.pop("messages")
    # pydantic would make an error of each unknown option before it reports one.
    if isinstance(options := values.get("stream_options"), dict):
        check_names(options, StreamOptions.model_fields, inside="stream_options")
    request = ChatRequest.from_values(values, limits, strict=True)
    return request, find_images(messages)


def _check_neutral(values: dict[str, object]) -> None:
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
        if any(value == neutral and (type(value) is bool) == (type(neutral) is bool) for neutral in allowed):
            continue
        raise ApiError(
            f"{name} = {value!r:.80} is not supported: this model names the action between two images and does nothing "
            "else; leave it out",
            param=name,
            code="unsupported_value",
        )


def chat_schema() -> JsonObject:
    """Build the JSON schema of a body, for the page that describes the server."""
    schema = json_schema(ChatRequest)
    options = schema.pop("$defs")["StreamOptions"]
    # As the validator of StreamOptions refuses them.
    for name in ("include_obfuscation", "continuous_usage_stats"):
        options["properties"][name] |= {"enum": [False, None]}
    neutral = {name: {"enum": [*values, None], "description": NO_EFFECT} for name, values in NEUTRAL.items()}
    effective = {name: schema["properties"][name] for name in ChatRequest.effective()}
    ignored = {name: schema["properties"][name] for name in ChatRequest.ignored()}
    properties = {"messages": messages_schema()} | effective | neutral | ignored
    properties["stream_options"] = {
        "anyOf": [options, {"type": "null"}],
        "description": "What a stream holds beside the answer.",
    }
    return schema | {"properties": properties, "required": ["messages"]}
