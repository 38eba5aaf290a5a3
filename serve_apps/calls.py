"""Asking a deployment: refusals become answers that say so, and a replica that dies is replaced by another.

What a method gives depends on its arguments alone, so that any replica may be asked again.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError

from serve_apps import metrics
from serve_apps.openai import ApiError
from serve_apps.recipe import FDM, IDM
from wm.errors import InputError

TRIES = 4
"""Of a request, each on another replica, before it is given up."""
logger = logging.getLogger("ray.serve")


def method_of(handle: Any, name: str, model: str) -> Any:
    """Return a method of a deployment handle, to be asked of a replica that has ``model`` in memory, where there is
    one."""
    return getattr(handle if model in {FDM, IDM} else handle.options(multiplexed_model_id=model), name)


async def call(method: Any, *arguments: Any) -> Any:
    """Return what a deployment handle's method returns. Raises :class:`ApiError` for what the client is to know. A
    caller that
    is cancelled cancels it: Ray does so for a request whose client left, but not for one given up by its caller."""
    for tries_left in reversed(range(TRIES)):
        found = method.remote(*arguments)
        try:
            return await found
        except asyncio.CancelledError:
            _cancel(found)
            raise
        except Exception as error:
            _need_another_try(error, tries_left)
    raise AssertionError


async def stream(method: Any, *arguments: Any) -> AsyncGenerator[Any, None]:
    """Yield what a deployment handle's generator yields; after a replica's death another begins again, and what is
    known already is passed over. Raises as :func:`call`."""
    given = 0
    for tries_left in reversed(range(TRIES)):
        found = method.options(stream=True).remote(*arguments)
        place = 0
        try:
            async for item in found:
                place += 1
                if place > given:
                    given += 1
                    yield item
            return
        except Exception as error:
            _need_another_try(error, tries_left)
        finally:
            _cancel(found)  # a reader that stops early stops the work; one that is done is not harmed


def _cancel(found: Any) -> None:
    if hasattr(found, "cancel"):
        found.cancel()


def _need_another_try(error: Exception, tries_left: int) -> None:
    """Return where another replica may be asked; else raises what the client is to know."""
    if isinstance(error, BackPressureError):
        raise ApiError.unavailable("the server is busy; try again soon", "overloaded") from error
    if isinstance(error, RayActorError):
        if not tries_left:
            raise ApiError.unavailable(
                "the replicas at work on this request died; try again", "replica_died"
            ) from error
        metrics.record(metrics.RETRIES)
        logger.warning("a replica died at work on a request (%s); asking another", error)
        return
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, InputError):
        raise ApiError(str(cause), code="invalid_value") from error
    if isinstance(cause, ApiError) and cause is not error:
        raise cause from error
    raise error
