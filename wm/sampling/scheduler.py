"""Schedule chunks of requests: which of those that wait run next, within a budget of tokens.

Requests run in the order in which they came. One of many candidates is scheduled in chunks, so that it never takes all
of the token budget. Knows counts of tokens alone: no tensors, threads or clients.
"""

import logging
from collections import deque
from collections.abc import Iterable, Sequence

from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import positions_at_once
from wm.sampling.model_runner import ModelRunner
from wm.sampling.requests import Chunk, RequestState

CHUNKS_PER_BUDGET = 4
"""A chunk takes at most one part in so many of the token budget."""

logger = logging.getLogger(__name__)


class Scheduler:
    """The queue of waiting chunks and the token budget.

    Args:
        vlm: The model, whose sizes say what a token takes.
        runner: Runs the model; recorded steps serve one batch at a time.
        length: Tokens of an image.
        token_budget: Bound on the tokens stored at a time, a prefix once for all of a chunk's rows; what memory holds
            without it.
    """

    def __init__(self, vlm: UnifiedVLM, runner: ModelRunner, length: int, token_budget: int | None) -> None:
        self._vlm, self._runner, self._length = vlm, runner, length
        self._token_budget = token_budget
        self.waiting: deque[Chunk] = deque()

    @property
    def runs_one_batch(self) -> bool:
        """Return whether steps are recorded, so that one batch is decoded to its end before the next begins."""
        return self._runner.stepping != "plain"

    @property
    def token_budget(self) -> int:
        """Bound on the tokens stored at a time."""
        if self._token_budget is not None:
            return self._token_budget
        # Buffers count as free memory: they go before a batch of another shape begins.
        steps = self._runner.static_steps
        return positions_at_once(self._vlm, 0 if steps is None else steps.num_bytes)

    def add(self, state: RequestState, candidates: range) -> None:
        """Queue candidates of a request behind all others.

        Args:
            state: The request.
            candidates: Numbers of those to decode.
        """
        self.waiting.append(Chunk(state, candidates))

    def remove(self, state: RequestState) -> None:
        """Drop the waiting chunks of a request."""
        self.waiting = deque(chunk for chunk in self.waiting if chunk.state is not state)

    def requeue(self, chunks: Iterable[Chunk]) -> None:
        """Put chunks back to the head of the queue, in their order."""
        self.waiting.extendleft(reversed(list(chunks)))

    def schedule(self, running: Sequence[Chunk]) -> list[Chunk]:
        """Take chunks from the head of the queue while the token budget lasts.

        The first chunk of each request goes before the second of any.

        Args:
            running: Chunks that are being decoded.
        """
        # Recorded steps have fixed rows: nobody joins a batch.
        if not self.waiting or (running and self.runs_one_batch):
            return []
        budget = self.token_budget
        free = budget - sum(chunk.count_tokens(self._length) for chunk in running)
        scheduled = list[Chunk]()
        while self.waiting:
            chunk = self.waiting[0]
            # As many candidates as fit into a share of the budget beside their prefix; at least one.
            share = budget // CHUNKS_PER_BUDGET // chunk.conditions - len(chunk.state.request.prefix)
            count = min(len(chunk.candidates), max(1, share // self._length))
            part = Chunk(chunk.state, chunk.candidates[:count])
            # One chunk always runs, whatever it takes: else a large request would wait forever.
            is_first = not scheduled and not running
            # Recorded steps have one batch, so that all that is scheduled is of one kind.
            is_other_kind = self.runs_one_batch and bool(scheduled) and part.kind != scheduled[0].kind
            if not is_first and (part.count_tokens(self._length) > free or is_other_kind):
                break
            self.waiting.popleft()
            # The rest queues up behind the others, so that no request keeps a later one waiting.
            if count < len(chunk.candidates):
                self.waiting.append(Chunk(chunk.state, chunk.candidates[count:]))
            scheduled.append(part)
            free -= part.count_tokens(self._length)
        return scheduled

    def preempt(self, chunks: Sequence[Chunk], running: Sequence[Chunk], error: BaseException) -> None:
        """After a lack of memory, halve the token budget and requeue the chunks of a batch.

        Their codes are recomputed later and are the same, noise being a function of the position.

        Args:
            chunks: Those of the preempted batch.
            running: Those that continue.
            error: Raised if a single token of budget was too much.
        """
        budget = self.token_budget
        self.requeue(chunks)
        # Nothing is left to give up.
        if not running and budget <= 1:
            raise error
        self._token_budget = max(1, budget // 2)
        logger.warning("out of memory with a budget of %d tokens; continuing with %d", budget, self._token_budget)
