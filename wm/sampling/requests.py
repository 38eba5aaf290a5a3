"""Describe requests for images, the chunks that they are scheduled in, and what a step returns of them."""

from dataclasses import dataclass, field

from torch import Tensor

from wm.errors import InputError
from wm.sampling.guidance import count_conditions
from wm.sampling.noise import Sampling


@dataclass(frozen=True)
class ImageRequest:
    """Candidates ``first_candidate`` to ``first_candidate + num_candidates - 1`` after a prefix (vocabulary ids)."""

    prefix: tuple[int, ...]
    num_candidates: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    first_candidate: int = 0

    def __post_init__(self) -> None:
        for name, value, minimum in (
            ("num_candidates", self.num_candidates, 1),
            ("seed", self.seed, 0),
            ("first_candidate", self.first_candidate, 0),
        ):
            if value < minimum:
                raise InputError(f"{name} must be at least {minimum}, got {value}")

    @property
    def candidates(self) -> range:
        """Numbers of the candidates."""
        return range(self.first_candidate, self.first_candidate + self.num_candidates)


@dataclass(frozen=True)
class StepOutput:
    """What a chunk of a request has after a line of the image."""

    request_id: int
    """As :meth:`~wm.sampling.engine.ImageEngine.add_request` returned it."""
    candidates: range
    """Numbers of the chunk's candidates."""
    codes: Tensor
    """int64 (K, n) on the CPU: the first n codes of each."""
    is_complete: bool
    """Whether these images are complete: n = N."""
    is_finished: bool
    """Whether nothing of the request is left to decode after these."""


@dataclass
class RequestState:
    """A request that is not finished. ``missing``: candidates that are not decoded."""

    request_id: int
    request: ImageRequest
    missing: int
    is_aborted: bool = False


@dataclass(frozen=True)
class Chunk:
    """Candidates of a request that are decoded in one running batch."""

    state: RequestState
    candidates: range

    def count_tokens(self, length: int) -> int:
        """Count the tokens to store for images of ``length`` tokens: the prefix once, and the rows."""
        return self.conditions * (len(self.state.request.prefix) + len(self.candidates) * length)

    @property
    def conditions(self) -> int:
        """Rows of each candidate: 3 with guidance."""
        return count_conditions(self.state.request.sampling)

    @property
    def kind(self) -> tuple[int, Sampling]:
        """Chunks of one kind can be one running batch."""
        return len(self.candidates), self.state.request.sampling
