"""How much at once: batches by length, and half of one that does not fit into memory."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from wm.errors import InputError
from wm.models.protocol import UnifiedVLM

POSITIONS_AT_ONCE = 16_384
"""Default bound on the tokens in one forward pass or cache on a CPU: 8.6 GB of bfloat16 cache for a 7B model."""
MEMORY_SHARE = 0.7
"""Of a GPU's free memory that a pass is planned to fill; the rest is for what is not counted."""
_FULL = ("can't allocate memory", "could not create a primitive", "could not create a memory", "could not execute a")
"""What torch says, without an exception of its own, where a CPU's memory does not suffice; the last three are oneDNN's,
which says no more of what went wrong: if it was something else, it is raised when a single item is left."""

logger = logging.getLogger(__name__)


def rows_at_once(length: int, batch_size: int | None, positions: int = POSITIONS_AT_ONCE) -> int:
    """``batch_size``, or as many rows of ``length`` tokens as make ``positions``; at least 1."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size if batch_size is not None else max(1, positions // max(1, length))


def tails_at_once(prefix: int, tail: int, batch_size: int | None, positions: int) -> int:
    """``batch_size``, or as many rows of ``tail`` tokens as fit into ``positions`` beside the one ``prefix`` that they
    share; at least 1."""
    return rows_at_once(tail, batch_size, positions - prefix)


def prefixes_at_once(prefix: int, tail: int, each: int, batch_size: int | None, positions: int) -> int:
    """How many prefixes with ``each`` rows of ``tail`` tokens make ``batch_size`` rows, or ``positions``; at least
    1."""
    if batch_size is not None:
        return max(1, rows_at_once(tail, batch_size) // each)
    return rows_at_once(prefix + each * tail, None, positions)


def positions_at_once(vlm: UnifiedVLM, held_bytes: int = 0) -> int:
    """Bound on the tokens in one forward pass or cache: :data:`POSITIONS_AT_ONCE` on a CPU; on a GPU what its free
    memory holds.

    A position is its keys and values in every layer, and what one layer works on. ``held_bytes``: what will be given
    back before.
    """
    device, config = vlm.device, getattr(vlm.module, "config", None)
    if device.type != "cuda" or config is None:
        return POSITIONS_AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int((free + idle + held_bytes) * MEMORY_SHARE) // position_bytes(config.get_text_config(), vlm))


def position_bytes(config: Any, vlm: UnifiedVLM) -> int:
    """Of one token in one row: keys and values of all layers, and one layer's inputs, products and outputs."""
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    worked_on = 8 * config.hidden_size + 3 * config.intermediate_size
    return int(cached + worked_on) * next(vlm.module.parameters()).element_size()


def halving(work: Callable[[int, int], object], count: int, at_once: int) -> None:
    """Call ``work(start, stop)`` over ``range(count)`` in pieces of at most ``at_once``.

    A piece that does not fit into memory is halved, which is logged as a warning, and so is what comes after it; the
    error is raised if a single item does not fit.
    """
    start = 0
    while start < count:
        stop = min(count, start + at_once)
        if stop - start == 1:
            work(start, stop)
        elif not _fits(work, start, stop):
            at_once = (stop - start) // 2
            logger.warning("out of memory with %d at once; going on with %d", stop - start, at_once)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = stop


def _fits(work: Callable[[int, int], object], start: int, stop: int) -> bool:
    """Returns, rather than raises, so that no traceback keeps the tensors of the failed attempt alive."""
    try:
        work(start, stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of the process, or of torch's allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _FULL)
