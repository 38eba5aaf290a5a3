"""Know which models have no replica, wait for one within bounds, and say when to come again.

A deployment with ``min_replicas = 0`` has none after a pause; any has none while its only replica is replaced or its
node is gone. Requests would wait in Ray Serve's queues, for as long as they may take altogether. Not known here: HTTP.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping

from ray.serve.handle import DeploymentHandle

from serve_apps.calls import call
from serve_apps.names import FDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe

logger = logging.getLogger("ray.serve")

# Seconds after which the controller is asked again: where a deployment may have no replica by design, and elsewhere.
FRESH_S, FRESH_BUSY_S = 1.0, 5.0
# Of `Retry-After`: before a start has been seen, and at most; OpenAI's clients obey no more than a minute.
FIRST_GUESS_S, MAX_RETRY_S = 10.0, 60.0

# Asks how many replicas of each deployment run, blocking; None: this process is in no application.
CountReplicas = Callable[[], Mapping[str, int] | None]


def count_replicas() -> Mapping[str, int] | None:
    """Ask Ray Serve's controller how many replicas of each deployment of this replica's application run."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        name = serve.get_replica_context().app_name
    except RayServeException:
        return None
    application = serve.status().applications.get(name)
    if application is None:
        return None
    return {name: status.replica_states.get("RUNNING", 0) for name, status in application.deployments.items()}


class Waking:
    """Wait for the first replica of a model that has none.

    Args:
        recipe: Which deployment does what, how long a request may wait.
        handles: Of each task's deployment.
        count: Asks how many replicas there are.
        clock: Returns seconds.
    """

    def __init__(
        self,
        recipe: ServeRecipe,
        handles: Mapping[str, DeploymentHandle],
        count: CountReplicas = count_replicas,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recipe, self._handles, self._count, self._clock = recipe, handles, count, clock
        self._counts: dict[str, int] = {}
        self._counted_s = -math.inf
        self._counting: asyncio.Task[None] | None = None
        self._starts: dict[str, asyncio.Task[object]] = {}
        self._began_s: dict[str, float] = {}
        self._start_s: dict[str, float] = {}
        self._num_waiting: dict[str, int] = {}

    async def wait_for(self, task: str) -> float:
        """Return once a model has a replica.

        Args:
            task: What the model does.

        Returns:
            Seconds that were waited; 0 where there was one.

        Raises:
            ApiError: 503 with ``Retry-After`` after the recipe's ``replica_wait_s``; the start goes its way.
        """
        if not await self.is_asleep(task):
            return 0.0
        begin_s, name = self._clock(), self._recipe.deployment_of(task)
        start = self._start(task)
        self._num_waiting[name] = self._num_waiting.get(name, 0) + 1
        position = self._num_waiting[name]
        try:
            # Shielded: others wait for the same start, and who comes again finds it further.
            async with asyncio.timeout(self._recipe.max_replica_wait_s):
                await asyncio.shield(start)
        except TimeoutError:
            raise self._still_starting(task, position) from None
        finally:
            self._num_waiting[name] -= 1
        return self._clock() - begin_s

    async def is_asleep(self, task: str) -> bool:
        """Return whether a model has no replica, as far as is known."""
        is_by_design = self._recipe.scales_to_zero(task)
        age_s = self._clock() - self._counted_s
        if age_s > (FRESH_S if is_by_design else FRESH_BUSY_S):
            if self._counting is None or self._counting.done():
                self._counting = asyncio.create_task(self._recount())
            # Elsewhere nobody waits for the controller: what it says is for the requests after this one.
            if is_by_design:
                await asyncio.shield(self._counting)
        return self._counts.get(self._recipe.deployment_of(task), 1) == 0

    async def _recount(self) -> None:
        try:
            counts = await asyncio.to_thread(self._count)
        except Exception as error:  # the controller starts anew: what was known stays
            logger.warning("the number of replicas is not known: %r", error)
            counts = self._counts
        self._counts, self._counted_s = dict(counts or {}), self._clock()

    def _start(self, task: str) -> "asyncio.Task[object]":
        """Return the call that a model's first replica will answer; made once for all that wait."""
        name = self._recipe.deployment_of(task)
        start = self._starts.get(name)
        if start is None or start.done():
            self._began_s[name] = self._clock()
            start = self._starts[name] = asyncio.create_task(self._ask(task))
            # Where all that waited have gone, nobody else takes an error note of.
            start.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return start

    async def _ask(self, task: str) -> None:
        name = self._recipe.deployment_of(task)
        logger.info("%s has no replica; a request waits for one", name)
        await call(self._handles[task], "describe", task, model=task)
        self._start_s[name] = self._clock() - self._began_s[name]
        # At once, or requests that come now would wait for one more answer.
        self._counts[name] = max(1, self._counts.get(name, 1))
        logger.info("%s has a replica after %.1f s", name, self._start_s[name])

    def _still_starting(self, task: str, position: int) -> ApiError:
        name = self._recipe.deployment_of(task)
        waited_s = self._clock() - self._began_s[name]
        guess_s = self._start_s.get(name, waited_s + FIRST_GUESS_S) - waited_s
        retry_s = min(MAX_RETRY_S, max(1, math.ceil(guess_s)))
        role = "forward" if task == FDM else "inverse"
        error = ApiError.unavailable(
            f"the {role} model has no replica yet, one has been starting for {waited_s:.0f} s and {position} "
            f"requests wait here for it; try again in {retry_s:.0f}s",
            "model_starting",
        )
        error.headers["Retry-After"] = str(int(retry_s))
        return error
