"""The deployment of the inverse model: it moves arrays in and out of ``wm.dynamics``, and holds no method of its own.

Shape suffixes: B images, N image tokens.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from itertools import islice
from typing import ClassVar

import numpy as np

from serve_apps import metrics
from serve_apps.model_server import ModelServer
from serve_apps.names import IDM
from serve_apps.openai.chat import ChatRequest
from serve_apps.openai.errors import ApiError
from serve_apps.openai.score import ScoreRequest
from serve_apps.results import BeliefEntry, Score, SentImage, TokenEntry
from serve_apps.served_models import CodeModel, PixelModel
from wm.dynamics import Observation
from wm.dynamics.idm import ActionToken, Belief, ProposalStream, count_free_positions
from wm.dynamics.pixel_proposals import PixelProposals
from wm.images import Pixels
from wm.sampling.texts import TextBatch, TextToken, decode_texts

# Of a large request, what is scored or proposed before others have their turn.
MAX_PAIRS_A_TURN, MAX_TOKENS_A_TURN = 16, 8
# A source, an action, and what it may have led to.
Candidates = tuple[Observation, str, Sequence[Observation]]
TextSteps = list[list[TextToken | None]]
InverseServed = CodeModel | PixelModel


class IDMServer(ModelServer):
    """Score actions between a source and its targets, and propose the action between two images."""

    TASKS: ClassVar[tuple[str, ...]] = (IDM,)

    async def score_candidates(
        self, model: str, source: SentImage, action: str, candidates: Sequence[SentImage], codec_id: str
    ) -> list[Score]:
        """Score log p(action | source, candidate) of each candidate.

        Args:
            model: Name of the inverse model.
            source: Codes (N,) of the source image, or its pixels, uint8 (height, width, 3).
            action: In words.
            candidates: In the same form.
            codec_id: Of the codes; empty for pixels.
        """
        inverse = await self._inverse_model(model)
        images = [_to_observation(inverse, image, codec_id) for image in (source, *candidates)]
        return await self.score_observations(model, images[0], action, images[1:])

    async def score_observations(
        self, model: str, source: Observation, action: str, candidates: Sequence[Observation]
    ) -> list[Score]:
        """Score as :meth:`score_candidates`, images of this process.

        Args:
            model: Name of the inverse model.
            source: The source image.
            action: In words.
            candidates: What it may have led to.
        """
        return await self._thread.batch(_score, await self._inverse_model(model), (source, action, candidates))

    async def check_actions(self, model: str, actions: Sequence[str]) -> None:
        """Raise :class:`wm.errors.InputError` if an inverse model cannot read an action, before images are made for it.

        Args:
            model: Its name.
            actions: In words.
        """
        inverse = await self._inverse_model(model)
        for action in actions:
            inverse.check_action(action)

    async def score(self, request: ScoreRequest, images_BHWC: Pixels) -> list[list[Score]]:
        """Score every action of the request for every target.

        Args:
            request: Its actions.
            images_BHWC: uint8, the source and then the targets.

        Returns:
            A list for each target, with a score for each action.
        """
        # 1. All images in the model's form; codes of the source once.
        model, actions = await self._inverse_model(request.model), request.actions
        source, *targets = await self._observe(model, images_BHWC)
        # 2. Pairs, a turn at a time: others go between.
        pairs = [(source, action, [target]) for target in targets for action in actions]
        scores: list[Score] = []
        with metrics.stage("score"):
            for start in range(0, len(pairs), MAX_PAIRS_A_TURN):
                turn = (self._thread.batch(_score, model, pair) for pair in pairs[start : start + MAX_PAIRS_A_TURN])
                scores += [score for (score,) in await asyncio.gather(*turn)]
        return [scores[start : start + len(actions)] for start in range(0, len(scores), len(actions))]

    async def propose(self, request: ChatRequest, images_BHWC: Pixels) -> list[int | list[TokenEntry]]:
        """Return all that :meth:`propose_stream` yields, for the same arguments.

        Args:
            request: How to sample.
            images_BHWC: uint8 (2, height, width, 3).
        """
        return [item async for item in self._propose(request, images_BHWC, MAX_TOKENS_A_TURN)]

    async def propose_stream(
        self, request: ChatRequest, images_BHWC: Pixels
    ) -> AsyncGenerator[int | list[TokenEntry], None]:
        """Propose the actions between two images, token by token.

        A reader that stops, stops the decoding.

        Args:
            request: How many actions, and how to sample them.
            images_BHWC: uint8 (2, height, width, 3), the source and then the target.

        Yields:
            How many tokens the actions follow; then, step by step, a list of their next tokens.
        """
        async for item in self._propose(request, images_BHWC, 1):
            yield item

    async def _propose(
        self, request: ChatRequest, images_BHWC: Pixels, tokens_a_turn: int
    ) -> AsyncGenerator[int | list[TokenEntry], None]:
        model = await self._inverse_model(request.model)
        if isinstance(model, PixelModel):
            async for item in self._propose_by_pixels(model, request, images_BHWC, tokens_a_turn):
                yield item
            return
        source, target = await self._encode(model.codec, images_BHWC)
        # A bound beyond the model's own changes no answer; without a free position, ProposalStream says so.
        bound = max(1, count_free_positions(model.vlm, source, target))
        proposing = ProposalStream(
            model.vlm,
            model.runner,
            source,
            target,
            num_candidates=request.n,
            sampling=request.to_sampling(),
            seed=request.seed,
            num_top=request.top_logprobs,
            max_new_tokens=min(request.max_completion_tokens, bound),
        )
        yield proposing.prompt_tokens
        with metrics.stage("propose"):
            while not proposing.batch.is_finished:
                # Tokens become text here, not in the thread, which has models to run.
                for step in await self._thread.batch(_advance, model, (proposing.batch, tokens_a_turn)):
                    yield [_to_entry(token) for token in proposing.describe_step(step)]

    async def _propose_by_pixels(
        self, model: PixelModel, request: ChatRequest, images_BHWC: Pixels, tokens_a_turn: int
    ) -> AsyncGenerator[int | list[TokenEntry], None]:
        # The processor scales and normalises images, which takes as long as a pass of a small model.
        proposing = await self._thread.call(_start_proposals, model, request, images_BHWC)
        yield proposing.prompt_tokens
        with metrics.stage("propose"):
            while not proposing.is_finished:
                steps = await self._thread.batch(_advance_by_pixels, model, (proposing, tokens_a_turn))
                if isinstance(steps, Exception):
                    raise steps
                for step in steps:
                    yield [_to_entry(token) for token in step]

    async def _inverse_model(self, name: str) -> InverseServed:
        model = await self._model(name)
        # The ingress looks tasks up: only one that does not know this replica's recipe asks for another.
        if not isinstance(model, InverseServed):
            raise ApiError(f"model {name!r:.80} describes no actions", param="model")
        return model


def _to_observation(model: InverseServed, image: SentImage, codec_id: str) -> Observation:
    if not codec_id:
        return Observation.from_pixels(np.asarray(image))
    # While an application is replaced, replicas of the recipe before ask too: numbers of another codebook.
    if not isinstance(model, CodeModel) or model.vlm.codec_id != codec_id:
        message = f"codes of codec {codec_id} are not this verifier's; try again"
        raise ApiError.unavailable(message, "models_do_not_match")
    return Observation.from_codes(np.asarray(image).tolist(), model.codec)


def _score(model: InverseServed, requests: Sequence[Candidates]) -> list[list[Score]]:
    """Score the candidates of several requests in one call, so that a source they share is read once."""
    # One row a candidate; the library reads equal sources once.
    rows = [(source, target, action) for source, action, candidates in requests for target in candidates]
    sources, targets, actions = zip(*rows, strict=True)
    scores = iter(model.inverse.score(sources, targets, actions))
    return [
        [(score.logprob, score.num_tokens) for score in islice(scores, len(candidates))]
        for _, _, candidates in requests
    ]


def _advance(model: CodeModel, requests: Sequence[tuple[TextBatch, int]]) -> list[TextSteps]:
    """Take as many steps of each run as are asked for, or up to its end; a step is one pass for all of them."""
    steps: list[TextSteps] = [[] for _ in requests]
    for turn in range(max(count for _, count in requests)):
        rows = [row for row, (run, count) in enumerate(requests) if turn < count and not run.is_finished]
        try:
            tokens = decode_texts(model.runner, [requests[row][0] for row in rows]) if rows else []
        except Exception:
            # The steps so far are returned; what went wrong comes again at the next turn, or does not.
            if not turn:
                raise
            return steps
        for row, step in zip(rows, tokens, strict=True):
            steps[row].append(step)
    return steps


def _start_proposals(model: PixelModel, request: ChatRequest, images_BHWC: Pixels) -> PixelProposals:
    return PixelProposals(
        model.inverse,
        Observation.from_pixels(images_BHWC[0]),
        Observation.from_pixels(images_BHWC[1]),
        num_candidates=request.n,
        sampling=request.to_sampling(),
        seed=request.seed,
        num_top=request.top_logprobs,
        max_new_tokens=request.max_completion_tokens,
    )


def _advance_by_pixels(
    _: PixelModel, requests: Sequence[tuple[PixelProposals, int]]
) -> list[list[list[ActionToken]] | Exception]:
    """Take as many steps of each run as are asked for, or up to its end."""
    results: list[list[list[ActionToken]] | Exception] = []
    for proposing, count in requests:
        steps: list[list[ActionToken]] = []
        try:
            while len(steps) < count and not proposing.is_finished:
                steps.append(proposing.advance())
        except Exception as error:  # its request's alone: the others have advanced, and cannot be tried again
            results.append(error)
        else:
            results.append(steps)
    return results


def _to_entry(token: ActionToken) -> TokenEntry:
    return {
        "sample": token.sample,
        "released": token.released,
        "chosen": _to_belief_entry(token.chosen),
        "top": [_to_belief_entry(belief) for belief in token.top],
        "finish": token.finish,
    }


def _to_belief_entry(belief: Belief) -> BeliefEntry:
    return {"name": belief.name, "text": belief.text, "logprob": belief.logprob}
