"""A forward model in a replica: it moves arrays in and out of ``wm.dynamics``, and holds no method."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import Any

import numpy as np

from serve_apps import metrics
from serve_apps.messages import Found, Preview, Question, RolloutFound, StepFound
from serve_apps.predicting import Predictor, Score
from serve_apps.process import Process, decode_a_token, described
from serve_apps.recipe import FDM
from wm.dynamics import Role, Sampling, Start, check_draft_length, speculate_observations
from wm.dynamics.fdm import forward_prefix
from wm.images import Pixels
from wm.sampling import ImagePool, ImageRequest
from wm.sampling.guidance import need_guidable

LINES = 16
"""In so many parts an image grows, at least, where it has as many tokens."""


class Sampler:
    """Source image and action to verified predictions: one FDM. The images of all requests grow together in its
    process's thread; ``score`` asks an IDM, wherever that is."""

    def __init__(self, role: Role, process: Process, score: Score) -> None:
        recipe = process.recipe
        self._model, self._decoder, self._block = role.model, role.decoder, recipe.block
        if (recipe.guidance, recipe.guidance_image) != (1.0, 1.0):
            need_guidable(self._model)
        check_draft_length(self._block, self._model.tokens_per_image)
        self._thread, self._codec = process.thread, process.codec
        self._codec.need_decoder()
        self._predictor = Predictor(self, score)
        # Requests join, and progress is told, often enough for an early preview, seldom enough to cost nothing.
        line = max(1, self._model.tokens_per_image // LINES)
        self._pool = ImagePool(self._model, self._decoder, line_tokens=line)

    def describe(self) -> dict[str, Any]:
        """Describe what ``GET /v1/models`` reports."""
        return described(self._model, FDM, self._codec)

    async def check_health(self) -> None:
        """Decode a token, in its turn; raises what that raises."""
        await self._thread.call(partial(decode_a_token, self._model, self._decoder))

    async def predict(self, question: Question) -> Found:
        """Return the verified prediction."""
        return await self._predictor.predict(question)

    async def predict_with_previews(self, question: Question) -> AsyncGenerator[Preview | Found, None]:
        """Previews of the first candidate while it grows, then the prediction."""
        async for item in self._predictor.predict_with_previews(question, self._model.tokens_per_image):
            yield item

    async def roll_out(self, question: Question) -> AsyncGenerator[StepFound | RolloutFound, None]:
        """Each step of a rollout as it is found, then the whole."""
        async for item in self._predictor.roll_out(question):
            yield item

    # What ``serve_apps.predicting`` asks of a drawer.

    async def encode(self, source_HWC: Pixels) -> list[int]:
        """Codes of a picture."""
        with metrics.stage("encode"):
            return await self._thread.together(self._encode, source_HWC)

    async def draw(self, start: Start, candidates: range, sampling: Sampling, on_tokens: Any = None) -> Any:
        """Codes int64 (K, N) of ``candidates``; ``on_tokens`` is given the first one's while it grows, where images
        grow token by token (``block`` = 0)."""
        with metrics.stage("draw"):
            codes_KN = await self._draw(start, candidates, sampling, on_tokens)
        metrics.record(metrics.TOKENS, codes_KN.numel())
        return codes_KN

    async def _draw(self, start: Start, candidates: range, sampling: Sampling, on_tokens: Any) -> Any:
        if self._block:
            return await self._thread.call(partial(self._speculate, start, candidates, sampling))
        prefix = forward_prefix(self._model, start.source, start.action)
        request = ImageRequest(prefix, len(candidates), sampling, start.seed, candidates.start)

        def tell(grown: Any) -> None:
            if grown.candidates.start == candidates.start:
                on_tokens(grown.codes[0])

        return await self._thread.images(self._pool, request, None if on_tokens is None else tell)

    async def decode(self, codes_KN: Any) -> Pixels:
        """Pixels uint8 (K, height, width, 3) of codes."""
        with metrics.stage("decode"):
            return await self._thread.together(self._decode, codes_KN)

    def count_tokens(self, action: str) -> int:
        """Of the action's text."""
        return len(self._model.tokenize_action(action))

    def _encode(self, sources: Sequence[Pixels]) -> list[list[int]]:
        codes_BN: list[list[int]] = self._codec.encode(np.stack(sources)).tolist()
        return codes_BN

    def _decode(self, asked: Sequence[Any]) -> list[Pixels]:
        codes = [np.asarray(codes_KN) for codes_KN in asked]
        ends = np.cumsum([len(codes_KN) for codes_KN in codes])[:-1]
        return np.split(self._codec.decode(np.concatenate(codes)), ends)

    def _speculate(self, start: Start, candidates: range, sampling: Sampling) -> Any:
        found = speculate_observations(
            self._model,
            [start.source],
            [start.action],
            num_draft_tokens=self._block,
            num_samples=len(candidates),
            first_candidate=candidates.start,
            sampling=sampling,
            seed=start.seed,
            decoder=self._decoder,
        )
        if found.examined.any():
            metrics.record(metrics.ACCEPTED, float(found.confirmed.sum() / found.examined.sum()))
        return found.codes[0]
