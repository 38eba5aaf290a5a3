"""Decode the images of many requests in one batch: a request joins while others are half done (continuous batching).

A server's requests come one by one. Weights are read once a step for all of them, whatever position each has reached;
attention goes running batch by running batch (requests that joined together and have as many candidates, under the same
settings). New requests join at the end of a line of the image, in the order they came. A request of many candidates is
scheduled in chunks, so that it never takes all of the token budget. The images are those of
:func:`~wm.sampling.engine.sample_images`, since noise is a function of (seed, candidate, position); other requests
change hidden states by rounding alone.

Where steps are recorded (a GPU, see :mod:`wm.sampling.kernels.cuda_graphs`) a batch is decoded to its end before
the next joins: one recording saves more than joining early does. This module knows nothing of threads or clients.

Shape suffixes: K candidates, N image tokens, n those done, L slots of an image, R rows of a running batch, X of all.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import is_out_of_memory, positions_at_once
from wm.sampling.checks import check_prefixes
from wm.sampling.engine import decode_slots, line_of
from wm.sampling.guidance import CONDITIONS, Candidates, need_guidable
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, choose, noise_of
from wm.sampling.slots import Slots

CHUNKS_PER_BUDGET = 4
"""A chunk takes at most one part in so many of the token budget."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageRequest:
    """Candidates ``first_candidate`` to ``first_candidate + num_samples - 1`` after a prefix (vocabulary ids)."""

    prefix: tuple[int, ...]
    num_samples: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    first_candidate: int = 0

    def __post_init__(self) -> None:
        for name, value, minimum in (
            ("num_samples", self.num_samples, 1),
            ("seed", self.seed, 0),
            ("first_candidate", self.first_candidate, 0),
        ):
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")

    @property
    def candidates(self) -> range:
        """Numbers of the candidates."""
        return range(self.first_candidate, self.first_candidate + self.num_samples)


@dataclass(frozen=True)
class Grown:
    """What a chunk of a request has after a line of the image: the step's output."""

    key: int
    """As :meth:`ImagePool.add` returned it."""
    candidates: range
    """Numbers of the chunk's candidates."""
    codes: Tensor
    """int64 (K, n) on the CPU: the first n codes of each."""
    is_whole: bool
    """Whether these images are complete: n = N."""
    is_last: bool
    """Whether nothing of the request is left to decode after these."""


@dataclass
class _RequestState:
    """A request that is not finished. ``missing``: candidates that are not decoded."""

    key: int
    request: ImageRequest
    missing: int
    is_dropped: bool = False


@dataclass(frozen=True)
class _Chunk:
    """Candidates of a request that are decoded in one running batch."""

    state: _RequestState
    candidates: range

    @property
    def rows(self) -> int:
        """Rows of its candidates, those of guidance among them."""
        return len(self.candidates) * self.conditions

    def positions(self, length: int) -> int:
        """Count the tokens to store for images of ``length`` tokens: the prefix once, and the rows."""
        return self.conditions * (len(self.state.request.prefix) + len(self.candidates) * length)

    @property
    def conditions(self) -> int:
        """Rows a candidate: 3 with guidance."""
        return CONDITIONS if self.state.request.sampling.is_guided else 1

    @property
    def kind(self) -> tuple[int, Sampling]:
        """Chunks of one kind can be one running batch."""
        return len(self.candidates), self.state.request.sampling


class _RunningBatch:
    """Chunks at one position. ``codes_RL``: what fills the slots of their rows, up to ``position``."""

    def __init__(self, chunks: Sequence[_Chunk], candidates: Candidates, noise_RL: Tensor) -> None:
        self.chunks, self.candidates, self.noise_RL = list(chunks), candidates, noise_RL
        self.each, self.sampling = chunks[0].kind
        self.codes_RL = torch.zeros(noise_RL.shape, dtype=torch.int64, device=noise_RL.device)
        self.logits_RV = torch.zeros(0)
        self.position = 0
        self.lines: Iterator[Tensor] | None = None
        """The decoding, where it is done by recorded steps."""

    @property
    def rows(self) -> int:
        """Rows of all chunks, those of guidance among them."""
        return len(self.noise_RL) * self.candidates.conditions

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all but these chunks."""
        rows = [chunk * self.each + row for chunk in indices for row in range(self.each)]
        index = torch.tensor(rows, device=self.codes_RL.device)
        self.candidates.keep(indices, rows)
        self.noise_RL, self.codes_RL, self.logits_RV = self.noise_RL[index], self.codes_RL[index], self.logits_RV[index]
        self.chunks = [self.chunks[chunk] for chunk in indices]


class ImagePool:
    """The requests being decoded, and those that wait. Not for two threads at once.

    Args:
        vlm: The forward model.
        decoder: Of this model as it is now.
        positions: Token budget: bound on the tokens stored at a time, a prefix once for all of a chunk's rows; what
            the memory holds without it (:func:`~wm.sampling.batches.positions_at_once`). Halved, with a warning in the
            log, where memory does not suffice.
        line_tokens: After how many tokens requests join and progress is returned; a line of the image without it.
    """

    def __init__(
        self, vlm: UnifiedVLM, decoder: Decoder, *, positions: int | None = None, line_tokens: int | None = None
    ) -> None:
        self._vlm, self._decoder, self._slots = vlm, decoder, Slots(vlm)
        self._positions = positions
        self._line = line_tokens or line_of(vlm)
        self._waiting: deque[_Chunk] = deque()
        self._running: list[_RunningBatch] = []
        self._states: dict[int, _RequestState] = {}
        self._next_key = 0

    def add(self, request: ImageRequest) -> int:
        """Queue a request and return the key of its outputs.

        Raises:
            InputError: For a prefix or guidance that the model cannot read.
        """
        check_prefixes([request.prefix], len(self._decoder.view.embedding))
        if request.sampling.is_guided:
            need_guidable(self._vlm)
        # Greedy candidates are all equal: one is decoded.
        candidates = request.candidates[:1] if request.sampling.greedy else request.candidates
        state = _RequestState(self._next_key, request, len(candidates))
        self._next_key += 1
        self._states[state.key] = state
        self._waiting.append(_Chunk(state, candidates))
        return state.key

    def drop(self, key: int) -> None:
        """Abort a request and free its rows; one that is finished already is ignored."""
        state = self._states.pop(key, None)
        if state is not None:
            state.is_dropped = True
            # Its waiting chunks first, then the rows that decode.
            self._waiting = deque(chunk for chunk in self._waiting if chunk.state is not state)
            self._remove_dropped()

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._states)

    @property
    def num_waiting(self) -> int:
        """Requests of which some candidates wait for their turn."""
        return len({chunk.state.key for chunk in self._waiting})

    @property
    def num_rows(self) -> int:
        """Rows being decoded, those of guidance among them."""
        return sum(batch.rows for batch in self._running)

    @torch.no_grad()
    def advance(self) -> list[Grown]:
        """Schedule waiting requests, decode a line of every image, and return what each chunk has now.

        Nothing is returned where memory did not suffice: a batch is then preempted, and the next call continues with
        less. Raises the error of a single candidate that does not fit into memory.
        """
        error = self._try_line()
        if error is not None:
            self._preempt_last(error)
            return []
        outputs = [output for batch in self._running for output in self._build_outputs(batch)]
        self._running = [batch for batch in self._running if batch.position < self._slots.count]
        return outputs

    def _try_line(self) -> BaseException | None:
        """Decode a line and return the error if memory ran out: raised, its traceback would keep tensors alive."""
        try:
            self._admit()
            self._decode_line()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)
        return None

    # Scheduling and preemption.

    def _admit(self) -> None:
        """Start a running batch for each kind of chunk that the budget has space for."""
        # Recorded steps serve one batch at a time.
        if not self._waiting or (self._running and not self._is_plain):
            return
        groups: dict[tuple[int, Sampling], list[_Chunk]] = {}
        for chunk in self._schedule(self._token_budget()):
            groups.setdefault(chunk.kind, []).append(chunk)
        while groups:
            kind = next(iter(groups))
            try:
                self._running.append(self._start_batch(groups[kind]))
            except BaseException:
                # Back to the head of the queue, in their order: an error costs no request its turn.
                self._waiting.extendleft(chunk for group in reversed(groups.values()) for chunk in reversed(group))
                raise
            del groups[kind]

    def _schedule(self, budget: int) -> list[_Chunk]:
        """Take chunks from the head of the queue while the token budget lasts.

        The first chunk of each request goes before the second of any.
        """
        length = self._slots.count
        free = budget - sum(chunk.positions(length) for batch in self._running for chunk in batch.chunks)
        scheduled = list[_Chunk]()
        while self._waiting:
            chunk = self._waiting[0]
            # As many candidates as fit into a share of the budget beside their prefix; at least one.
            share = budget // CHUNKS_PER_BUDGET // chunk.conditions - len(chunk.state.request.prefix)
            count = min(len(chunk.candidates), max(1, share // length))
            part = _Chunk(chunk.state, chunk.candidates[:count])
            # One chunk always runs, whatever it takes: else a large request would wait forever.
            is_first = not scheduled and not self._running
            if not is_first and (
                part.positions(length) > free or (not self._is_plain and part.kind != scheduled[0].kind)
            ):
                break
            self._waiting.popleft()
            # The rest queues up behind the others, so that no request keeps a later one waiting.
            if count < len(chunk.candidates):
                self._waiting.append(_Chunk(chunk.state, chunk.candidates[count:]))
            scheduled.append(part)
            free -= part.positions(length)
        return scheduled

    def _start_batch(self, chunks: Sequence[_Chunk]) -> _RunningBatch:
        """Read the prefixes of chunks of one kind and make them a running batch."""
        requests, slots = [chunk.state.request for chunk in chunks], self._slots
        sampling = requests[0].sampling
        candidates = Candidates(self._vlm, self._decoder, sampling, [request.prefix for request in requests])
        # Noise by candidate number, so that a chunk's images are those of the request in one.
        noises = [
            noise_of([r.seed], p.candidates, self._vlm.tokens_per_image) for r, p in zip(requests, chunks, strict=True)
        ]
        batch = _RunningBatch(chunks, candidates, slots.spread(torch.cat(noises).to(self._decoder.device), 0))
        if self._is_plain:
            batch.logits_RV = candidates.start(batch.each, slots.count)
        else:
            batch.lines = decode_slots(candidates, batch.noise_RL, batch.each, sampling, line=self._line, slots=slots)
        return batch

    def _remove_dropped(self) -> None:
        """Free the rows of aborted requests; recorded steps have fixed rows and run to their end."""
        for batch in list(self._running):
            remaining = [index for index, chunk in enumerate(batch.chunks) if not chunk.state.is_dropped]
            if not remaining:
                self._running.remove(batch)
            elif len(remaining) < len(batch.chunks) and batch.lines is None:
                batch.keep(remaining)

    def _preempt_last(self, error: BaseException) -> None:
        """After a lack of memory, halve the token budget and requeue the last running batch.

        Its codes are recomputed later and are the same, noise being a function of the position.
        """
        budget = self._token_budget()
        if self._running:
            batch = self._running.pop()
            self._waiting.extendleft(reversed(batch.chunks))
        if not self._running and budget <= 1:
            raise error
        self._positions = max(1, budget // 2)
        logger.warning("out of memory with a budget of %d tokens; continuing with %d", budget, self._positions)
        # Buffers of earlier images are the cheapest memory to give up.
        self._decoder.held = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _token_budget(self) -> int:
        """Bound the tokens stored at a time."""
        steps = self._decoder.held
        held_bytes = 0 if steps is None else steps.num_bytes
        return self._positions if self._positions is not None else positions_at_once(self._vlm, held_bytes)

    @property
    def _is_plain(self) -> bool:
        return self._decoder.stepping == "plain"

    # Decoding.

    def _decode_line(self) -> None:
        """Decode a line of every running batch."""
        # 1. Batches of recorded steps decode a line each by themselves.
        for batch in self._running:
            if batch.lines is not None:
                codes_RL = next(batch.lines)
                batch.position = codes_RL.shape[1]
                batch.codes_RL[:, : batch.position] = codes_RL
        # 2. All others advance together, so that a step reads the weights once.
        for _ in range(self._line):
            unfinished = [c for c in self._running if c.lines is None and c.position < self._slots.count]
            if not unfinished:
                break
            self._step(unfinished)

    def _step(self, batches: Sequence[_RunningBatch]) -> None:
        """Sample one code of every row, then compute the logits of the next in one pass."""
        # 1. Sampling, batch by batch: settings and positions differ.
        groups = []
        for batch in batches:
            position = batch.position
            code_R = self._slots.settle(choose(batch.logits_RV, batch.noise_RL[:, position], batch.sampling), position)
            batch.codes_RL[:, position] = code_R
            batch.position += 1
            groups.append(batch.candidates.group(code_R, position))
        # 2. The pass, without batches that are complete: nothing follows their last code.
        unfinished = [index for index, batch in enumerate(batches) if batch.position < self._slots.count]
        if not unfinished:
            return
        counts = [len(groups[index].ids) for index in unfinished]
        logits_XV = self._decoder.image_logits(self._decoder.step_together([groups[index] for index in unfinished]))
        for index, logits in zip(unfinished, torch.split_with_sizes(logits_XV, counts), strict=True):
            batches[index].logits_RV = batches[index].candidates.mix(logits)

    def _build_outputs(self, batch: _RunningBatch) -> Iterator[Grown]:
        """Build each chunk's output, and forget requests that are finished with it."""
        codes_RN = self._slots.codes(batch.codes_RL[:, : batch.position]).to("cpu", copy=True)
        is_complete = batch.position == self._slots.count
        for chunk, chunk_KN in zip(
            batch.chunks, codes_RN.view(len(batch.chunks), batch.each, -1).unbind(0), strict=True
        ):
            state, candidates, codes_KN = chunk.state, chunk.candidates, chunk_KN
            if state.is_dropped:
                continue
            # A request is finished with its last chunk, whichever that is: preempted ones come late.
            if is_complete:
                state.missing -= len(candidates)
                if not state.missing:
                    del self._states[state.key]
            if state.request.sampling.greedy:
                candidates = state.request.candidates
                codes_KN = chunk_KN.expand(len(candidates), -1)
            yield Grown(state.key, candidates, codes_KN, is_complete, not state.missing)
