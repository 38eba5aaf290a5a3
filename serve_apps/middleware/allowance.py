"""Count what one key may still ask of this process, and word the answers to what is beyond.

Knows no HTTP but OpenAI's headers, and nothing of other processes.
"""

import math
from collections.abc import Callable, Mapping

from serve_apps.keys import Key
from serve_apps.openai.errors import ApiError


class Allowance:
    """What is left to a key: a bucket of requests that fills up within a minute, and the requests being answered."""

    def __init__(self, key: Key, clock: Callable[[], float]) -> None:
        self.key, self._clock = key, clock
        self._filled, self._at_s = float(key.requests_per_minute), clock()
        self.in_progress = 0

    async def take(self) -> ApiError | None:
        """Count a request in, or return the answer that it gets instead."""
        return self.take_now()

    def take_now(self) -> ApiError | None:
        """Do what :meth:`take` does, outside an event loop too."""
        key, now_s = self.key, self._clock()
        # The bucket fills with time; nothing runs in between.
        self._filled = min(key.requests_per_minute, self._filled + (now_s - self._at_s) * key.requests_per_minute / 60)
        self._at_s = now_s
        if self.in_progress >= key.concurrent_requests:
            return too_many_at_once(key.concurrent_requests, self.headers())
        if self._filled < 1:
            wait_s = (1 - self._filled) * 60 / key.requests_per_minute
            return too_many_in_a_minute(key.requests_per_minute, wait_s, self.headers())
        self._filled -= 1
        self.in_progress += 1
        return None

    def release(self) -> None:
        """Count a request out."""
        self.in_progress -= 1

    def headers(self) -> dict[str, str]:
        """Return OpenAI's headers of requests a minute."""
        return limit_headers(self.key.requests_per_minute, self._filled)


def limit_headers(limit: int, remaining: float) -> dict[str, str]:
    """Return OpenAI's headers of requests a minute.

    Args:
        limit: Requests a minute.
        remaining: What remains of them now.
    """
    return {
        "x-ratelimit-limit-requests": str(limit),
        "x-ratelimit-remaining-requests": str(int(remaining)),
        "x-ratelimit-reset-requests": duration((limit - remaining) * 60 / limit),
    }


def too_many_in_a_minute(limit: int, wait_s: float, headers: Mapping[str, str]) -> ApiError:
    """Build the 429 of a key whose bucket is empty.

    Args:
        limit: Requests a minute.
        wait_s: Seconds until the next one may begin.
        headers: Of :func:`limit_headers`.
    """
    return _limit_error(f"{limit} requests a minute are allowed to this key", wait_s, headers)


def too_many_at_once(limit: int, headers: Mapping[str, str]) -> ApiError:
    """Build the 429 of a key that has as many requests being answered as it may.

    Args:
        limit: Requests at a time.
        headers: Of :func:`limit_headers`.
    """
    return _limit_error(f"{limit} requests of this key are being answered", 1.0, headers)


def _limit_error(why: str, wait_s: float, limits: Mapping[str, str]) -> ApiError:
    headers = {"Retry-After": str(max(1, math.ceil(wait_s))), **limits}
    message = f"rate limit reached: {why}; try again in {duration(wait_s)}"
    return ApiError(message, status=429, kind="requests", code="rate_limit_exceeded", headers=headers)


def duration(seconds: float) -> str:
    """Spell a duration as OpenAI's headers do: 120ms, 1s, 6m0s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    rounded = math.ceil(seconds)
    return f"{rounded // 60}m{rounded % 60}s" if rounded >= 60 else f"{rounded}s"
