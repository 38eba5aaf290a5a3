"""The deployments that hold models: the FDM, the IDM, or both in one process, and adapters of their base."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import ray
from ray.serve.handle import DeploymentHandle

from serve_apps.calls import call, method_of
from serve_apps.joined import Joined
from serve_apps.loopback import keep_replica_local
from serve_apps.messages import Found, Preview, Question, RolloutFound, ScoresAsked, StepFound, WhatHappened
from serve_apps.recipe import FDM, IDM, ServeRecipe
from wm.images import Pixels

if TYPE_CHECKING:  # torch is for the replicas alone; the ingress starts without it
    from serve_apps.sampler import Sampler
    from serve_apps.verifier import Verifier
    from wm.dynamics import Role


class Replica:
    """A process with the recipe's models for ``tasks``. ``verifier``: where an IDM is asked, if that is not here.

    ``model`` names one of the recipe's two, ``fdm`` or ``idm``, or an adapter.
    """

    def __init__(self, recipe: ServeRecipe, tasks: Sequence[str], verifier: DeploymentHandle | None = None) -> None:
        from serve_apps.adapters import Adapters
        from serve_apps.process import start_process

        if ray.is_initialized():  # not where a test makes one in its own process
            keep_replica_local(ray.util.get_node_ip_address())
        self._verifier_handle = verifier
        # A call for each verifier. Where replicas come with the load, each question counts as one, and goes by itself.
        self._most_calls = None if recipe.verifier_max_replicas else recipe.verifier_replicas
        self._joined: dict[str, Joined] = {}
        self._process = start_process(recipe, tasks)
        self._own = {task: self._made(role, task) for task, role in self._process.roles.items()}
        self._adapters = Adapters(self._process, self._made) if recipe.adapters else None

    def describe(self, task: str) -> dict[str, Any]:
        """Describe what ``GET /v1/models`` reports of the recipe's model for a task."""
        described: dict[str, Any] = self._own[task].describe()
        return described

    def describe_adapters(self) -> list[dict[str, Any]]:
        """Describe what it reports of the adapters, of both tasks."""
        return self._adapters.described() if self._adapters else []

    async def check_health(self) -> None:
        """Each of the recipe's models decodes a token, in its turn."""
        for servant in self._own.values():
            await servant.check_health()

    # Of a forward model.

    async def predict(self, question: Question) -> Found:
        """See :meth:`serve_apps.sampler.Sampler.predict`."""
        return await (await self._sampler(question.model)).predict(question)

    async def predict_with_previews(self, question: Question) -> AsyncGenerator[Preview | Found, None]:
        """See :meth:`serve_apps.sampler.Sampler.predict_with_previews`."""
        async for item in (await self._sampler(question.model)).predict_with_previews(question):
            yield item

    async def roll_out(self, question: Question) -> AsyncGenerator[StepFound | RolloutFound, None]:
        """See :meth:`serve_apps.sampler.Sampler.roll_out`."""
        async for item in (await self._sampler(question.model)).roll_out(question):
            yield item

    # Of an inverse model.

    async def score_candidates(self, model: str, asked: Sequence[ScoresAsked]) -> list[list[tuple[float, int]]]:
        """Of each, see :meth:`serve_apps.verifier.Verifier.score_candidates`."""
        verifier = await self._verifier(model)
        return await asyncio.gather(*(verifier.score_candidates(*one) for one in asked))

    async def score(self, model: str, images_BHWC: Pixels, actions: Sequence[str]) -> list[list[tuple[float, int]]]:
        """See :meth:`serve_apps.verifier.Verifier.score`."""
        return await (await self._verifier(model)).score(images_BHWC, actions)

    async def propose(self, question: WhatHappened) -> list[Any]:
        """See :meth:`serve_apps.verifier.Verifier.propose`."""
        return await (await self._verifier(question.model)).propose(question)

    async def propose_stream(self, question: WhatHappened) -> AsyncGenerator[Any, None]:
        """See :meth:`serve_apps.verifier.Verifier.propose_stream`."""
        async for item in (await self._verifier(question.model)).propose_stream(question):
            yield item

    def _made(self, role: "Role", task: str) -> "Sampler | Verifier":
        from serve_apps.sampler import Sampler
        from serve_apps.verifier import Verifier

        return Sampler(role, self._process, self._asked) if task == FDM else Verifier(role, self._process)

    async def _asked(self, model: str, source: Sequence[int], action: str, candidates: Sequence[Sequence[int]]) -> Any:
        """Return the scores of an IDM, here or elsewhere."""
        asked = source, action, candidates
        if self._verifier_handle is not None and self._most_calls is not None:
            joined = self._joined.get(model)
            if joined is None:
                joined = self._joined[model] = Joined(partial(self._verified, model), self._most_calls)
            return await joined(asked)
        (found,) = await self._verified(model, [asked])
        return found

    async def _verified(self, model: str, asked: Sequence[ScoresAsked]) -> Any:
        if self._verifier_handle is None:
            return await self.score_candidates(model, asked)
        return await call(method_of(self._verifier_handle, "score_candidates", model), model, asked)

    async def _sampler(self, model: str) -> "Sampler":
        found: Sampler = await self._of(model, FDM)
        return found

    async def _verifier(self, model: str) -> "Verifier":
        found: Verifier = await self._of(model, IDM)
        return found

    async def _of(self, model: str, task: str) -> Any:
        return self._own[task] if model == task or self._adapters is None else await self._adapters.of(model)
