"""Attend for a step on a GPU in two kernels: chunks of all positions at once, then their merger.

Prefix and own positions are cut into chunks, so that even one row keeps every multiprocessor busy (as in flash
decoding, https://pytorch.org/blog/flash-decoding). A chunk of a prefix is read once for all candidates' queries of a
group of heads. Scores stay in registers; the parts are merged by the log of the sum of exponentials. How far to read is
read from the device, so that one recording serves every step, and the new keys and values are stored on the way.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from wm.sampling.cache import Rows
from wm.sampling.llama_layers import Attend
from wm.sampling.llama_runner import LlamaRunner
from wm.sampling.weights_view import DecoderView

QUERIES = 16
"""Queries of a program: the fewest that the matrix units take."""
BLOCK = 64
"""Positions that a program reads at a time."""
BUSY = 528
"""Programs that keep a large GPU busy (four for each of 132 multiprocessors)."""


def can_attend(runner: LlamaRunner) -> bool:
    """Return whether Triton is at hand and wanted and the kernels know the runner's type and heads: their width, and
    no more to a group than a program has queries."""
    view = runner.view
    of_type = runner.dtype in (torch.bfloat16, torch.float16, torch.float32)
    of_shape = view.head_width in (16, 32, 64, 128, 256) and view.num_heads // view.num_groups <= QUERIES
    return runner.kernels and of_type and of_shape and runner.device.type == "cuda" and find_spec("triton") is not None


class StepAttention:
    """The buffers of one step's attention, and the call of its kernels."""

    def __init__(
        self, num_rows: int, num_prefixes: int, prefix_capacity: int, capacity: int, view: DecoderView
    ) -> None:
        self._view, self._num_rows, self._num_prefixes = view, num_rows, num_prefixes
        self._prefix_capacity, self._capacity = prefix_capacity, capacity
        self._each = num_rows // num_prefixes
        self._row_blocks = -(-self._each * (view.num_heads // view.num_groups) // QUERIES)
        # The largest chunk that still gives every multiprocessor work: fewer parts to merge.
        self._chunk = next(size for size in (256, 128, BLOCK) if self._programs(size) >= BUSY or size == BLOCK)
        self._parts = -(-prefix_capacity // self._chunk), -(-capacity // self._chunk)
        device = view.embedding.device
        shape = (sum(self._parts), num_rows, view.num_heads, view.head_width)
        # In float32: the merger weighs parts by exponentials of differences.
        self._head_parts = torch.zeros(shape, dtype=torch.float32, device=device)
        self._lse_parts = torch.zeros(shape[:-1], dtype=torch.float32, device=device)

    def _programs(self, chunk: int) -> int:
        prefix = self._num_prefixes * self._row_blocks * -(-self._prefix_capacity // chunk)
        # On average half of the own positions are filled.
        return self._view.num_groups * (prefix + self._num_rows * -(-self._capacity // chunk) // 2)

    def of(
        self, prefix_keys: Tensor, prefix_values: Tensor, rows: Rows, lengths_P: Tensor, position_1: Tensor
    ) -> Attend:
        """Build the function that the runner calls in each layer.

        Args:
            prefix_keys: (layers, P, G, T, D), filled up to ``lengths_P``.
            prefix_values: The same of the values.
            rows: Filled up to ``position_1``, where the new keys and values are stored.
            lengths_P: int64, tokens of each prefix.
            position_1: int64 (1,), on the device.
        """

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own = rows.keys[layer], rows.values[layer]
            return self(
                query, key, value, (prefix_keys[layer], prefix_values[layer]), own, until=(lengths_P, position_1)
            )

        return attend

    def __call__(
        self,
        query_RAD: Tensor,
        key_RGD: Tensor,
        value_RGD: Tensor,
        prefix: tuple[Tensor, Tensor],
        own: tuple[Tensor, Tensor],
        *,
        until: tuple[Tensor, Tensor],
    ) -> Tensor:
        """Attend from each row's query, scaled already, to its prefix and its own tokens up to the new one: (R, A x
        D)."""
        kernels: Any = _kernels()
        view, (prefix_parts, own_parts) = self._view, self._parts
        query_RAD, key_RGD, value_RGD = map(_with_heads_in_order, (query_RAD, key_RGD, value_RGD))
        prefix_programs = self._num_prefixes * view.num_groups * self._row_blocks * prefix_parts
        kernels.attend_parts[(prefix_programs + self._num_rows * view.num_groups * own_parts,)](
            query_RAD,
            query_RAD.stride(0),
            key_RGD,
            key_RGD.stride(0),
            value_RGD,
            value_RGD.stride(0),
            *prefix,
            *own,
            *until,
            self._head_parts,
            self._lse_parts,
            self._num_rows,
            self._num_prefixes,
            self._each,
            self._prefix_capacity,
            self._capacity,
            prefix_parts,
            own_parts,
            self._row_blocks,
            GROUPS=view.num_groups,
            SHARE=view.num_heads // view.num_groups,
            WIDTH=view.head_width,
            CHUNK=self._chunk,
            BLOCK_M=QUERIES,
            BLOCK_N=BLOCK,
            num_warps=4,
            num_stages=2,
        )
        num_parts, number = prefix_parts + own_parts, self._num_rows * view.num_heads
        mixed = torch.empty(
            (self._num_rows, view.num_heads * view.head_width), dtype=query_RAD.dtype, device=query_RAD.device
        )
        kernels.merge_parts[(number,)](
            self._head_parts,
            self._lse_parts,
            mixed,
            number,
            num_parts,
            WIDTH=view.head_width,
            PARTS=1 << (num_parts - 1).bit_length(),
            num_warps=1,
        )
        return mixed


def _kernels() -> Any:
    # Imported here: Triton is not everywhere.
    from wm.sampling.kernels import triton_kernels

    return triton_kernels


def _with_heads_in_order(new: Tensor) -> Tensor:
    """Return (R, heads, D) with a row's heads side by side in memory, whatever is between rows."""
    return new if new.stride()[1:] == (new.shape[2], 1) else new.contiguous()
