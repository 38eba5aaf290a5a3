"""Decode the images of many requests in one batch: a request joins while others are half done (continuous batching).

A server's requests come one by one. Weights are read once a step for all of them, whatever position each has reached;
attention goes running batch by running batch (requests that joined together and have as many candidates, under the same
settings). New requests join at the end of a line of the image, in the order they came. The images are those of
:func:`~wm.sampling.images.sample_images`, since noise is a function of (seed, candidate, position); other requests
change hidden states by rounding alone.

Where steps are recorded (a GPU, see :mod:`wm.sampling.kernels.cuda_graphs`) a batch is decoded to its end before
the next joins: one recording saves more than joining early does. This module knows nothing of threads or clients.

Shape suffixes: K candidates, N image tokens, n those done.
"""

from collections.abc import Iterator, Sequence

import torch

from wm.models.vlm import UnifiedVLM
from wm.sampling.batches import is_out_of_memory
from wm.sampling.checks import check_prefixes
from wm.sampling.decoding import decode_step
from wm.sampling.guidance import Candidates
from wm.sampling.image_batch import ImageBatch
from wm.sampling.model_runner import ModelRunner
from wm.sampling.noise import Sampling, stack_noise
from wm.sampling.requests import Chunk, ImageRequest, RequestState, StepOutput
from wm.sampling.scheduler import Scheduler
from wm.sampling.slots import Slots, count_line_slots


class _RunningBatch:
    """Chunks of one kind, and their images. ``lines``: their decoding, where it is done by recorded steps."""

    def __init__(self, chunks: Sequence[Chunk], images: ImageBatch, lines: Iterator[None] | None) -> None:
        self.chunks, self.images, self.lines = list(chunks), images, lines

    def keep(self, indices: Sequence[int]) -> None:
        """Drop all but these chunks."""
        self.images.keep(indices)
        self.chunks = [self.chunks[index] for index in indices]


class ImageEngine:
    """The requests being decoded, and those that wait. Not for two threads at once.

    Args:
        vlm: The forward model.
        runner: Runs this model as it is now.
        token_budget: Bound on the tokens stored at a time, a prefix once for all of a chunk's rows; what the memory
            holds without it. Halved, with a warning in the log, where memory does not suffice.
        line_tokens: After how many tokens requests join and progress is returned; a line of the image without it.
    """

    def __init__(
        self,
        vlm: UnifiedVLM,
        runner: ModelRunner,
        *,
        token_budget: int | None = None,
        line_tokens: int | None = None,
    ) -> None:
        self._vlm, self._runner, self._slots = vlm, runner, Slots(vlm)
        self._scheduler = Scheduler(vlm, runner, self._slots.count, token_budget)
        self._line = line_tokens or count_line_slots(vlm)
        self._running: list[_RunningBatch] = []
        self._states: dict[int, RequestState] = {}
        self._next_id = 0

    def add_request(self, request: ImageRequest) -> int:
        """Queue a request and return the id of its outputs.

        Raises:
            InputError: For a prefix or guidance that the model cannot read.
        """
        check_prefixes([request.prefix], self._runner.vocabulary_size)
        if request.sampling.is_guided:
            self._vlm.check_guidance()
        # Greedy candidates are all equal: one is decoded.
        candidates = request.candidates[:1] if request.sampling.greedy else request.candidates
        state = RequestState(self._next_id, request, len(candidates))
        self._next_id += 1
        self._states[state.request_id] = state
        self._scheduler.add(state, candidates)
        return state.request_id

    def abort_request(self, request_id: int) -> None:
        """Abort a request and free its rows; one that is finished already is ignored."""
        # A client may leave while its last output is on the way.
        state = self._states.pop(request_id, None)
        if state is None:
            return
        state.is_aborted = True
        # Its waiting chunks first, then the rows that decode. Recorded steps have fixed rows and run to their end.
        self._scheduler.remove(state)
        for batch in list(self._running):
            remaining = [index for index, chunk in enumerate(batch.chunks) if not chunk.state.is_aborted]
            if not remaining:
                self._running.remove(batch)
            elif len(remaining) < len(batch.chunks) and batch.lines is None:
                batch.keep(remaining)

    @property
    def num_unfinished(self) -> int:
        """Requests that are not finished."""
        return len(self._states)

    @property
    def num_waiting(self) -> int:
        """Requests of which some candidates wait for their turn."""
        return len({chunk.state.request_id for chunk in self._scheduler.waiting})

    @property
    def num_running_rows(self) -> int:
        """Rows being decoded, those of guidance among them."""
        return sum(batch.images.num_rows for batch in self._running)

    @torch.no_grad()
    def step(self) -> list[StepOutput]:
        """Schedule waiting requests, decode a line of every image, and return what each chunk has now.

        Nothing is returned where memory did not suffice: a batch is then preempted, and the next call continues with
        less. Raises the error of a single candidate that does not fit into memory.
        """
        # 1. Decode; where memory runs out, give up a batch and let the caller come again.
        error = self._try_line()
        if error is not None:
            self._preempt_last(error)
            return []
        # 2. Outputs before complete batches leave, since they take their last codes from them.
        outputs = [output for batch in self._running for output in self._build_outputs(batch)]
        self._running = [batch for batch in self._running if not batch.images.is_complete]
        return outputs

    def _try_line(self) -> BaseException | None:
        """Decode a line and return the error if memory ran out: raised, its traceback would keep tensors alive."""
        try:
            self._start_batches()
            self._decode_line()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)
        return None

    def _start_batches(self) -> None:
        """Start a running batch for each kind of chunk that is scheduled."""
        groups: dict[tuple[int, Sampling], list[Chunk]] = {}
        for chunk in self._scheduler.schedule([chunk for batch in self._running for chunk in batch.chunks]):
            groups.setdefault(chunk.kind, []).append(chunk)
        while groups:
            kind = next(iter(groups))
            try:
                self._running.append(self._start_batch(groups[kind]))
            except BaseException:
                # An error costs no request its turn.
                self._scheduler.requeue(chunk for group in groups.values() for chunk in group)
                raise
            del groups[kind]

    def _start_batch(self, chunks: Sequence[Chunk]) -> _RunningBatch:
        """Read the prefixes of chunks of one kind and make them a running batch."""
        requests = [chunk.state.request for chunk in chunks]
        each, sampling = chunks[0].kind
        candidates = Candidates(self._vlm, self._runner, sampling, [request.prefix for request in requests])
        # Noise by candidate number, so that a chunk's images are those of the request in one.
        noise_RN = torch.cat(
            [
                stack_noise([request.seed], chunk.candidates, self._vlm.tokens_per_image)
                for request, chunk in zip(requests, chunks, strict=True)
            ]
        )
        images = ImageBatch(candidates, noise_RN, each, sampling, self._slots)
        if self._scheduler.runs_one_batch:
            return _RunningBatch(chunks, images, images.decode(self._line))
        images.start()
        return _RunningBatch(chunks, images, None)

    def _decode_line(self) -> None:
        """Decode a line of every running batch."""
        # 1. Batches of recorded steps decode a line each by themselves.
        for batch in self._running:
            if batch.lines is not None:
                next(batch.lines)
        # 2. All others advance together, so that a step reads the weights once.
        plain = [batch.images for batch in self._running if batch.lines is None]
        for _ in range(self._line):
            if incomplete := [images for images in plain if not images.is_complete]:
                decode_step(self._runner, incomplete, self._runner.image_logits)

    def _preempt_last(self, error: BaseException) -> None:
        """After a lack of memory, give up the batch that started last, and free what can be computed again."""
        chunks = self._running.pop().chunks if self._running else []
        self._scheduler.preempt(chunks, [chunk for batch in self._running for chunk in batch.chunks], error)
        # Buffers of earlier images are the cheapest memory to give up.
        self._runner.static_steps = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _build_outputs(self, batch: _RunningBatch) -> Iterator[StepOutput]:
        """Build each chunk's output, and forget requests that are finished with it."""
        is_complete = batch.images.is_complete
        # Copied once for the batch: each copy waits for the device.
        codes_BKN = batch.images.copy_codes().view(len(batch.chunks), batch.images.each, -1)
        for index, chunk in enumerate(batch.chunks):
            state, candidates, codes_KN = chunk.state, chunk.candidates, codes_BKN[index]
            if state.is_aborted:
                continue
            # A request is finished with its last chunk, whichever that is: preempted ones come late.
            if is_complete:
                state.missing -= len(candidates)
                if not state.missing:
                    del self._states[state.request_id]
            # One greedy image was decoded for all candidates.
            if state.request.sampling.greedy:
                candidates = state.request.candidates
                codes_KN = codes_KN.expand(len(candidates), -1)
            yield StepOutput(state.request_id, candidates, codes_KN, is_complete, not state.missing)
