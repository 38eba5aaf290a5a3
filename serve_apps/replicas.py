"""The two models behind the ingress. They move arrays in and out of ``wm.dynamics``, and hold no method."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_apps.calls import call
from serve_apps.messages import Found, Preview, Question, RolloutFound, StepFound, WhatHappened
from serve_apps.recipe import FDM, IDM, ServeRecipe
from wm.images import Pixels

if TYPE_CHECKING:  # torch is for the replicas alone; the ingress starts without it
    from serve_apps.model_thread import ModelThread
    from wm.dynamics import Sampling, Start

LINES = 16
"""In so many parts an image grows, at least, where it has as many tokens."""
IMAGES_A_TURN, PAIRS_A_TURN, TOKENS_A_TURN = 8, 16, 8
"""Of a large request, what is encoded, scored or proposed before others have their turn."""


def _describe(model: Any, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "family": model.family,
        "base": model.base_id,
        "codec": model.codec_id,
        "tokens_per_image": model.tokens_per_image,
    }


class Sampler:
    """Source image and action to verified predictions: the FDM, the image codec, and ``verifier``, an IDM in this
    process or behind a deployment handle.

    The images of all requests grow together in one thread. ``role``: the FDM and its decoder as they were loaded
    together with the IDM's, and ``thread``, in which both work; read and made here without them.
    """

    def __init__(
        self,
        recipe: ServeRecipe,
        verifier: Any,
        role: Any = None,
        thread: "ModelThread | None" = None,
        codec: Any = None,
    ) -> None:
        from serve_apps.model_thread import ModelThread
        from serve_apps.predicting import Predictor
        from wm.dynamics import check_block
        from wm.sampling import ImagePool
        from wm.sampling.guidance import need_guidable

        role = role or _load(recipe, recipe.fdm)
        self._model, self._decoder, self._block = role.model, role.decoder, recipe.block
        if (recipe.guidance, recipe.guidance_image) != (1.0, 1.0):
            need_guidable(self._model)
        check_block(self._block, self._model.tokens_per_image)
        self._codec = codec or _codec(recipe, recipe.fdm)
        self._codec.need_decoder()
        score = verifier.score_candidates
        self._predictor = Predictor(self, partial(call, score) if hasattr(score, "remote") else score)
        # Requests join, and progress is told, often enough for an early preview, seldom enough to cost nothing.
        line = max(1, self._model.tokens_per_image // LINES)
        self._pool = ImagePool(self._model, self._decoder, line_tokens=line)
        self.thread = thread or ModelThread()

    def describe(self, task: str = FDM) -> dict[str, Any]:
        """What ``GET /v1/models`` tells, and ``side_px`` of the square images read and written."""
        return _describe(self._model, task) | {"side_px": self._codec.side_px}

    async def check_health(self) -> None:
        """Decodes a token, in its turn; raises what that raises."""
        await self.thread.call(partial(_decode_a_token, self._model, self._decoder))

    async def predict(self, question: Question) -> Found:
        """The verified prediction."""
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
        return await self.thread.together(self._encode, source_HWC)

    async def draw(self, start: "Start", candidates: range, sampling: "Sampling", on_tokens: Any = None) -> Any:
        """Codes int64 (K, N) of ``candidates``; ``on_tokens`` is given the first one's while it grows, where images
        grow token by token (``block`` = 0)."""
        from wm.dynamics.fdm import forward_prefix
        from wm.sampling import ImageRequest

        if self._block:
            return await self.thread.call(partial(self._speculate, start, candidates, sampling))
        prefix = forward_prefix(self._model, start.source, start.action)
        request = ImageRequest(prefix, len(candidates), sampling, start.seed, candidates.start)

        def tell(grown: Any) -> None:
            if grown.candidates.start == candidates.start:
                on_tokens(grown.codes[0])

        return await self.thread.images(self._pool, request, None if on_tokens is None else tell)

    async def decode(self, codes_KN: Any) -> Pixels:
        """Pixels uint8 (K, height, width, 3) of codes."""
        return await self.thread.together(self._decode, codes_KN)

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

    def _speculate(self, start: "Start", candidates: range, sampling: "Sampling") -> Any:
        from wm.dynamics import speculate_observations

        return speculate_observations(
            self._model,
            [start.source],
            [start.action],
            block=self._block,
            num_samples=len(candidates),
            first_candidate=candidates.start,
            sampling=sampling,
            seed=start.seed,
            decoder=self._decoder,
        ).codes[0]


class Verifier:
    """Tells how likely the IDM finds an action between a source and each candidate, and which one it sees itself.

    ``role``, ``thread`` and ``codec`` as in :class:`Sampler`.
    """

    def __init__(
        self, recipe: ServeRecipe, role: Any = None, thread: "ModelThread | None" = None, codec: Any = None
    ) -> None:
        from serve_apps.model_thread import ModelThread
        from serve_apps.proposing import Proposer

        role = role or _load(recipe, recipe.idm)
        self._model, self._decoder = role.model, role.decoder
        self.codec = codec or _codec(recipe, recipe.idm)
        self.thread = thread or ModelThread()
        self._proposer = Proposer(self._model, self._decoder, self.thread)

    def describe(self, task: str = IDM) -> dict[str, Any]:
        """What ``GET /v1/models`` tells, and ``side_px`` of the square images read."""
        return _describe(self._model, task) | {"side_px": self.codec.side_px}

    async def check_health(self) -> None:
        """Decodes a token, in its turn; raises what that raises."""
        await self.thread.call(partial(_decode_a_token, self._model, self._decoder))

    async def score_candidates(
        self, source: Sequence[int], action: str, candidates: Sequence[Sequence[int]]
    ) -> list[tuple[float, int]]:
        """log p(action | source, candidate) in nats and the action's tokens, of each candidate."""
        return await self.thread.together(self._score, (source, action, candidates))

    async def score(self, images_BHWC: Pixels, actions: Sequence[str]) -> list[list[tuple[float, int]]]:
        """Of each image after the first, the source, and each action: as :meth:`score_candidates`."""
        source, *targets = await self._codes(images_BHWC)
        pairs = [(source, action, [target]) for target in targets for action in actions]
        scores: list[tuple[float, int]] = []
        for start in range(0, len(pairs), PAIRS_A_TURN):
            asked = (self.thread.together(self._score, pair) for pair in pairs[start : start + PAIRS_A_TURN])
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
        for start in range(0, len(images_BHWC), IMAGES_A_TURN):
            found += await self.thread.together(self._encode, images_BHWC[start : start + IMAGES_A_TURN])
        return found

    def _encode(self, asked: Sequence[Pixels]) -> list[list[list[int]]]:
        codes = iter(self.codec.encode(np.concatenate(asked)).tolist())
        return [list(islice(codes, len(images))) for images in asked]

    def _score(self, asked: Sequence[tuple[Any, str, Any]]) -> list[list[tuple[float, int]]]:
        from wm.dynamics import score_actions

        rows = [(source, codes, action) for source, action, candidates in asked for codes in candidates]
        sources, targets, actions = zip(*rows, strict=True)
        scores = iter(score_actions(self._model, sources, targets, actions, decoder=self._decoder))
        return [[(found.logprob, found.num_tokens) for found in islice(scores, len(each))] for _, _, each in asked]


class Both(Sampler):
    """Sampler and verifier in one process and one thread, over one copy of their base's weights or two."""

    def __init__(self, recipe: ServeRecipe) -> None:
        from wm.dynamics import load_roles

        weights: Any = recipe.roles
        roles = load_roles(recipe.fdm, recipe.idm, weights=weights, **_how(recipe))
        self._verifier = Verifier(recipe, roles.idm)
        super().__init__(recipe, self._verifier, roles.fdm, self._verifier.thread, self._verifier.codec)

    def describe(self, task: str = FDM) -> dict[str, Any]:
        """Of the model that does ``task``."""
        return super().describe() if task == FDM else self._verifier.describe()

    async def check_health(self) -> None:
        """Both decode a token, in their turn."""
        await super().check_health()
        await self._verifier.check_health()

    async def score_candidates(
        self, source: Sequence[int], action: str, candidates: Sequence[Sequence[int]]
    ) -> list[tuple[float, int]]:
        """See :meth:`Verifier.score_candidates`."""
        return await self._verifier.score_candidates(source, action, candidates)

    async def score(self, images_BHWC: Pixels, actions: Sequence[str]) -> list[list[tuple[float, int]]]:
        """See :meth:`Verifier.score`."""
        return await self._verifier.score(images_BHWC, actions)

    async def propose(self, question: WhatHappened) -> list[Any]:
        """See :meth:`Verifier.propose`."""
        return await self._verifier.propose(question)

    async def propose_stream(self, question: WhatHappened) -> AsyncGenerator[Any, None]:
        """See :meth:`Verifier.propose_stream`."""
        async for item in self._verifier.propose_stream(question):
            yield item


def _decode_a_token(model: Any, decoder: Any) -> None:
    import torch

    with torch.no_grad():
        _, last_PH = decoder.prefill([[model.bos_id]])
        decoder.image_logits(last_PH)


def _load(recipe: ServeRecipe, folder: str) -> Any:
    """One role; its adapter is merged into the weights."""
    from wm.dynamics import load_role

    return load_role(folder, **_how(recipe))


def _codec(recipe: ServeRecipe, folder: str) -> Any:
    """The image codec of a role, or of its base."""
    from wm.models import load_codec

    return load_codec(recipe.base or folder, device=recipe.device)


def _how(recipe: ServeRecipe) -> dict[str, Any]:
    """Where models are read to; the process takes its number of threads."""
    import torch

    torch.set_num_threads(max(1, int(recipe.cpus_per_replica)))
    return {"base": recipe.base, "device": recipe.device, "dtype": getattr(torch, recipe.dtype)}
