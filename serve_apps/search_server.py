"""Search for verified candidates with the models of a process: sample, have the verifier score, stop when it is enough.

What is sampled and scored next is said by :class:`wm.dynamics.SearchState`. All of it runs in the event loop; the
models work in their thread.
"""

from collections.abc import Sequence
from typing import ClassVar

from ray.serve.handle import DeploymentHandle

from serve_apps import metrics
from serve_apps.calls import call, follow_session
from serve_apps.candidates import record_prediction
from serve_apps.model_server import ModelServer
from serve_apps.names import BASELINE, FDM
from serve_apps.openai.errors import ApiError
from serve_apps.recipe import ServeRecipe
from serve_apps.results import Score
from serve_apps.served_editor import EditorModel
from serve_apps.served_models import CodeModel, OnTokens, Samples
from wm.dynamics import (
    Observation,
    Prediction,
    Sampling,
    ScoredAction,
    Search,
    SearchState,
    Start,
    check_draft_length,
    pixels_of,
)


class SearchServer(ModelServer):
    """Sample candidates after an action, and have them verified.

    Args:
        recipe: What is served.
        idm: Where candidates are scored; None: in this process.
    """

    TASKS: ClassVar[tuple[str, ...]] = (FDM,)

    def __init__(self, recipe: ServeRecipe, idm: DeploymentHandle | None = None) -> None:
        super().__init__(recipe)
        self._idm = follow_session(idm)
        # What the recipe asks for and the model cannot do fails now, not with the first request.
        for model in (self._own[name] for name in (FDM, BASELINE) if name in self._own):
            if not isinstance(model, CodeModel):
                continue
            if (recipe.guidance_scale, recipe.image_guidance_scale) != (1.0, 1.0):
                model.vlm.check_guidance()
            check_draft_length(recipe.num_draft_tokens, model.vlm.tokens_per_image)
            model.codec.check_decoder()

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
                # The verifier, and the share that is unchanged, need pixels where there is no common codec.
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
        images = [item.codes for item in (source, *candidates)] if codec_id else pixels_of([source, *candidates])
        scores: list[Score] = await call(
            self._idm, "score_candidates", verifier, images[0], action, images[1:], codec_id, model=verifier
        )
        return scores

    async def _check_actions(
        self, model: CodeModel | EditorModel, actions: Sequence[str], verifier: str | None
    ) -> None:
        """Check that both models can read the actions, before images are made; codes are checked as they are laid out.

        ``verifier``: None where nothing is verified.
        """
        if self._kinds.exchanges_codes:
            return
        if isinstance(model, EditorModel):
            # In the thread: a tokenizer's padding is its state, which a call that is at work there has set.
            await self._thread.call(_check_all, model, actions)
        if verifier is not None:
            await self._check_by(verifier, actions)

    async def _check_by(self, verifier: str, actions: Sequence[str]) -> None:
        await call(self._idm, "check_actions", verifier, actions, model=verifier)

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


def _check_all(model: EditorModel, actions: Sequence[str]) -> None:
    for action in actions:
        model.check_action(action)
