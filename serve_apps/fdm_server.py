"""The deployment of the forward model: predictions and rollouts, as requests ask for them.

It drives the states of ``wm.dynamics`` with the models of its process, and holds no method of its own. All of it runs
in the event loop; the models work in their thread.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
from torch import Tensor

from serve_apps import metrics
from serve_apps.candidates import no_image, record_candidates
from serve_apps.idm_server import IDMServer
from serve_apps.names import FDM, IDM
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.rollouts import RolloutRequest
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
from serve_apps.search_server import SearchServer
from serve_apps.served_editor import EditorModel
from serve_apps.served_models import CodeModel, OnTokens
from wm.dynamics import Observation, RolloutState, SampleFailure, Start
from wm.dynamics.observation import unchanged_share
from wm.images import Pixels


class FDMServer(SearchServer):
    """Turn source images and actions into verified predictions, and sequences of them."""

    async def predict(self, request: EditRequest, source_HWC: Pixels) -> EditResult:
        """Predict the source image after the request's action.

        Args:
            request: The action, and how to sample and rank.
            source_HWC: uint8 (height, width, 3), of the model's size.
        """
        with metrics.stages_s() as stages_s:
            model = await self._forward_model(request.model)
            await self._check_actions(model, [request.prompt], request.verifier if request.verify else None)
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
        await self._check_actions(model, [request.prompt], request.verifier if request.verify else None)
        (source,) = await self._observe(model, [source_HWC])
        # Only images that grow code by code have something to show before they are complete.
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
                # What is not sampled yet is still the source's.
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
        await self._check_actions(model, request.actions, request.verifier)
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
            # A sequence continues without an image of one candidate, and a beam without one of its sequences.
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
            # Nothing is ranked: candidates keep the order in which they are sampled.
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


class WorldModelServer(FDMServer, IDMServer):
    """Both models in one process."""

    TASKS: ClassVar[tuple[str, ...]] = (FDM, IDM)

    async def _score(
        self, verifier: str, source: Observation, action: str, candidates: Sequence[Observation]
    ) -> Sequence[Score]:
        return await self.score_observations(verifier, source, action, candidates)

    async def _check_by(self, verifier: str, actions: Sequence[str]) -> None:
        await self.check_actions(verifier, actions)


def _count_tokens(model: CodeModel | EditorModel, actions: Sequence[str]) -> int | None:
    """Count the tokens of actions; None of an editor, whose parts read them each in its own way."""
    return sum(map(model.count_tokens, actions)) if isinstance(model, CodeModel) else None
