"""Call the model deployments: refusals become answers that say so, and where a replica dies another is asked.

What a method returns depends on its arguments alone, so that any replica may be asked again.
"""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from typing import Any

from ray.exceptions import RayActorError, RayTaskError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.openai.errors import ApiError
from wm.errors import InputError

# Models that every replica has in memory.
ALWAYS_LOADED = {FDM, IDM, BASELINE}
# Of a request, each on another replica, before it is given up.
MAX_TRIES = 4
# Ray's: at 1, a handle made afterwards calls by gRPC.
GRPC_VARIABLE = "RAY_SERVE_USE_GRPC_BY_DEFAULT"
logger = logging.getLogger("ray.serve")


def follow_session(handle: DeploymentHandle | None) -> DeploymentHandle | None:
    """Return a handle whose calls go by gRPC where the environment of this replica says so.

    A handle remembers how calls go from the process that built the application. That may have imported Ray before it
    set the session's environment, and then names Ray's tasks, which cost a nano model a tenth of its time.

    Args:
        handle: Of a deployment; None, and what acts as a handle in a test, is returned as it is.
    """
    if not isinstance(handle, DeploymentHandle):
        return handle
    return handle.options(_by_reference=os.environ.get(GRPC_VARIABLE) != "1")


async def call(handle: DeploymentHandle | None, method: str, *arguments: object, model: str = FDM) -> Any:
    """Call a method of a deployment and return its result.

    A caller that is cancelled cancels the call: Ray does so for a request whose client left, but not for one given up
    by its caller.

    Args:
        handle: Of the deployment.
        method: Name of its method.
        arguments: Of the method.
        model: The model that is at work: a replica that has it in memory is asked, where there is one. Left out for a
            deployment without models.

    Raises:
        ApiError: What the client is to know.
    """
    # A new call each time: Ray chooses another replica.
    for tries_left in reversed(range(MAX_TRIES)):
        response = _method_of(handle, method, model).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            _cancel(response)
            raise
        except Exception as error:
            _check_retry(error, tries_left)
    raise AssertionError


async def stream(
    handle: DeploymentHandle | None, method: str, *arguments: object, model: str
) -> AsyncGenerator[Any, None]:
    """Yield what a generator method of a deployment yields.

    After a replica's death another begins anew, and what was yielded already is skipped.

    Args:
        handle: Of the deployment.
        method: Name of its method, an asynchronous generator.
        arguments: Of the method.
        model: The model that is at work, as for :func:`call`.

    Raises:
        ApiError: What the client is to know.
    """
    # The same arguments give the same items: as many as were yielded are skipped.
    num_yielded = 0
    for tries_left in reversed(range(MAX_TRIES)):
        response = _method_of(handle, method, model).options(stream=True).remote(*arguments)
        index = 0
        try:
            async for item in response:
                index += 1
                if index > num_yielded:
                    num_yielded += 1
                    yield item
            return
        except Exception as error:
            _check_retry(error, tries_left)
        finally:
            _cancel(response)  # a reader that stops early stops the work; a finished one is not harmed


def _method_of(handle: Any, name: str, model: str) -> Any:
    return getattr(handle if model in ALWAYS_LOADED else handle.options(multiplexed_model_id=model), name)


def _cancel(response: Any) -> None:
    if hasattr(response, "cancel"):
        response.cancel()


def _check_retry(error: Exception, tries_left: int) -> None:
    """Return if another replica may be asked; else raise what the client is to know."""
    # 1. A full queue: nobody has begun, the client may come again.
    if isinstance(error, BackPressureError):
        raise ApiError.unavailable("the server is busy; try again soon", "overloaded") from error
    # 2. A dead replica: its work is lost, not the request.
    if isinstance(error, RayActorError):
        if not tries_left:
            raise ApiError.unavailable(
                "the replicas at work on this request died; try again", "replica_died"
            ) from error
        metrics.record(metrics.RETRIES)
        logger.warning("a replica died at work on a request (%s); asking another", error)
        return
    # 3. What the method raised, which Ray wraps.
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, InputError):
        raise ApiError(str(cause), code="invalid_value") from error
    if isinstance(cause, ApiError) and cause is not error:
        raise cause from error
    raise error
