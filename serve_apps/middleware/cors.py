"""Web pages of other origins (CORS, as the Fetch standard has it): which may ask, and what they may read of an answer.

Keys are headers that a page sets itself, not credentials of the browser's own: those (cookies, certificates) are never
allowed, so that ``*`` gives away nothing but what anybody else can ask.
"""

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Message, Send

# Headers of an answer that a page may read, beside those that it always may.
EXPOSED = (
    "x-request-id",
    "Server-Timing",
    "Retry-After",
    "x-should-retry",
    "x-wm-replica-wait-seconds",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "WWW-Authenticate",
)
METHODS = ("GET", "HEAD", "POST")
MAX_AGE_S = 600
ANY = "*"
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^\s/?#@:\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def check_origins(origins: Sequence[str]) -> None:
    """Raise ValueError if an entry is not what a browser would send in its header ``Origin``.

    Browsers send scheme, host and port, in lower case and without a slash at the end; servers compare the texts. Any
    other spelling would match nothing, without a word.
    """
    for origin in origins:
        if origin == ANY:
            if len(origins) > 1:
                raise ValueError("'*' allows every origin; give it alone, or the origins without it")
            continue
        problem = _problem_of(origin)
        if problem is not None:
            raise ValueError(f"{origin!r:.80} is no origin: {problem}; expected for instance https://app.example")


def _problem_of(origin: str) -> str | None:
    """Say what is wrong with an origin, or None."""
    # In this order: each check relies on those before it.
    spelling = {
        "any sandboxed page sends null; only '*' allows those": origin == "null",
        "the scheme (https:// or http://) is missing": re.match("[A-Za-z][A-Za-z0-9+.-]*://", origin) is None,
        "'*' stands for every origin alone, not for a part of one": "*" in origin,
        "browsers send host names in ASCII (xn--…)": not origin.isascii(),
        "browsers send it in lower case": origin != origin.lower(),
    }
    problem = next((problem for problem, is_met in spelling.items() if is_met), None)
    return _problem_of_parts(origin) if problem is None else problem


def _problem_of_parts(origin: str) -> str | None:
    # Scheme and lower case are known to be right by now.
    match = _ORIGIN.match(origin)
    if match is None:
        return "expected SCHEME://HOST or SCHEME://HOST:PORT"
    if match.end() < len(origin):
        rest = origin[match.end() :]
        return "a slash at its end is too much" if rest == "/" else f"{rest!r:.40} is too much"
    port = match["port"] or "1"
    if port == _DEFAULT_PORTS.get(match["scheme"]):
        return f"browsers leave out port {port} of {match['scheme']}"
    return f"{port} is no port" if port.startswith("0") or int(port) > 65535 else None


class OnceCORSMiddleware(CORSMiddleware):
    """Starlette's middleware, but for answers that the same middleware nearer to the app has marked already."""

    async def send(self, message: Message, send: Send, request_headers: Headers) -> None:
        """Send a part of an answer, its head with the headers of CORS.

        Args:
            message: The part.
            send: The server's.
            request_headers: Of the request that is answered.
        """
        if message["type"] == "http.response.start" and _is_marked(message):
            await send(message)
        else:
            await super().send(message, send, request_headers)


def _is_marked(message: Message) -> bool:
    headers = Headers(raw=list(message.get("headers", ())))
    names = [name.strip().lower() for vary in headers.getlist("vary") for name in vary.split(",")]
    return "access-control-allow-origin" in headers or "origin" in names


def cors_middlewares(origins: Sequence[str]) -> list[Middleware]:
    """Build the middleware that answers preflights and marks answers for ``origins``; none where there are none.

    It belongs around all middlewares that refuse requests: a page can read no error that lacks its headers, and a
    preflight never has a key.
    """
    if not origins:
        return []
    return [
        Middleware(
            OnceCORSMiddleware,
            allow_origins=tuple(origins),
            allow_methods=METHODS,
            # Whatever OpenAI's clients for JavaScript send: authorization, content-type, x-stainless-….
            allow_headers=("*",),
            allow_credentials=False,
            # A page of the wider network that asks a server of this machine: it is named, so it may.
            allow_private_network=True,
            expose_headers=EXPOSED,
            max_age=MAX_AGE_S,
        )
    ]
