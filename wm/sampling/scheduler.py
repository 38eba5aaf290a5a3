"""Images of many requests decoded together: a request joins while others are half done, and leaves when it is whole.

A server's requests come one by one. Weights are read once a step for all of them, whatever place each has reached;
attention goes cohort by cohort (those that joined together and have as many candidates, under the same settings). New
ones join at the end of a line of the image, in the order they came. A request of many candidates is taken in pieces,
so that it never holds all of the memory. The images are those of :func:`~wm.sampling.engine.sample_images`, since noise
is a function of (seed, candidate, position); what a request shares its steps with changes hidden states by rounding
alone.

Where steps are recorded (a GPU, see :mod:`wm.sampling.kernels.cuda_graphs`) a cohort is decoded whole before the next
joins: what one recording saves is more than joining late does.

Shape suffixes: K candidates, N image tokens, n those done, L slots of an image, R rows of a cohort, X of all cohorts.
"""

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM
from wm.sampling.batches import is_out_of_memory, positions_at_once
from wm.sampling.checks import need_prefixes
from wm.sampling.engine import decode_slots, line_of
from wm.sampling.guidance import CONDITIONS, Candidates, need_guidable
from wm.sampling.model_runner import Decoder
from wm.sampling.noise import Sampling, choose, noise_of
from wm.sampling.slots import Slots

PIECES = 4
"""Of the room there is, a request takes at most one part in so many at a time."""

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
        for name, value, least in (
            ("num_samples", self.num_samples, 1),
            ("seed", self.seed, 0),
            ("first_candidate", self.first_candidate, 0),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")

    @property
    def candidates(self) -> range:
        return range(self.first_candidate, self.first_candidate + self.num_samples)


@dataclass(frozen=True)
class Grown:
    """What a request has after a line. ``codes``: int64 (K, n) on the CPU, whole if n = N and all K are there.

    ``candidates``: which of them these are: a piece of the request's.
    """

    key: int
    candidates: range
    codes: Tensor
    is_whole: bool
    """Whether these images are done."""
    is_last: bool
    """Whether nothing of the request is left to decode after these."""


@dataclass
class _Order:
    """A request that is not done. ``missing``: candidates that are not decoded."""

    key: int
    request: ImageRequest
    missing: int
    is_dropped: bool = False


@dataclass(frozen=True)
class _Piece:
    order: _Order
    candidates: range

    @property
    def rows(self) -> int:
        """That its candidates take, those of guidance among them."""
        return len(self.candidates) * self.conditions

    def positions(self, length: int) -> int:
        """That are held for images of ``length`` tokens: the prefix once, and the rows."""
        return self.conditions * (len(self.order.request.prefix) + len(self.candidates) * length)

    @property
    def conditions(self) -> int:
        return CONDITIONS if self.order.request.sampling.is_guided else 1

    @property
    def kind(self) -> tuple[int, Sampling]:
        """Pieces of one kind can be one cohort."""
        return len(self.candidates), self.order.request.sampling


class _Cohort:
    """Pieces at one place. ``codes_RL``: what fills the slots of their rows, up to ``place``."""

    def __init__(self, pieces: Sequence[_Piece], candidates: Candidates, noise_RL: Tensor) -> None:
        self.pieces, self.candidates, self.noise_RL = list(pieces), candidates, noise_RL
        self.each, self.sampling = pieces[0].kind
        self.codes_RL = torch.zeros(noise_RL.shape, dtype=torch.int64, device=noise_RL.device)
        self.logits_RV = torch.zeros(0)
        self.place = 0
        self.lines: Iterator[Tensor] | None = None
        """Where the cohort is decoded by itself."""

    @property
    def rows(self) -> int:
        return len(self.noise_RL) * self.candidates.conditions

    def keep(self, which: Sequence[int]) -> None:
        """These pieces only."""
        rows = [piece * self.each + row for piece in which for row in range(self.each)]
        index = torch.tensor(rows, device=self.codes_RL.device)
        self.candidates.keep(which, rows)
        self.noise_RL, self.codes_RL, self.logits_RV = self.noise_RL[index], self.codes_RL[index], self.logits_RV[index]
        self.pieces = [self.pieces[piece] for piece in which]


class ImagePool:
    """The requests being decoded, and those that wait. Not for two threads at once.

    ``positions``: bound on the tokens held at a time, a prefix once for all of a piece's rows; what the memory holds
    without it (as :func:`~wm.sampling.batches.positions_at_once` has it). Halved, with a warning in the log, where that
    was too much.
    ``line_tokens``: after how many tokens requests join and progress is told; a line of the image without it.
    """

    def __init__(
        self, vlm: UnifiedVLM, decoder: Decoder, *, positions: int | None = None, line_tokens: int | None = None
    ) -> None:
        self._vlm, self._decoder, self._slots = vlm, decoder, Slots(vlm)
        self._positions = positions
        self._line = line_tokens or line_of(vlm)
        self._waiting: deque[_Piece] = deque()
        self._cohorts: list[_Cohort] = []
        self._orders: dict[int, _Order] = {}
        self._next_key = 0

    def add(self, request: ImageRequest) -> int:
        """The key by which its images will come."""
        need_prefixes([request.prefix], len(self._decoder.view.embedding))
        if request.sampling.is_guided:
            need_guidable(self._vlm)
        # Greedy candidates are all equal: one is drawn.
        candidates = request.candidates[:1] if request.sampling.greedy else request.candidates
        order = _Order(self._next_key, request, len(candidates))
        self._next_key += 1
        self._orders[order.key] = order
        self._waiting.append(_Piece(order, candidates))
        return order.key

    def drop(self, key: int) -> None:
        """Forget a request, whatever is done of it, and what its rows hold; one that is done already is none."""
        order = self._orders.pop(key, None)
        if order is not None:
            order.is_dropped = True
            self._waiting = deque(piece for piece in self._waiting if piece.order is not order)
            self._remove_dropped()

    @property
    def num_requests(self) -> int:
        """That are not done."""
        return len(self._orders)

    @property
    def num_waiting(self) -> int:
        """Requests of which some candidates wait for room."""
        return len({piece.order.key for piece in self._waiting})

    @property
    def num_rows(self) -> int:
        """Being decoded, those of guidance among them."""
        return sum(cohort.rows for cohort in self._cohorts)

    @torch.no_grad()
    def advance(self) -> list[Grown]:
        """Let requests join, decode a line of every image, and tell what each piece has now.

        Raises the error of a single candidate that does not fit into memory.
        """
        error = self._tried()
        if error is not None:
            self._shed(error)
            return []
        grown = [entry for cohort in self._cohorts for entry in self._grown(cohort)]
        self._cohorts = [cohort for cohort in self._cohorts if cohort.place < self._slots.count]
        return grown

    def _tried(self) -> BaseException | None:
        """Returns, rather than raises, a lack of memory, so that no traceback keeps tensors alive."""
        try:
            self._admit()
            self._decode_line()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return error.with_traceback(None)
        return None

    # Joining and leaving.

    def _admit(self) -> None:
        if not self._waiting or (self._cohorts and not self._is_plain):
            return
        groups: dict[tuple[int, Sampling], list[_Piece]] = {}
        for piece in self._taken(self._room()):
            groups.setdefault(piece.kind, []).append(piece)
        while groups:
            kind = next(iter(groups))
            try:
                self._cohorts.append(self._cohort(groups[kind]))
            except BaseException:
                self._waiting.extendleft(piece for group in reversed(groups.values()) for piece in reversed(group))
                raise
            del groups[kind]

    def _taken(self, room: int) -> list[_Piece]:
        """From the head of the queue, as many as have room now; in pieces, of which the first of each request goes
        before the second of any."""
        length = self._slots.count
        free = room - sum(piece.positions(length) for cohort in self._cohorts for piece in cohort.pieces)
        taken = list[_Piece]()
        while self._waiting:
            piece = self._waiting[0]
            share = room // PIECES // piece.conditions - len(piece.order.request.prefix)
            count = min(len(piece.candidates), max(1, share // length))
            part = _Piece(piece.order, piece.candidates[:count])
            alone = not taken and not self._cohorts
            if not alone and (part.positions(length) > free or (not self._is_plain and part.kind != taken[0].kind)):
                break
            self._waiting.popleft()
            if count < len(piece.candidates):
                self._waiting.append(_Piece(piece.order, piece.candidates[count:]))
            taken.append(part)
            free -= part.positions(length)
        return taken

    def _cohort(self, pieces: Sequence[_Piece]) -> _Cohort:
        requests, slots = [piece.order.request for piece in pieces], self._slots
        sampling = requests[0].sampling
        candidates = Candidates(self._vlm, self._decoder, sampling, [request.prefix for request in requests])
        noises = [
            noise_of([r.seed], p.candidates, self._vlm.tokens_per_image) for r, p in zip(requests, pieces, strict=True)
        ]
        cohort = _Cohort(pieces, candidates, slots.spread(torch.cat(noises).to(self._decoder.device), 0))
        if self._is_plain:
            cohort.logits_RV = candidates.start(cohort.each, slots.count)
        else:
            cohort.lines = decode_slots(
                candidates, cohort.noise_RL, cohort.each, sampling, line=self._line, slots=slots
            )
        return cohort

    def _remove_dropped(self) -> None:
        for cohort in list(self._cohorts):
            kept = [at for at, piece in enumerate(cohort.pieces) if not piece.order.is_dropped]
            if not kept:
                self._cohorts.remove(cohort)
            elif len(kept) < len(cohort.pieces) and cohort.lines is None:
                cohort.keep(kept)

    def _shed(self, error: BaseException) -> None:
        """After a lack of memory: half the room, and the last cohort back to the queue. What was decoded of it is
        forgotten; it will be the same."""
        room = self._room()
        if self._cohorts:
            cohort = self._cohorts.pop()
            self._waiting.extendleft(reversed(cohort.pieces))
        if not self._cohorts and room <= 1:
            raise error
        self._positions = max(1, room // 2)
        logger.warning("out of memory with %d positions held; going on with %d", room, self._positions)
        self._decoder.held = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _room(self) -> int:
        """Bound on the positions held."""
        held = self._decoder.held
        held_bytes = 0 if held is None else held.num_bytes
        return self._positions if self._positions is not None else positions_at_once(self._vlm, held_bytes)

    @property
    def _is_plain(self) -> bool:
        return self._decoder.stepping == "plain"

    # Decoding.

    def _decode_line(self) -> None:
        for cohort in self._cohorts:
            if cohort.lines is not None:
                codes_RL = next(cohort.lines)
                cohort.place = codes_RL.shape[1]
                cohort.codes_RL[:, : cohort.place] = codes_RL
        for _ in range(self._line):
            going = [c for c in self._cohorts if c.lines is None and c.place < self._slots.count]
            if not going:
                break
            self._step(going)

    def _step(self, cohorts: Sequence[_Cohort]) -> None:
        """One code of every row."""
        groups = []
        for cohort in cohorts:
            place = cohort.place
            code_R = self._slots.settle(choose(cohort.logits_RV, cohort.noise_RL[:, place], cohort.sampling), place)
            cohort.codes_RL[:, place] = code_R
            cohort.place += 1
            groups.append(cohort.candidates.group(code_R, place))
        going = [at for at, cohort in enumerate(cohorts) if cohort.place < self._slots.count]
        if not going:
            return
        counts = [len(groups[at].ids) for at in going]
        logits_XV = self._decoder.image_logits(self._decoder.step_together([groups[at] for at in going]))
        for at, logits in zip(going, torch.split_with_sizes(logits_XV, counts), strict=True):
            cohorts[at].logits_RV = cohorts[at].candidates.mixed(logits)

    def _grown(self, cohort: _Cohort) -> Iterator[Grown]:
        codes_RN = self._slots.codes(cohort.codes_RL[:, : cohort.place]).to("cpu", copy=True)
        is_whole = cohort.place == self._slots.count
        for piece, drawn_KN in zip(
            cohort.pieces, codes_RN.view(len(cohort.pieces), cohort.each, -1).unbind(0), strict=True
        ):
            order, candidates, codes_KN = piece.order, piece.candidates, drawn_KN
            if order.is_dropped:
                continue
            if is_whole:
                order.missing -= len(candidates)
                if not order.missing:
                    del self._orders[order.key]
            if order.request.sampling.greedy:
                candidates = order.request.candidates
                codes_KN = drawn_KN.expand(len(candidates), -1)
            yield Grown(order.key, candidates, codes_KN, is_whole, not order.missing)
