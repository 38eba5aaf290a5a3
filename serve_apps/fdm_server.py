"""The deployment of the forward model: it drives the search and rollout states of ``wm.dynamics`` with the models of
its process, and holds no method of its own.

All of it runs in the event loop; the models work in their thread. Shape suffixes: K candidates, N image tokens.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from serve_apps import metrics
from serve_apps.calls import call
from serve_apps.idm_server import IDMServer
from serve_apps.model_server import Codes, ModelServer, ServedModel
from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.rollouts import RolloutRequest
from serve_apps.recipe import ServeRecipe
from serve_apps.results import (
    UNVERIFIED,
    BeamEnd,
    EditResult,
    Preview,
    RolloutResult,
    RolloutStep,
    Score,
    place_previews,
    verification_of,
)
from wm.dynamics import (
    Observation,
    Prediction,
    RolloutState,
    Sampling,
    ScoredAction,
    Search,
    SearchState,
    Start,
    check_draft_length,
    observe_codes,
    speculate_observations,
)
from wm.dynamics.fdm import forward_prefix
from wm.images import Pixels
from wm.judging import unchanged_share
from wm.sampling import ImageRequest, StepOutput

# Given the first candidate's codes so far, int64 (n,).
OnTokens = Callable[[Tensor], object]


class FDMServer(ModelServer):
    """Turn source images and actions into verified predictions.

    Args:
        recipe: What is served.
        idm: Where candidates are scored; None: in this process (:class:`WorldModelServer`).
    """

    TASKS: ClassVar[tuple[str, ...]] = (FDM,)

    def __init__(self, recipe: ServeRecipe, idm: DeploymentHandle | None = None) -> None:
        super().__init__(recipe)
        self._idm = idm
        # What the recipe asks for and the model cannot do fails now, not with the first request.
        for vlm in (self._own[name].vlm for name in (FDM, BASELINE) if name in self._own):
            if (recipe.guidance_scale, recipe.image_guidance_scale) != (1.0, 1.0):
                vlm.check_guidance()
            check_draft_length(recipe.num_draft_tokens, vlm.tokens_per_image)
        self._codec.check_decoder()

    async def predict(self, request: EditRequest, source_HWC: Pixels) -> EditResult:
        """Predict the source image after the request's action.

        Args:
            request: The action, and how to sample and rank.
            source_HWC: uint8 (height, width, 3), of the codec's size.
        """
        with metrics.stages_s() as stages_s:
            model = await self._model(request.model)
            (source,) = await self._encode(source_HWC[None])
            result = await self._predict(model, request, source)
        return replace(result, stages_s=stages_s)

    async def predict_with_previews(
        self, request: EditRequest, source_HWC: Pixels
    ) -> AsyncGenerator[Preview | EditResult, None]:
        """Yield previews of the first candidate while it grows, then the prediction.

        Args:
            request: With the number of previews, 1 to 3.
            source_HWC: As for :meth:`predict`.
        """
        model = await self._model(request.model)
        (source,) = await self._encode(source_HWC[None])
        num_tokens = model.vlm.tokens_per_image
        due = place_previews(request.partial_images, num_tokens)
        updates: asyncio.Queue[Tensor | None] = asyncio.Queue()
        # The search continues while a preview is decoded; None marks its end, however it ends.
        search = asyncio.ensure_future(self._predict(model, request, source, updates.put_nowait))
        search.add_done_callback(lambda _: updates.put_nowait(None))
        try:
            while due and (codes := await updates.get()) is not None:
                if len(codes) < due[0] or len(codes) == num_tokens:
                    continue
                due = [count for count in due if count > len(codes)]
                pixels_1HWC = await self._decode([[*codes.tolist(), *source[len(codes) :]]])
                yield Preview(pixels_1HWC[0], len(codes) / num_tokens)
            yield await search
        finally:
            search.cancel()

    async def roll_out(
        self, request: RolloutRequest, source_HWC: Pixels
    ) -> AsyncGenerator[RolloutStep | RolloutResult, None]:
        """Yield the best observation after each step of a rollout, then the result.

        Args:
            request: The actions, and how to sample and rank.
            source_HWC: As for :meth:`predict`.
        """
        model = await self._model(request.model)
        (source,) = await self._encode(source_HWC[None])
        search, sampling = request.to_search(self._recipe), request.to_sampling(self._recipe)
        state = RolloutState(self._observe(source), request.actions, request.seed, search)
        counts: list[int] = []
        deadline_s = asyncio.get_running_loop().time() + self._recipe.timeout_s
        while not state.is_done:
            # Nobody waits any more; that a caller has left may not have reached a replica that was just being called.
            if asyncio.get_running_loop().time() > deadline_s:
                raise TimeoutError(f"a rollout took more than {self._recipe.timeout_s:g} s")
            # The sequences of the beam are searched from at once: their candidates share the batch.
            predictions = await asyncio.gather(
                *(self._search(model, request.verifier, start, search, sampling) for start in state.starts())
            )
            step = state.add(predictions)
            counts.append(sum(len(prediction.candidates) for prediction in predictions))
            best = step.beam[0]
            pixels_1HWC = await self._decode([best.candidates[-1].codes])
            yield RolloutStep(
                len(counts) - 1, step.action, verification_of(best.candidates[-1]), pixels_1HWC[0], counts[-1],
                best.logprob,
            )  # fmt: skip
        yield await self._finish_rollout(model, request, state, counts)

    async def _finish_rollout(
        self, model: ServedModel, request: RolloutRequest, state: RolloutState, counts: Sequence[int]
    ) -> RolloutResult:
        """Decode the best sequence, whose earlier steps need not be those that were the best then, and every end."""
        # Each list is decoded in one pass.
        rollout = state.rollout()
        best = rollout.best.candidates
        pixels_THWC = await self._decode([candidate.codes for candidate in best])
        ends_KHWC = await self._decode([trajectory.candidates[-1].codes for trajectory in rollout.trajectories])
        logprobs = np.cumsum([candidate.score.logprob for candidate in best]).tolist()
        steps = zip(request.actions, best, pixels_THWC, counts, logprobs, strict=True)
        return RolloutResult(
            [
                RolloutStep(index, action, verification_of(candidate), pixels_HWC, count, logprob)
                for index, (action, candidate, pixels_HWC, count, logprob) in enumerate(steps)
            ],
            [
                BeamEnd(trajectory.logprob, trajectory.mean_logprob, trajectory.guarded, pixels_HWC)
                for trajectory, pixels_HWC in zip(rollout.trajectories, ends_KHWC, strict=True)
            ],
            sum(len(model.vlm.tokenize_action(action)) for action in request.actions),
        )

    async def _predict(
        self, model: ServedModel, request: EditRequest, source: Codes, on_tokens: OnTokens | None = None
    ) -> EditResult:
        start = Start(self._observe(source), request.prompt, request.seed)
        sampling = request.to_sampling(self._recipe)
        # 1. Sample, and rank unless the request leaves the candidates as they come.
        if request.verify:
            search = request.to_search(self._recipe)
            prediction = await self._search(model, request.verifier, start, search, sampling, on_tokens=on_tokens)
            codes = {candidate.index: candidate.codes for candidate in prediction.candidates}
            # Duplicates rank beside what they equal; a reply names all that differ before the first of them.
            ranked = sorted(prediction.candidates, key=lambda candidate: candidate.duplicate_of is not None)
            verifications = [verification_of(candidate) for candidate in ranked]
        else:
            sampled_KN = await self._sample(model, start, range(request.best_of), sampling, on_tokens)
            codes = dict(enumerate(map(tuple, sampled_KN.tolist())))
            _record_candidates(len(codes), len(set(codes.values())))
            verifications = [
                UNVERIFIED | {"seed": request.seed, "index": index, "unchanged_share": unchanged_share(source, row)}
                for index, row in codes.items()
            ]
        # 2. Decode those that the reply shows.
        num_shown = request.n
        if request.return_candidates:
            num_shown = sum(entry["duplicate_of"] is None for entry in verifications)
        pixels_KHWC = await self._decode([codes[entry["index"]] for entry in verifications[:num_shown]])
        num_action_tokens = len(model.vlm.tokenize_action(request.prompt))
        return EditResult(verifications, pixels_KHWC, num_action_tokens, len(set(codes.values())))

    async def _search(
        self,
        model: ServedModel,
        verifier: str,
        start: Start,
        search: Search,
        sampling: Sampling,
        *,
        on_tokens: OnTokens | None = None,
    ) -> Prediction:
        state = SearchState(start.source, start.action, start.seed, search, sampling)
        while state.candidates:
            # Only the first round holds the first candidate, whose progress is reported.
            on_first = on_tokens if state.candidates.start == 0 else None
            codes_KN = (await self._sample(model, start, state.candidates, sampling, on_first)).tolist()
            state.add_samples(observe_codes(codes_KN, model.vlm.codec_id))
            unscored = [image.codes for image in state.unscored()]
            scores: Sequence[Score] = []
            if unscored:
                with metrics.stage("score"):
                    scores = await self._score(verifier, start.source.codes, start.action, unscored)
            state.add_scores([ScoredAction(start.action, logprob, count) for logprob, count in scores])
        prediction = state.prediction()
        _record_prediction(prediction)
        return prediction

    async def _score(self, verifier: str, source: Codes, action: str, candidates: Sequence[Codes]) -> Sequence[Score]:
        scores: list[Score] = await call(
            self._idm, "score_candidates", verifier, source, action, candidates, model=verifier
        )
        return scores

    def _observe(self, codes: Codes) -> Observation:
        return Observation.from_codes(codes, self._codec.codec_id)

    async def _sample(
        self, model: ServedModel, start: Start, candidates: range, sampling: Sampling, on_tokens: OnTokens | None
    ) -> Tensor:
        """Sample candidates, int64 (K, N).

        ``on_tokens`` is given the first one's codes while it grows, where images grow token by token.
        """
        with metrics.stage("sample"):
            if self._recipe.num_draft_tokens:
                # Drafts are checked a request at a time: no scheduler, and no progress to report.
                codes_KN = await self._thread.call(
                    _speculate, model, start, candidates, sampling, self._recipe.num_draft_tokens
                )
            else:
                # Else its images join those of other requests.
                prefix = forward_prefix(model.vlm, start.source.codes, start.action)
                request = ImageRequest(prefix, len(candidates), sampling, start.seed, candidates.start)

                def report(grown: StepOutput) -> None:
                    if on_tokens is not None and grown.candidates.start == candidates.start:
                        on_tokens(grown.codes[0])

                on_line = None if on_tokens is None else report
                codes_KN = await self._thread.sample(model.pool, request, on_line)
        metrics.record(metrics.TOKENS, codes_KN.numel())
        return codes_KN


class WorldModelServer(FDMServer, IDMServer):
    """Both models in one process."""

    TASKS: ClassVar[tuple[str, ...]] = (FDM, IDM)

    async def _score(self, verifier: str, source: Codes, action: str, candidates: Sequence[Codes]) -> Sequence[Score]:
        return await self.score_candidates(verifier, source, action, candidates)


def _record_prediction(prediction: Prediction) -> None:
    distinct = prediction.distinct
    _record_candidates(len(prediction.candidates), len(distinct))
    metrics.record(metrics.UNCHANGED, prediction.best.unchanged_share)
    if len(distinct) > 1:
        best, second = (candidate.score.mean_logprob for candidate in distinct[:2])
        # How sure the verifier is: near 0 it has no opinion.
        metrics.record(metrics.MARGIN, best - second)


def _record_candidates(num_sampled: int, num_distinct: int) -> None:
    metrics.record(metrics.CANDIDATES, num_sampled)
    metrics.record(metrics.DISTINCT, num_distinct / num_sampled)


def _speculate(
    model: ServedModel, start: Start, candidates: range, sampling: Sampling, num_draft_tokens: int
) -> Tensor:
    speculation = speculate_observations(
        model.vlm,
        [start.source.codes],
        [start.action],
        num_draft_tokens=num_draft_tokens,
        num_candidates=len(candidates),
        first_candidate=candidates.start,
        sampling=sampling,
        seed=start.seed,
        runner=model.runner,
    )
    if speculation.examined.any():
        metrics.record(metrics.ACCEPTED, float(speculation.confirmed.sum() / speculation.examined.sum()))
    return speculation.codes[0]
