"""The shape of every error, and what one request may ask for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

# An object that becomes JSON, or was.
JsonObject: TypeAlias = dict[str, Any]
MAX_MESSAGE_CHARS = 2000
MAX_PARAM_CHARS = 200


class ApiError(Exception):
    """An answer that is an error: an HTTP status and the four parts of OpenAI's error object."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # What a client sent may be part of either, and is repeated to it and to the log: never at any length.
        message, param = _shorten(message, MAX_MESSAGE_CHARS), param and _shorten(param, MAX_PARAM_CHARS)
        super().__init__(message)
        self.message, self.status, self.kind, self.param, self.code = message, status, kind, param, code
        self.headers = dict(headers or {})

    @classmethod
    def internal(cls) -> "ApiError":
        """Build the answer to a fault of the server's, which says nothing of it."""
        return cls("the server failed to answer", status=500, kind="server_error", code="internal_error")

    @classmethod
    def unavailable(cls, message: str, code: str) -> "ApiError":
        """Build a 503: the same request may succeed a little later.

        Args:
            message: For a person.
            code: For a program.
        """
        return cls(message, status=503, kind="server_error", code=code, headers={"Retry-After": "1"})

    def body(self) -> JsonObject:
        """``{"error": {message, type, param, code}}``."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def _shorten(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else text[: max_chars - 1] + "…"


@dataclass(frozen=True)
class Limits:
    """What one request may ask for."""

    max_body_bytes: int = 20_000_000
    max_pixels: int = 40_000_000
    max_prompt_chars: int = 1000
    max_best_of: int = 64
    default_best_of: int = 8
    max_actions: int = 64
    max_beams: int = 8
    max_new_tokens: int = 256
    default_new_tokens: int = 32
    max_scores: int = 256
