"""An inverse model in a replica: it moves arrays in and out of ``wm.dynamics``, and holds no method."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from serve_apps import metrics
from serve_apps.messages import WhatHappened
from serve_apps.process import Process, decode_a_token, described
from serve_apps.proposing import Proposer
from serve_apps.recipe import IDM
from wm.dynamics import Role, score_actions
from wm.images import Pixels

IMAGES_A_TURN, PAIRS_A_TURN, TOKENS_A_TURN = 8, 16, 8
"""Of a large request, what is encoded, scored or proposed before others have their turn."""


class Verifier:
    """Tells how likely one IDM finds an action between a source and each candidate, and which one it sees itself."""

    def __init__(self, role: Role, process: Process) -> None:
        self._model, self._decoder = role.model, role.decoder
        self._thread, self._codec = process.thread, process.codec
        self._proposer = Proposer(self._model, self._decoder, self._thread)

    def describe(self) -> dict[str, Any]:
        """Describe what ``GET /v1/models`` reports."""
        return described(self._model, IDM, self._codec)

    async def check_health(self) -> None:
        """Decode a token, in its turn; raises what that raises."""
        await self._thread.call(partial(decode_a_token, self._model, self._decoder))

    async def score_candidates(
        self, source: Sequence[int], action: str, candidates: Sequence[Sequence[int]]
    ) -> list[tuple[float, int]]:
        """Compute log p(action | source, candidate) in nats and the action's tokens, of each candidate."""
        return await self._thread.together(self._score, (source, action, candidates))

    async def score(self, images_BHWC: Pixels, actions: Sequence[str]) -> list[list[tuple[float, int]]]:
        """Of each image after the first, the source, and each action: as :meth:`score_candidates`."""
        source, *targets = await self._codes(images_BHWC)
        pairs = [(source, action, [target]) for target in targets for action in actions]
        scores: list[tuple[float, int]] = []
        with metrics.stage("score"):
            for start in range(0, len(pairs), PAIRS_A_TURN):
                asked = (self._thread.together(self._score, pair) for pair in pairs[start : start + PAIRS_A_TURN])
                scores += [found for (found,) in await asyncio.gather(*asked)]
        return [scores[start : start + len(actions)] for start in range(0, len(scores), len(actions))]

    async def propose(self, question: WhatHappened) -> list[Any]:
        """All that :meth:`propose_stream` yields."""
        source, target = await self._codes(question.images)
        return [item async for item in self._proposer.propose(source, target, question, TOKENS_A_TURN)]

    async def propose_stream(self, question: WhatHappened) -> AsyncGenerator[Any, None]:
        """How many tokens the actions follow; then, step by step, a list of their next tokens:
        ``wm.dynamics.idm.ActionToken`` as dicts. A reader that stops, stops the decoding."""
        source, target = await self._codes(question.images)
        async for item in self._proposer.propose(source, target, question, 1):
            yield item

    async def _codes(self, images_BHWC: Pixels) -> list[list[int]]:
        found: list[list[int]] = []
        with metrics.stage("encode"):
            for start in range(0, len(images_BHWC), IMAGES_A_TURN):
                found += await self._thread.together(self._encode, images_BHWC[start : start + IMAGES_A_TURN])
        return found

    def _encode(self, asked: Sequence[Pixels]) -> list[list[list[int]]]:
        codes = iter(self._codec.encode(np.concatenate(asked)).tolist())
        return [list(islice(codes, len(images))) for images in asked]

    def _score(self, asked: Sequence[tuple[Any, str, Any]]) -> list[list[tuple[float, int]]]:
        rows = [(source, codes, action) for source, action, candidates in asked for codes in candidates]
        sources, targets, actions = zip(*rows, strict=True)
        scores = iter(score_actions(self._model, sources, targets, actions, decoder=self._decoder))
        return [[(found.logprob, found.num_tokens) for found in islice(scores, len(each))] for _, _, each in asked]
