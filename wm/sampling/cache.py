"""Hold keys and values: a prefix's once, each candidate's own in a cache reserved before the first token.

Shape suffixes: P prefixes, K candidates of each, R = P x K rows (a prefix's rows are neighbours), T prefix tokens, C
capacity of a row in tokens, G groups (heads of keys and values), D head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wm.sampling.weights_view import DecoderView


@dataclass(frozen=True)
class Prefix:
    """Keys and values (P, G, T, D) of each layer. Prefixes of several lengths are padded on the right."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    lengths: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of prefixes, P."""
        return len(self.lengths)

    @property
    def is_padded(self) -> bool:
        """Return whether some prefix is shorter than the longest one."""
        return min(self.lengths) < self.keys[0].shape[2]

    def padding(self) -> Tensor | None:
        """Return a bool mask (P, T), true where there is padding; None if there is none."""
        if not self.is_padded:
            return None
        # Compared on the device: lengths are few, positions many.
        lengths_P = torch.tensor(self.lengths, device=self.keys[0].device)
        return torch.arange(self.keys[0].shape[2], device=lengths_P.device) >= lengths_P[:, None]

    def select(self, which: Sequence[int]) -> "Prefix":
        """Return these prefixes alone, in this order: a copy."""
        # A copy: the memory of those that leave is then free.
        index = torch.tensor(which, device=self.keys[0].device)
        return Prefix(
            tuple(keys[index] for keys in self.keys),
            tuple(values[index] for values in self.values),
            tuple(self.lengths[prefix] for prefix in which),
        )

    def num_bytes(self) -> int:
        """Of all layers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


@dataclass(frozen=True)
class Rows:
    """Keys and values (R, G, C, D) of each layer for tokens after the prefix; what is not filled is zero."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows, R."""
        return len(self.keys[0])

    @property
    def capacity(self) -> int:
        """Tokens that each row has memory for, C."""
        return self.keys[0].shape[2]

    def select(self, rows: Tensor) -> "Rows":
        """Return these rows (int64) alone, in this order: a copy."""
        # Indexing copies, so that the memory of rows that leave is freed.
        return Rows(tuple(keys[rows] for keys in self.keys), tuple(values[rows] for values in self.values))

    def num_bytes(self) -> int:
        """Of all layers."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


def new_rows(view: DecoderView, num_rows: int, capacity: int) -> Rows:
    """Reserve ``capacity`` tokens for each of ``num_rows`` candidates, in the type of the model's weights.

    Args:
        view: Says sizes, type and device.
        num_rows: Candidates of all prefixes, R.
        capacity: Tokens of each row, C.
    """
    shape = (num_rows, view.num_groups, capacity, view.head_width)
    # Zeros, not empty memory: NaN in unwritten positions would pass through a masked softmax as 0 x NaN.
    like = view.layers[0].key.weight

    def reserve() -> tuple[Tensor, ...]:
        return tuple(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in view.layers)

    return Rows(reserve(), reserve())
