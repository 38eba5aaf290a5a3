"""What the rest of ``wm`` needs of a model family, and no more.

Shape suffixes: B rows, T tokens, N image tokens, K candidates, D codec features, H hidden width.
"""

from collections.abc import Sequence, Set
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

Task: TypeAlias = Literal["idm", "fdm"]
"""``idm``: (source, target) to action. ``fdm``: (source, action) to target."""


class Segment(NamedTuple):
    """A run of vocabulary ids of one kind. ``is_completion``: the part that is learned, scored or sampled."""

    ids: tuple[int, ...]
    is_completion: bool
    is_image: bool


class UnifiedVLM(Protocol):
    """A causal language model whose vocabulary holds both text and image codes."""

    family: str
    codec_id: str
    base_id: str
    tokens_per_image: int
    image_rows: Tensor
    """int64 (num_codes,): codebook id to vocabulary id."""
    text_rows: Tensor
    """int64: vocabulary ids that a generated text may use, end-of-sequence among them."""
    bos_id: int
    eos_id: int
    pad_id: int
    boi_id: int
    eoi_id: int
    action_slot_tokens: int
    """Length to which a forward prompt pads its action with ``pad_id``; 0: not at all."""
    row_tokens: int
    """Codes after which an image has ``row_end_id``, between its rows; 0: its codes are one run."""
    row_end_id: int
    """Vocabulary id that is fed, not sampled, after every ``row_tokens`` codes; -1: none."""
    module: nn.Module
    """The Hugging Face model, wrapped by PEFT when it carries an adapter."""
    tokenizer: Any

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def layout(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: str | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """Build the one prompt layout, of codebook ids and an action. Without completion: the prefix."""
        ...

    def layout_ids(
        self,
        task: Task,
        *,
        source: Sequence[int],
        action: Sequence[int] | None = None,
        target: Sequence[int] | None = None,
    ) -> list[Segment]:
        """:meth:`layout` of vocabulary ids, which are not looked at."""
        ...

    @property
    def reserved_ids(self) -> Set[int]:
        """Vocabulary ids that no action may hold: image codes and structure."""
        ...

    @property
    def max_positions(self) -> int:
        """The longest sequence that the transformer was made for."""
        ...

    def check_guidance(self) -> None:
        """Raise ``InputError`` if images cannot be sampled with guidance."""
        ...

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Build a forward prompt without its text, and without anything, as the family was trained to read them."""
        ...

    def body(self, ids_BT: Tensor, cache: Any = None, positions_BT: Tensor | None = None) -> Tensor:
        """Hidden states (B, T, H) after the last norm; ``cache`` (transformers' ``Cache``) is extended."""
        ...

    def head(self, hidden: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (…, len(rows)) of the given vocabulary rows, or (…, vocabulary) of all."""
        ...

    def tokenize_action(self, text: str) -> list[int]:
        """Vocabulary ids of an action, without special tokens."""
        ...

    def detokenize(self, ids: Sequence[int]) -> str:
        """Return the text of vocabulary ids, special tokens left out."""
        ...
