"""The deployment of the forward model: it drives the search and rollout states of ``wm.dynamics`` with the models of
its process, and holds no method of its own.

All of it runs in the event loop; the models work in their thread.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from ray.serve.handle import DeploymentHandle
from torch import Tensor

from serve_apps import metrics
from serve_apps.calls import call
from serve_apps.candidates import no_image, record_candidates, record_prediction
from serve_apps.idm_server import IDMServer
from serve_apps.model_server import ModelServer
from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError
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
    failures_of,
    place_previews,
    verification_of,
)
from serve_apps.served_editor import EditorModel
from serve_apps.served_models import CodeModel, OnTokens, Samples
from wm.dynamics import (
    Observation,
    Prediction,
    RolloutState,
    SampleFailure,
    Sampling,
    ScoredAction,
    Search,
    SearchState,
    Start,
    check_draft_length,
)
from wm.dynamics.observation import pixels_of, unchanged_share
from wm.images import Pixels


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
        for model in (self._own[name] for name in (FDM, BASELINE) if name in self._own):
            if not isinstance(model, CodeModel):
                continue
            if (recipe.guidance_scale, recipe.image_guidance_scale) != (1.0, 1.0):
                model.vlm.check_guidance()
            check_draft_length(recipe.num_draft_tokens, model.vlm.tokens_per_image)
            model.codec.check_decoder()

    async def predict(self, request: EditRequest, source_HWC: Pixels) -> EditResult:
        """Predict the source image after the request's action.

        Args:
            request: The action, and how to sample and rank.
            source_HWC: uint8 (height, width, 3), of the model's size.
        """
        with metrics.stages_s() as stages_s:
            model = await self._forward_model(request.model)
            (source,) = await self._observe(model, [source_HWC])
            result = await self._predict(model, request, source)
        return replace(result, stages_s=stages_s)

    async def predict_with_previews(
        self, request: EditRequest, source_HWC: Pixels
    ) -> AsyncGenerator[Preview | EditResult, None]:
        """Yield previews of the first candidate while it grows, then the prediction.

        Args:
            request: With the number of previews, 0 to 3; 0 for an image editor.
            source_HWC: As for :meth:`predict`.
        """
        model = await self._forward_model(request.model)
        (source,) = await self._observe(model, [source_HWC])
        if not isinstance(model, CodeModel):
            yield await self._predict(model, request, source)
            return
        num_tokens = model.vlm.tokens_per_image
        (source_codes,) = model.inverse.codes_of([source])
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
                mixed = Observation.from_codes([*codes.tolist(), *source_codes[len(codes) :]], model.codec)
                (pixels_HWC,) = await self._decode([mixed])
                yield Preview(pixels_HWC, len(codes) / num_tokens)
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
        model = await self._forward_model(request.model)
        (source,) = await self._observe(model, [source_HWC])
        search, sampling = request.to_search(self._recipe), request.to_sampling(self._recipe)
        state = RolloutState(source, request.actions, request.seed, search)
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
            failures = [failure for prediction in predictions for failure in prediction.failures]
            if not any(prediction.candidates for prediction in predictions):
                raise no_image(failures, f"step {len(counts)} of the rollout")
            step = state.add(predictions)
            counts.append(sum(len(prediction.candidates) for prediction in predictions) + len(failures))
            best = step.beam[0]
            (pixels_HWC,) = await self._decode([best.candidates[-1].observation])
            yield RolloutStep(
                len(counts) - 1, step.action, verification_of(best.candidates[-1]), pixels_HWC, counts[-1],
                best.logprob, len(failures),
            )  # fmt: skip
        yield await self._finish_rollout(model, request, state, counts)

    async def _finish_rollout(
        self, model: CodeModel | EditorModel, request: RolloutRequest, state: RolloutState, counts: Sequence[int]
    ) -> RolloutResult:
        """Decode the best sequence, whose earlier steps need not be those that were the best then, and every end."""
        # Each list is decoded in one pass.
        rollout = state.rollout()
        best = rollout.best.candidates
        pixels = await self._decode([candidate.observation for candidate in best])
        ends = await self._decode([trajectory.candidates[-1].observation for trajectory in rollout.trajectories])
        logprobs = np.cumsum([candidate.score.logprob for candidate in best]).tolist()
        failed = [sum(len(prediction.failures) for prediction in step.predictions) for step in rollout.steps]
        steps = zip(request.actions, best, pixels, counts, logprobs, failed, strict=True)
        return RolloutResult(
            [
                RolloutStep(index, action, verification_of(candidate), pixels_HWC, count, logprob, num_failed)
                for index, (action, candidate, pixels_HWC, count, logprob, num_failed) in enumerate(steps)
            ],
            [
                BeamEnd(trajectory.logprob, trajectory.mean_logprob, trajectory.guarded, pixels_HWC)
                for trajectory, pixels_HWC in zip(rollout.trajectories, ends, strict=True)
            ],
            _count_tokens(model, request.actions),
        )

    async def _predict(
        self,
        model: CodeModel | EditorModel,
        request: EditRequest,
        source: Observation,
        on_tokens: OnTokens | None = None,
    ) -> EditResult:
        start = Start(source, request.prompt, request.seed)
        sampling = request.to_sampling(self._recipe)
        # 1. Sample, and rank unless the request leaves the candidates as they come.
        if request.verify:
            search = request.to_search(self._recipe)
            prediction = await self._search(model, request.verifier, start, search, sampling, on_tokens=on_tokens)
            images = {candidate.index: candidate.observation for candidate in prediction.candidates}
            failures = prediction.failures
            # Duplicates rank beside what they equal; a reply names all that differ before the first of them.
            ranked = sorted(prediction.candidates, key=lambda candidate: candidate.duplicate_of is not None)
            verifications = [verification_of(candidate) for candidate in ranked]
        else:
            samples = dict(enumerate(await self._sample(model, start, range(request.best_of), sampling, on_tokens)))
            images = {index: item for index, item in samples.items() if isinstance(item, Observation)}
            failures = tuple((index, item) for index, item in samples.items() if isinstance(item, SampleFailure))
            record_candidates(len(images), len(set(images.values())))
            verifications = [
                UNVERIFIED | {"seed": request.seed, "index": index, "unchanged_share": unchanged_share(source, image)}
                for index, image in images.items()
            ]
        if not images:
            raise no_image(failures, "the prediction")
        # 2. Decode those that the reply shows.
        num_shown = request.n
        if request.return_candidates:
            num_shown = sum(entry["duplicate_of"] is None for entry in verifications)
        pixels = await self._decode([images[entry["index"]] for entry in verifications[:num_shown]])
        return EditResult(
            verifications, pixels, _count_tokens(model, [request.prompt]), len(set(images.values())),
            failures=failures_of(failures),
        )  # fmt: skip

    async def _search(
        self,
        model: CodeModel | EditorModel,
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
            state.add_samples(await self._sample(model, start, state.candidates, sampling, on_first))
            unscored = state.unscored()
            scores: Sequence[Score] = []
            if unscored:
                # The verifier, and what tells an unchanged image, need pixels where there is no common codec.
                if not self._kinds.exchanges_codes:
                    await self._decode(unscored)
                with metrics.stage("score"):
                    scores = await self._score(verifier, start.source, start.action, unscored)
            state.add_scores([ScoredAction(start.action, logprob, count) for logprob, count in scores])
        prediction = state.prediction()
        record_prediction(prediction)
        return prediction

    async def _score(
        self, verifier: str, source: Observation, action: str, candidates: Sequence[Observation]
    ) -> Sequence[Score]:
        # Codes are a thousandth of the pixels, and need no decoding there and back.
        codec_id = self._kinds.codecs[FDM] if self._kinds.exchanges_codes else ""
        sent = [item.codes for item in (source, *candidates)] if codec_id else pixels_of([source, *candidates])
        scores: list[Score] = await call(
            self._idm, "score_candidates", verifier, sent[0], action, sent[1:], codec_id, model=verifier
        )
        return scores

    async def _forward_model(self, name: str) -> CodeModel | EditorModel:
        model = await self._model(name)
        # The ingress looks tasks up: only one that does not know this replica's recipe asks for another.
        if not isinstance(model, CodeModel | EditorModel):
            raise ApiError(f"model {name!r:.80} predicts no images", param="model")
        return model

    async def _sample(
        self,
        model: CodeModel | EditorModel,
        start: Start,
        candidates: range,
        sampling: Sampling,
        on_tokens: OnTokens | None,
    ) -> Samples:
        """Sample candidates; ``on_tokens`` is given the first one's codes while it grows, where it does."""
        with metrics.stage("sample"):
            if isinstance(model, EditorModel):
                return await model.sample(self._thread, start, candidates)
            return await model.sample(
                self._thread, start, candidates, sampling, num_draft_tokens=self._recipe.num_draft_tokens,
                on_tokens=on_tokens,
            )  # fmt: skip


class WorldModelServer(FDMServer, IDMServer):
    """Both models in one process."""

    TASKS: ClassVar[tuple[str, ...]] = (FDM, IDM)

    async def _score(
        self, verifier: str, source: Observation, action: str, candidates: Sequence[Observation]
    ) -> Sequence[Score]:
        return await self.score_observations(verifier, source, action, candidates)


def _count_tokens(model: CodeModel | EditorModel, actions: Sequence[str]) -> int | None:
    """Count the tokens of actions; None of an editor, whose parts read them each in its own way."""
    return sum(map(model.count_tokens, actions)) if isinstance(model, CodeModel) else None
