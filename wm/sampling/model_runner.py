"""Define what the engine needs of a model runner.

A runner computes hidden states and logits over caches; what tokens mean, and which are sampled, is decided elsewhere.
:class:`~wm.sampling.llama_runner.LlamaRunner` knows decoders of the Llama kind and is fast;
:class:`~wm.sampling.transformers_runner.TransformersRunner` runs transformers' own modules and knows every decoder.

Shape suffixes: P prefixes, R rows (a prefix's rows are neighbours), S new tokens a row, T tokens, X rows of several
batches, H hidden width, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from wm.models.vlm import UnifiedVLM

Stepping: TypeAlias = Literal["auto", "plain", "static", "graph", "compiled"]
"""How images are decoded, see :mod:`wm.sampling.kernels.cuda_graphs`; ``auto``: ``graph`` on CUDA, ``plain``
elsewhere."""


class PrefixCache(Protocol):
    """Keys and values of prefixes, read once."""

    @property
    def count(self) -> int:
        """Number of prefixes, P."""
        ...

    def select(self, which: Sequence[int]) -> "PrefixCache":
        """Return these prefixes alone, in this order."""
        ...


class RowCache(Protocol):
    """Keys and values of each row's own tokens."""

    @property
    def num_rows(self) -> int:
        """Number of rows, R."""
        ...

    def select(self, rows: Tensor) -> "RowCache":
        """Return these rows (int64) alone, in this order."""
        ...


class StepBuffers(Protocol):
    """Buffers of static steps (:mod:`wm.sampling.kernels.cuda_graphs`)."""

    @property
    def num_bytes(self) -> int:
        """Bytes of memory."""
        ...


class SelfTest(NamedTuple):
    """How a fast way of decoding compares with the plain one, on a model's own prompt and shapes."""

    agrees: bool
    error: float
    """Largest root mean square of the difference of logits, over their standard deviation; infinite where it failed."""
    limit: float
    """Up to which the two agree."""
    positions: tuple[int, ...]
    """Of the image, at which logits were compared."""
    detail: str = ""
    """Why it could not be compared."""


class StepInput(NamedTuple):
    """A batch's part of a pass: the token of each row (R,), all at one position, and the caches that they extend."""

    ids: Tensor
    prefix: PrefixCache
    rows: RowCache
    position: int


class ModelRunner(ABC):
    """A model ready for many passes, as it is now: build a new runner after its weights have changed.

    Args:
        vlm: The model.
        stepping: How images are decoded, not ``auto``.
    """

    can_draft = False
    """Whether rows may be at positions of their own, as speculative decoding needs."""

    def __init__(self, vlm: UnifiedVLM, stepping: Stepping) -> None:
        self.image_rows, self.device, self.stepping = vlm.image_rows, vlm.device, stepping
        self.static_steps: StepBuffers | None = None
        """Buffers and recordings of the last images, for others of the same shape."""
        self.self_tests: dict[str, SelfTest] = {}
        """Of each way of decoding that was built, the last comparison with the plain one."""
        self.is_logged = False
        """Whether it has been logged how images are decoded."""

    def describe_decoding(self) -> dict[str, object]:
        """Describe how images are decoded, for records: the way, and the comparisons that it rests on."""
        # A copy: a server is asked while another thread samples.
        tests = dict(self.self_tests)
        return {
            "stepping": self.stepping,
            "self_tests": {way: test._asdict() | {"positions": list(test.positions)} for way, test in tests.items()},
        }

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Number of vocabulary ids that can be read."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Type of the weights."""

    @property
    def exact(self) -> torch.dtype:
        """Type in which probabilities are computed: float32 at least."""
        # Half precision has too few digits for sums of thousands of probabilities.
        return torch.float64 if self.dtype is torch.float64 else torch.float32

    @abstractmethod
    def weights(self) -> Iterator[Tensor]:
        """Iterate over the tensors of weights, the model's own among them; some come more than once."""

    @abstractmethod
    def prefill(self, prefixes: Sequence[Sequence[int]]) -> tuple[PrefixCache, Tensor]:
        """Read prefixes (vocabulary ids, at least one each).

        Returns:
            Their caches, and the hidden states (P, H) of their last tokens.
        """

    @abstractmethod
    def forward(self, ids_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, H) of complete sequences; nothing is cached."""

    @abstractmethod
    def reserve(self, num_rows: int, capacity: int) -> RowCache:
        """Reserve empty caches for ``capacity`` tokens of each of ``num_rows`` rows.

        Args:
            num_rows: Rows of all prefixes, R.
            capacity: Tokens of each.
        """

    @abstractmethod
    def extend(
        self, ids_RS: Tensor, prefix: PrefixCache, rows: RowCache, positions: int | Tensor, filled: int
    ) -> Tensor:
        """Compute the hidden states (R, S, H) of the next S tokens of every row, and store their keys and values.

        Args:
            ids_RS: Vocabulary ids.
            prefix: What the rows follow; R is a multiple of P.
            rows: Caches, extended in place. What they hold from ``positions`` on is replaced.
            positions: Position of the first new token in its row, the same for all, or int64 (R,) where the runner
                ``can_draft``.
            filled: Length of the longest row after this, at most what was reserved.
        """

    @abstractmethod
    def step(self, inputs: Sequence[StepInput]) -> Tensor:
        """Compute the hidden states (X, H) of one token of every row of several batches, in their order.

        Keys and values are stored; a step that is repeated replaces them.
        """

    @abstractmethod
    def image_logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, codes) of the image codes alone."""

    @abstractmethod
    def logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, V) of all tokens of the text's head."""
