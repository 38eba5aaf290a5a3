"""Actions proposed in a replica's thread: those of all requests grow together, and other work goes between."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

from serve_apps import metrics
from serve_apps.messages import WhatHappened
from serve_apps.model_thread import ModelThread
from wm.dynamics.idm import ProposalStream, count_free_positions
from wm.models.vlm import UnifiedVLM
from wm.sampling import ModelRunner, Sampling
from wm.sampling.texts import TextBatch, TextToken, decode_texts

_Steps: TypeAlias = list[list[TextToken | None]]


class Proposer:
    """Of one IDM and the thread that owns it."""

    def __init__(self, idm: UnifiedVLM, runner: ModelRunner, thread: ModelThread) -> None:
        self._idm, self._runner, self._thread = idm, runner, thread

    async def propose(
        self, source: Sequence[int], target: Sequence[int], question: WhatHappened, tokens_a_turn: int
    ) -> AsyncGenerator[Any, None]:
        """How many tokens the actions follow; then, step by step, a list of their next tokens, as dicts. Others have
        their turn after ``tokens_a_turn`` of them."""
        sampling = Sampling(**question.sampling)
        # A bound beyond the model's own changes no answer; without a free position, ProposalStream says so.
        bound = max(1, count_free_positions(self._idm, source, target))
        settings = {**question.settings, "max_new_tokens": min(question.settings["max_new_tokens"], bound)}
        proposing = ProposalStream(self._idm, self._runner, source, target, sampling=sampling, **settings)
        yield proposing.prompt_tokens
        with metrics.stage("propose"):
            while not proposing.batch.is_finished:
                # Tokens become text here, not in the thread, which has models to run.
                for step in await self._thread.together(self.advance, (proposing.batch, tokens_a_turn)):
                    yield [asdict(token) for token in proposing.describe_step(step)]

    def advance(self, asked: Sequence[tuple[TextBatch, int]]) -> list[_Steps]:
        """Of each, as many steps as are asked for, or up to its end: each step one pass for all of them."""
        steps: list[_Steps] = [[] for _ in asked]
        for turn in range(max(count for _, count in asked)):
            now = [row for row, (run, count) in enumerate(asked) if turn < count and not run.is_finished]
            try:
                found = decode_texts(self._runner, [asked[row][0] for row in now]) if now else []
            except Exception:
                # What was found is given; what went wrong comes again at the next turn, or does not.
                if not turn:
                    raise
                return steps
            for row, step in zip(now, found, strict=True):
                steps[row].append(step)
        return steps
