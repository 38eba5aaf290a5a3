"""Drives the states of ``wm.dynamics`` (search, rollout) with the models of a replica: asks for draws, for scores and
for pixels, and holds no method of its own. All of it runs in the event loop; the models work in their threads."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from serve_apps import metrics
from serve_apps.messages import Ending, Found, Preview, Question, RolloutFound, StepFound
from serve_apps.openai.edit_replies import choose, unranked_entries
from wm.dynamics import Candidate, Prediction, RolloutState, Sampling, ScoredAction, Search, SearchState, Start
from wm.images import Pixels
from wm.judging import unchanged_share

Score = Callable[[str, Any, str, Any], Awaitable[Sequence[tuple[float, int]]]]
"""From an IDM's name, source codes (N,), an action, candidates' codes (K, N): each one's logprob in nats and tokens."""
OnTokens = Callable[[Tensor], object]
"""Given the first candidate's codes so far, int64 (n,)."""


class Drawer(Protocol):
    """The FDM and the image codec of a replica."""

    async def encode(self, source_HWC: Pixels) -> Sequence[int]: ...

    async def draw(self, start: Start, candidates: range, sampling: Sampling, on_tokens: OnTokens | None) -> Tensor: ...

    async def decode(self, codes_KN: Any) -> Pixels: ...

    def count_tokens(self, action: str) -> int: ...


class Predictor:
    """Answers questions with a drawer and what scores its candidates."""

    def __init__(self, drawer: Drawer, score: Score) -> None:
        self._drawer, self._score = drawer, score

    async def predict(self, question: Question) -> Found:
        """Return the answer to a question."""
        with metrics.stages_s() as stages:
            found = await self._predict(await self._drawer.encode(question.source), question)
        return replace(found, stages_s=stages)

    async def _predict(self, source: Sequence[int], question: Question, on_tokens: OnTokens | None = None) -> Found:
        search, sampling = Search(**question.search), Sampling(**question.sampling)
        (action,) = question.actions
        start = Start(tuple(source), action, question.seed)
        if question.verify:
            prediction = await self._search(question.verifier, start, search, sampling, on_tokens)
            entries = [entry_of(candidate) for candidate in prediction.candidates]
            codes = {candidate.index: candidate.codes for candidate in prediction.candidates}
        else:
            drawn = range(search.num_candidates)
            codes_KN = await self._drawer.draw(start, drawn, sampling, on_tokens)
            codes = dict(enumerate(map(tuple, codes_KN.tolist())))
            metrics.record(metrics.CANDIDATES, len(codes))
            metrics.record(metrics.DISTINCT, len(set(codes.values())) / len(codes))
            entries = [
                entry | {"unchanged_share": unchanged_share(source, codes[entry["index"]])}
                for entry in unranked_entries(search.num_candidates, question.seed)
            ]
        entries = choose(entries, len(entries))
        count = question.num_pictures
        if count is None:
            count = sum(entry["duplicate_of"] is None for entry in entries)
        pixels_KHWC = await self._drawer.decode([codes[entry["index"]] for entry in entries[:count]])
        distinct = len(set(codes.values()))
        return Found(entries, pixels_KHWC, self._drawer.count_tokens(action), len(entries), distinct)

    async def predict_with_previews(
        self, question: Question, tokens_per_image: int
    ) -> AsyncGenerator[Preview | Found, None]:
        """Previews of the first candidate while it grows, then the answer."""
        source = await self._drawer.encode(question.source)
        wanted = preview_places(question.num_previews, tokens_per_image)
        grown: asyncio.Queue[Tensor | None] = asyncio.Queue()
        finding = asyncio.ensure_future(self._predict(source, question, grown.put_nowait))
        finding.add_done_callback(lambda _: grown.put_nowait(None))
        try:
            while wanted and (codes := await grown.get()) is not None:
                if len(codes) < wanted[0] or len(codes) == tokens_per_image:
                    continue
                wanted = [place for place in wanted if place > len(codes)]
                pixels_1HWC = await self._drawer.decode([[*codes.tolist(), *source[len(codes) :]]])
                yield Preview(pixels_1HWC[0], len(codes) / tokens_per_image)
            yield await finding
        finally:
            finding.cancel()

    async def roll_out(self, question: Question) -> AsyncGenerator[StepFound | RolloutFound, None]:
        """Each step's best as it is found, then the whole."""
        search, sampling = Search(**question.search), Sampling(**question.sampling)
        source = tuple(await self._drawer.encode(question.source))
        state = RolloutState(source, question.actions, question.seed, search)
        drawn: list[int] = []
        while not state.is_done:
            predictions = await asyncio.gather(
                *(self._search(question.verifier, start, search, sampling) for start in state.starts())
            )
            step = state.add(predictions)
            drawn.append(sum(len(found.candidates) for found in predictions))
            best = step.beam[0]
            pixels_1HWC = await self._drawer.decode([best.candidates[-1].codes])
            entry = entry_of(best.candidates[-1])
            yield StepFound(len(drawn) - 1, step.action, entry, pixels_1HWC[0], drawn[-1], best.logprob)
        found = state.rollout()
        pixels_THWC = await self._drawer.decode([candidate.codes for candidate in found.best.candidates])
        ends_KHWC = await self._drawer.decode([kept.candidates[-1].codes for kept in found.trajectories])
        logprobs = np.cumsum([candidate.score.logprob for candidate in found.best.candidates]).tolist()
        yield RolloutFound(
            steps=[
                StepFound(number, step.action, entry_of(candidate), pixels, count, logprob)
                for number, (step, candidate, pixels, count, logprob) in enumerate(
                    zip(found.steps, found.best.candidates, pixels_THWC, drawn, logprobs, strict=True)
                )
            ],
            endings=[
                Ending(kept.logprob, kept.mean_logprob, kept.guarded, pixels)
                for kept, pixels in zip(found.trajectories, ends_KHWC, strict=True)
            ],
            action_tokens=sum(map(self._drawer.count_tokens, question.actions)),
            num_drawn=sum(drawn),
        )

    async def _search(
        self,
        verifier: str,
        start: Start,
        search: Search,
        sampling: Sampling,
        on_tokens: OnTokens | None = None,
    ) -> Prediction:
        state = SearchState(start.source, start.action, start.seed, search, sampling)
        while state.candidates:
            first_alone = on_tokens if state.candidates.start == 0 else None
            state.add_samples((await self._drawer.draw(start, state.candidates, sampling, first_alone)).tolist())
            unscored = state.unscored()
            found: Sequence[tuple[float, int]] = []
            if unscored:
                with metrics.stage("score"):
                    found = await self._score(verifier, start.source, start.action, unscored)
            state.add_scores([ScoredAction(start.action, logprob, count) for logprob, count in found])
        prediction = state.prediction()
        _record(prediction)
        return prediction


def preview_places(count: int, tokens_per_image: int) -> list[int]:
    """After how many tokens previews are due: the first at a sixteenth of the image, the others evenly from there."""
    first = max(1, tokens_per_image // 16)
    return sorted({first + (tokens_per_image - first) * place // count for place in range(count)})


def _record(prediction: Prediction) -> None:
    distinct = prediction.distinct
    metrics.record(metrics.CANDIDATES, len(prediction.candidates))
    metrics.record(metrics.DISTINCT, len(distinct) / len(prediction.candidates))
    metrics.record(metrics.UNCHANGED, prediction.best.unchanged_share)
    if len(distinct) > 1:
        best, second = (candidate.score.mean_logprob for candidate in distinct[:2])
        metrics.record(metrics.MARGIN, best - second)


def entry_of(candidate: Candidate) -> dict[str, Any]:
    """Return what the reply tells of a candidate; logprob in nats, rank 0 is best."""
    return {
        "logprob": candidate.score.logprob,
        "mean_logprob": candidate.score.mean_logprob,
        "tokens": candidate.score.num_tokens,
        "rank": candidate.rank,
        "seed": candidate.seed,
        "index": candidate.index,
        "duplicate_of": candidate.duplicate_of,
        "unchanged_share": candidate.unchanged_share,
    }
