"""Ask a model over OpenAI's chat API, with OpenAI's own client. Knows nothing of files and figures."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from wm.errors import InputError, to_line

_SHOWN_CHARS = 200
BAD_REQUEST = "bad request"
"""How the refusal of a request begins that the endpoint cannot read."""
_NEW_LIMIT = "max_completion_tokens"


class ClientSettings(Protocol):
    """Keys of a recipe that the client reads."""

    @property
    def model(self) -> str:
        """Name of the model at the endpoint."""

    @property
    def api_key_variable(self) -> str:
        """Environment variable with the API key."""

    @property
    def max_retries(self) -> int:
        """Repeats of a request after 429, 5xx or a lost connection."""

    @property
    def timeout_s(self) -> float:
        """Of a request."""


class UnansweredError(Exception):
    """A request got no answer after all its repeats; asking later may help."""


@dataclass(frozen=True)
class Reply:
    """What the endpoint answered to one request."""

    text: str | None
    refusal: str | None = None
    finish_reason: str | None = None
    model: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    logprobs: tuple[float, ...] | None = None
    """Of the answer's tokens in nats, where they were asked for."""


class ChatClient:
    """An endpoint. Safe to use from several threads."""

    def __init__(self, settings: ClientSettings, base_url: str, *, is_structured: bool = False) -> None:
        """Build the client; nothing is asked yet.

        Args:
            settings: Key, limits.
            base_url: Of the endpoint; empty: OpenAI's own.
            is_structured: Whether ``response_format`` of a request is sent, until the endpoint refuses it.

        Raises:
            InputError: OpenAI's own endpoint is meant and its key is not in the environment, or ``base_url`` is none.
        """
        from openai import DefaultHttpxClient, OpenAI

        key = os.environ.get(settings.api_key_variable, "")
        # The client would repeat its request for a minute before it says so.
        if base_url and urlsplit(base_url).scheme not in ("http", "https"):
            raise InputError(
                f"base_url = {base_url!r:.200}: expected http://… or https://…, such as http://HOST:8000/v1"
            )
        # Before any work: a run without a key would fail at its first request, hours later.
        if not key and not base_url:
            raise InputError(
                f"{settings.api_key_variable} is not set: OpenAI's API needs a key; set it in the environment, or give "
                "base_url of an endpoint of your own"
            )
        self.client: OpenAI = OpenAI(
            # The client refuses to be built without a key; an endpoint of one's own may ignore it.
            api_key=key or "none",
            base_url=base_url or None,
            max_retries=settings.max_retries,
            timeout=settings.timeout_s,
            # A proxy of the environment knows no other machine's loopback.
            http_client=DefaultHttpxClient(trust_env=False) if _is_loopback(base_url) else None,
        )
        self._where, self._is_own = base_url or "OpenAI's API", bool(base_url)
        self._settings = settings
        self.is_structured = is_structured
        self._limit_name = "max_tokens"

    def ask(self, body: Mapping[str, object]) -> Reply:
        """Ask once; rate limits, server errors and lost connections are repeated by OpenAI's client.

        Args:
            body: Of the request.

        Returns:
            The reply. A request that the endpoint refuses for its content is a reply with a ``refusal``.

        Raises:
            InputError: No request can succeed: key, model or address are wrong, or the account is empty.
            UnansweredError: This request got no answer.
        """
        import openai

        # A copy: the body is another request's too when structured output is given up.
        fields = dict(body)
        while True:
            if not self.is_structured:
                fields.pop("response_format", None)
            if "max_tokens" in fields:
                fields[self._limit_name] = fields.pop("max_tokens")
            try:
                return to_reply(self.client.chat.completions.create(**fields).model_dump())  # type: ignore[call-overload]
            except openai.BadRequestError as error:
                # An endpoint without structured output says so once; the others follow.
                if "response_format" in fields and _is_about_format(error):
                    self.is_structured = False
                    continue
                # Newer models of OpenAI's know the limit by another name alone.
                if "max_tokens" in fields and _NEW_LIMIT in str(error):
                    self._limit_name = _NEW_LIMIT
                    continue
                return Reply(None, refusal=f"{BAD_REQUEST}: {to_line(error, _SHOWN_CHARS)}")
            except openai.APIError as error:
                raise self.explain(error) from error

    def explain(self, error: Exception) -> Exception:
        """Convert an error of the client: :class:`InputError` where the run must end, else :class:`UnansweredError`."""
        import openai

        # In the order from "nothing will ever succeed" to "later".
        detail = to_line(error, _SHOWN_CHARS)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return InputError(f"{self._where} refuses the key in {self._settings.api_key_variable}: {detail}")
        if isinstance(error, openai.NotFoundError):
            # Either of the two: servers answer 404 to both.
            own = ", or base_url lacks its path, such as /v1" if self._is_own else ""
            return InputError(f"model = {self._settings.model!r:.100} is not known to {self._where}{own}: {detail}")
        if isinstance(error, openai.RateLimitError) and error.code == "insufficient_quota":
            return InputError(f"{self._where}: the account has no credit left: {detail}")
        if isinstance(error, openai.APIConnectionError) and not isinstance(error, openai.APITimeoutError):
            return InputError(f"{self._where} cannot be reached ({self._settings.max_retries} repeats): {detail}")
        return UnansweredError(detail)


def to_reply(completion: Mapping[str, Any]) -> Reply:
    """Convert a chat completion.

    Args:
        completion: Its JSON; endpoints other than OpenAI's leave fields out.

    Returns:
        Text, refusal, model, tokens and their log-probabilities; absent ones are None.
    """
    # Endpoints of one's own leave out what OpenAI's API always has.
    choice = (completion.get("choices") or [{}])[0] or {}
    message, usage = choice.get("message") or {}, completion.get("usage") or {}
    tokens = (choice.get("logprobs") or {}).get("content")
    return Reply(
        text=message.get("content"),
        refusal=message.get("refusal"),
        finish_reason=choice.get("finish_reason"),
        model=str(completion.get("model") or ""),
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        logprobs=tuple(float(token["logprob"]) for token in tokens) if tokens is not None else None,
    )


def _is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in {"127.0.0.1", "localhost", "::1"}


def _is_about_format(error: Exception) -> bool:
    return any(word in str(error) for word in ("response_format", "json_schema", "structured", "Structured"))
