"""How much at once: batches by length, and half of one that does not fit into memory."""

import logging
from collections.abc import Callable

import torch

from wm.errors import InputError

POSITIONS_AT_ONCE = 16_384
"""Default bound on rows x length in one forward pass or cache: 8.6 GB of bfloat16 cache for a 7B model."""

logger = logging.getLogger(__name__)


def rows_at_once(length: int, batch_size: int | None) -> int:
    """``batch_size``, or as many rows of ``length`` tokens as :data:`POSITIONS_AT_ONCE` holds; at least 1."""
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size if batch_size is not None else max(1, POSITIONS_AT_ONCE // max(1, length))


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
    except (torch.OutOfMemoryError, MemoryError):
        return False
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):
            raise
        return False
    return True
