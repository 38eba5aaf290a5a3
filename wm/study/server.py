"""Serve a study over HTTP: one static page, and a small API for it that says nothing about systems.

The API: what the study is, join, come back, vote, withdraw, and the images. Not known here: where it listens.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Final, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from wm.errors import InputError
from wm.runs import parse_json
from wm.study.access import Guesses, is_known
from wm.study.database import RefusedError
from wm.study.guards import HEADERS, BodyMiddleware, HeadersMiddleware, HostMiddleware, error_response
from wm.study.session import MAX_SECONDS, StudySession
from wm.study.store import Participant

PARTICIPANT: Final = "x-participant"
"""Header with the code of the participant: it is in no address, which servers and browsers write down."""
MEDIA_TYPES: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "png": "image/png",
    "jpg": "image/jpeg",
    "webp": "image/webp",
}
STATUSES: Final = {
    "key": 401,
    "full": 403,
    "unknown": 404,
    "too_many": 429,
    "unavailable": 503,
    "malformed": 400,
}
"""Status of a refusal by its reason; all others are 409, a conflict with what the server knows."""
_NO_STORE = {"Cache-Control": "no-store"}
# An address of an image is of one participant and never changes; dates and tags of files are not sent.
_IMAGE_CACHE = {"Cache-Control": "private, max-age=86400, immutable"}

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]
BodyT = TypeVar("BodyT", bound="_Body")


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class JoinBody(_Body):
    """What a page sends when a person agrees to take part."""

    study_id: str = Field(max_length=100)
    consent: bool


class ReturnBody(_Body):
    """What a page sends when a person comes back with a code."""

    code: str = Field(max_length=100)


class WithdrawalBody(_Body):
    """What a page sends when a person withdraws."""

    study_id: str = Field(max_length=100)


class VoteBody(_Body):
    """What a page sends when a person has chosen; positions are from 0."""

    study_id: str = Field(max_length=100)
    item_id: str = Field(max_length=100)
    best: int = Field(ge=0, le=100)
    worst: int = Field(ge=0, le=100)
    seconds: float = Field(ge=0, le=MAX_SECONDS)


@dataclass(frozen=True)
class _Asset:
    content: bytes
    media_type: str


def build_app(
    session: StudySession, *, keys: tuple[str, ...] = (), is_local: bool = True, lifespan: Lifespan | None = None
) -> Starlette:
    """Build the application.

    Args:
        session: Of the study.
        keys: Of invitations; empty: nobody is asked for one.
        is_local: Whether only names of this machine are answered to.
        lifespan: What is done from start to end beside answering.
    """
    server = _Server(session, keys)
    routes = [
        Route("/", server.get_page),
        Route("/web/{name}", server.get_asset),
        Route("/health", server.get_health),
        Route("/api/study", server.get_study),
        Route("/api/participants", server.post_participant, methods=["POST"]),
        Route("/api/return", server.post_return, methods=["POST"]),
        Route("/api/progress", server.get_progress),
        Route("/api/votes", server.post_vote, methods=["POST"]),
        Route("/api/withdrawals", server.post_withdrawal, methods=["POST"]),
        Route("/images/{tag}/{name}", server.get_image),
    ]
    middleware = [Middleware(HeadersMiddleware), Middleware(BodyMiddleware)]
    # The headers are outermost, so that refusals of the others have them too.
    if is_local:
        middleware.insert(1, Middleware(HostMiddleware))
    handlers: Mapping[Any, Callable[..., Awaitable[Response]]] = {
        RefusedError: _answer_refusal,
        HTTPException: _answer_http_error,
        Exception: _answer_mistake,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


class _Server:
    """Handlers of the requests."""

    def __init__(self, session: StudySession, keys: tuple[str, ...]) -> None:
        self._session, self._keys = session, keys
        # Apart: who has no key must not be able to shut out those who have one by being wrong in their place.
        self._code_guesses, self._key_guesses = Guesses(), Guesses()
        # Read once: these names and no others can be asked for, whatever a path looks like.
        self._assets = {
            file.name: _Asset(file.read_bytes(), MEDIA_TYPES[file.name.rpartition(".")[2]])
            for file in (files("wm.study") / "web").iterdir()
            if file.name.rpartition(".")[2] in MEDIA_TYPES
        }

    async def get_page(self, request: Request) -> Response:
        return self._asset("index.html")

    async def get_asset(self, request: Request) -> Response:
        return self._asset(request.path_params["name"])

    async def get_health(self, request: Request) -> Response:
        # Reads the store, so that a lost disk is seen.
        await run_in_threadpool(self._session.store.count_votes, self._session.study.study_id)
        return _reply({"status": "ok"})

    async def get_study(self, request: Request) -> Response:
        self._check_key(request)
        study = self._session.study
        return _reply(
            {
                "study_id": study.study_id,
                "title": study.title,
                "consent": study.consent,
                "instructions": study.instructions,
                "num_items": len(study.items),
                "image_px": study.image_px,
            }
        )

    async def post_participant(self, request: Request) -> Response:
        self._check_key(request)
        # A page that sends no consent is not ours: whoever joins has agreed.
        body = await _read(request, JoinBody)
        if not body.consent:
            raise RefusedError("Nobody takes part without having agreed to it.", "malformed")
        participant = await run_in_threadpool(self._session.join, body.study_id)
        return _reply(await run_in_threadpool(self._session.progress, participant), status=201)

    async def post_return(self, request: Request) -> Response:
        self._check_key(request)
        body = await _read(request, ReturnBody)
        participant = await self._find(request, body.code)
        return _reply(await run_in_threadpool(self._session.progress, participant))

    async def get_progress(self, request: Request) -> Response:
        self._check_key(request)
        participant = await self._find(request, request.headers.get(PARTICIPANT, ""))
        return _reply(await run_in_threadpool(self._session.progress, participant))

    async def post_vote(self, request: Request) -> Response:
        self._check_key(request)
        body = await _read(request, VoteBody)
        participant = await self._find(request, request.headers.get(PARTICIPANT, ""))
        progress = await run_in_threadpool(self._session.vote, participant, **body.model_dump())
        return _reply(progress)

    async def post_withdrawal(self, request: Request) -> Response:
        self._check_key(request)
        body = await _read(request, WithdrawalBody)
        participant = await self._find(request, request.headers.get(PARTICIPANT, ""))
        await run_in_threadpool(self._session.withdraw, participant, **body.model_dump())
        return _reply({"withdrawn": True})

    async def get_image(self, request: Request) -> Response:
        # No key: an <img> cannot send one, and nobody guesses the address.
        tag, name = request.path_params["tag"], request.path_params["name"]
        path = await run_in_threadpool(self._session.find_image, tag, name)
        if path is None:
            return error_response("There is no such image.", "unknown", 404)
        # Disks may be slow; other requests do not wait for this one.
        content = await run_in_threadpool(path.read_bytes)
        return Response(content, media_type=MEDIA_TYPES[path.suffix.lower().lstrip(".")], headers=_IMAGE_CACHE)

    def _asset(self, name: str) -> Response:
        asset = self._assets.get(name)
        if asset is None:
            return error_response("There is no such file.", "unknown", 404)
        return Response(asset.content, media_type=asset.media_type, headers=_NO_STORE)

    def _check_key(self, request: Request) -> None:
        if not self._keys:
            return
        # A right one comes first: behind a tunnel all have one address, and 128 bits are not guessed.
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_known(key, self._keys):
            return
        address = _address(request)
        self._key_guesses.check(address)
        # No key at all is no guess: people open the address without its fragment.
        if key:
            self._key_guesses.count(address)
        raise RefusedError("Please open this study by the link of your invitation.", "key")

    async def _find(self, request: Request, code: str) -> Participant:
        address = _address(request)
        # Before the look-up: a right guess must not show among many wrong ones.
        self._code_guesses.check(address)
        try:
            return await run_in_threadpool(self._session.find, code)
        except RefusedError as error:
            if error.code == "unknown":
                self._code_guesses.count(address)
            raise


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _reply(content: Mapping[str, object], status: int = 200) -> JSONResponse:
    return JSONResponse(content, status, headers=_NO_STORE)


async def _read(request: Request, kind: type[BodyT]) -> BodyT:
    """Parse the body of a request, which may be anything."""
    # Another site's form cannot send this type without asking first, which is refused.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("The request was not understood: expected application/json.", "malformed")
    try:
        return kind.model_validate(parse_json(await request.body(), "request"))
    except ValidationError as error:
        # The value is not repeated: it may be anything, and of any length.
        field = ".".join(str(part) for part in error.errors()[0]["loc"]) or "the body"
        raise RefusedError(f"The request was not understood: {field!r:.60} is wrong.", "malformed") from error
    except InputError as error:
        raise RefusedError("The request was not understood: it is not valid JSON.", "malformed") from error


async def _answer_refusal(request: Request, error: RefusedError) -> Response:
    # For programs: a person reads the sentence.
    response = error_response(str(error), error.code, STATUSES.get(error.code, 409))
    if response.status_code in (429, 503):
        response.headers["Retry-After"] = "60" if response.status_code == 429 else "5"
    return response


async def _answer_http_error(request: Request, error: HTTPException) -> Response:
    return error_response(f"This request is not known here ({error.detail}).", "unknown", error.status_code)


async def _answer_mistake(request: Request, error: Exception) -> Response:
    response = error_response("The server failed, and nothing was saved: please try again.", "failed", 500)
    response.headers.update(HEADERS)  # it is outside of all other middleware
    return response
