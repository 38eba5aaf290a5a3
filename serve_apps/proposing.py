"""Actions proposed in a replica's thread: those of all requests grow together, and other work goes between."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict
from typing import Any

from serve_apps.messages import WhatHappened
from serve_apps.model_thread import ModelThread
from wm.dynamics.idm import ActionToken, Proposing, advance_proposals
from wm.models.protocol import UnifiedVLM
from wm.sampling import Decoder, Sampling


class Proposer:
    """Of one IDM and the thread that owns it."""

    def __init__(self, idm: UnifiedVLM, decoder: Decoder, thread: ModelThread) -> None:
        self._idm, self._decoder, self._thread = idm, decoder, thread

    async def propose(
        self, source: Sequence[int], target: Sequence[int], question: WhatHappened, tokens_a_turn: int
    ) -> AsyncGenerator[Any, None]:
        """How many tokens the actions follow; then, step by step, a list of their next tokens, as dicts. Others have
        their turn after ``tokens_a_turn`` of them."""
        sampling = Sampling(**question.sampling)
        proposing = Proposing(self._idm, source, target, sampling=sampling, **question.settings)
        yield proposing.prompt_tokens
        while not proposing.has_ended:
            for step in await self._thread.together(self.advance, (proposing, tokens_a_turn)):
                yield [asdict(token) for token in step]

    def advance(self, asked: Sequence[tuple[Proposing, int]]) -> list[list[list[ActionToken]]]:
        """Of each, as many steps as are asked for, or up to its end: each step one pass for all of them."""
        steps: list[list[list[ActionToken]]] = [[] for _ in asked]
        for turn in range(max(count for _, count in asked)):
            now = [row for row, (proposing, count) in enumerate(asked) if turn < count and not proposing.has_ended]
            try:
                found = advance_proposals(self._idm, self._decoder, [asked[row][0] for row in now]) if now else []
            except Exception:
                # What was found is given; what went wrong comes again at the next turn, or does not.
                if not turn:
                    raise
                return steps
            for row, step in zip(now, found, strict=True):
                steps[row].append(step)
        return steps
