"""Size batches by the tokens that memory holds, and halve one that does not fit.

Knows a model's sizes alone, not what is computed with it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.guidance import count_conditions
from wm.sampling.noise import Sampling

Prefilled = TypeVar("Prefilled")

POSITIONS_AT_ONCE = 16_384
"""Default bound on the tokens in one forward pass or cache on a CPU: 8.6 GB of bfloat16 cache for a 7B model."""
MEMORY_SHARE = 0.7
"""Share of a GPU's free memory that a pass is planned to fill; the rest is for what is not counted."""
_FULL = ("can't allocate memory", "could not create a primitive", "could not create a memory", "could not execute a")
"""Messages of torch, without an exception class, where a CPU's memory does not suffice. The last three are oneDNN's,
which has no other message for other faults: such a fault is raised when a single item is left."""

logger = logging.getLogger(__name__)


def rows_at_once(length: int, batch_size: int | None, positions: int = POSITIONS_AT_ONCE) -> int:
    """Return ``batch_size``, or as many rows of ``length`` tokens as make ``positions``; at least 1.

    Args:
        length: Tokens of a row.
        batch_size: Rows, at least 1.
        positions: Bound on the tokens of a pass.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be at least 1, got {batch_size}")
    return batch_size if batch_size is not None else max(1, positions // max(1, length))


def tails_at_once(prefix: int, tail: int, batch_size: int | None, positions: int) -> int:
    """Return ``batch_size``, or as many rows of ``tail`` tokens as fit into ``positions`` beside the one ``prefix``
    that they share; at least 1.

    Args:
        prefix: Tokens that all rows share.
        tail: Tokens of each row after them.
        batch_size: Rows, at least 1.
        positions: Bound on the tokens of a pass.
    """
    return rows_at_once(tail, batch_size, positions - prefix)


def prefixes_at_once(prefix: int, tail: int, each: int, batch_size: int | None, positions: int) -> int:
    """Return how many prefixes with ``each`` rows of ``tail`` tokens make ``batch_size`` rows, or ``positions``; at
    least 1.

    Args:
        prefix: Tokens of the longest prefix.
        tail: Tokens of each row after it.
        each: Rows of each prefix.
        batch_size: Rows, at least 1.
        positions: Bound on the tokens of a pass.
    """
    if batch_size is not None:
        return max(1, rows_at_once(tail, batch_size) // each)
    return rows_at_once(prefix + each * tail, None, positions)


def positions_at_once(vlm: UnifiedVLM, held_bytes: int = 0) -> int:
    """Bound the tokens in one forward pass or cache: :data:`POSITIONS_AT_ONCE` on a CPU; on a GPU what its free memory
    holds.

    Args:
        vlm: The model, whose sizes say what a position takes (:func:`position_bytes`).
        held_bytes: Memory that is allocated now and will be freed before the pass.

    Returns:
        Number of tokens, at least 1.
    """
    device, config = vlm.device, getattr(vlm.module, "config", None)
    if device.type != "cuda" or config is None:
        return POSITIONS_AT_ONCE
    free, _ = torch.cuda.mem_get_info(device)
    # Memory that torch has reserved and no tensor uses is free to us, though not to the driver.
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(1, int((free + idle + held_bytes) * MEMORY_SHARE) // position_bytes(config.get_text_config(), vlm))


def position_bytes(config: Any, vlm: UnifiedVLM) -> int:
    """Return the bytes of one token in one row: keys and values of all layers, and one layer's activations.

    Args:
        config: transformers' configuration of the text model.
        vlm: The model, whose weights have the type of its activations.
    """
    # An estimate: MEMORY_SHARE leaves space for what it leaves out.
    width: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    activations = 8 * config.hidden_size + 3 * config.intermediate_size
    weight: torch.Tensor = next(vlm.module.parameters())
    return int(cached + activations) * weight.element_size()


@dataclass(frozen=True)
class ImagePlan:
    """How the images after some prefixes are cut into batches."""

    order: tuple[int, ...]
    """Indices of the prefixes by length, so that few are padded."""
    num_distinct: int
    """Candidates of each prefix that are decoded: greedy ones are all equal, so that one is."""
    positions: int
    """Bound on the tokens stored at a time."""
    sources_at_once: int
    """Prefixes of a batch with all their candidates."""
    candidates_at_once: int
    """Candidates of a batch, where it has a single prefix."""
    conditions: int
    """Rows of each candidate: 3 with guidance."""

    @property
    def num_rows(self) -> int:
        """Rows of the largest batch, those of guidance among them."""
        num_candidates = min(self.num_distinct, self.candidates_at_once)
        return num_candidates * min(len(self.order), self.sources_at_once) * self.conditions

    def run(
        self,
        prefill: Callable[[Sequence[int]], Prefilled],
        decode: Callable[[Sequence[int], Prefilled, int, int], None],
    ) -> None:
        """Decode batch by batch; one that does not fit into memory is halved.

        Args:
            prefill: Reads the prefixes of these indices.
            decode: Decodes candidates ``first`` to ``last - 1`` after these prefixes, given what ``prefill`` returned.
        """

        def decode_sources(start: int, stop: int) -> None:
            sources = self.order[start:stop]
            candidates = prefill(sources)
            # Several sources were batched so that all their candidates fit; those of one may be too many.
            if len(sources) > 1:
                decode(sources, candidates, 0, self.num_distinct)
            else:
                halving(partial(decode, sources, candidates), self.num_distinct, self.candidates_at_once)

        halving(decode_sources, len(self.order), self.sources_at_once)


def plan_images(
    vlm: UnifiedVLM,
    prefixes: Sequence[Sequence[int]],
    *,
    num_candidates: int,
    sampling: Sampling,
    batch_size: int | None,
    held_bytes: int = 0,
) -> ImagePlan:
    """Plan batches by a budget of tokens: a prefix counts once, each of its rows for a complete image.

    Args:
        vlm: The model.
        prefixes: Vocabulary ids.
        num_candidates: Candidates of each prefix.
        sampling: Says how many rows a candidate has, and whether candidates differ.
        batch_size: Bound on the candidate rows of a pass; what memory holds without it.
        held_bytes: Memory that will be freed before the first pass.

    Raises:
        InputError: For a number of candidates or a batch size below 1.
    """
    if num_candidates < 1:
        raise InputError(f"num_candidates must be at least 1, got {num_candidates}")
    num_distinct, conditions = 1 if sampling.greedy else num_candidates, count_conditions(sampling)
    # Every condition has a prefix and rows of its own.
    longest = max(map(len, prefixes), default=0) * conditions
    tail = vlm.tokens_per_image * conditions
    positions = positions_at_once(vlm, held_bytes)
    return ImagePlan(
        order=tuple(sorted(range(len(prefixes)), key=lambda row: len(prefixes[row]))),
        num_distinct=num_distinct,
        positions=positions,
        sources_at_once=prefixes_at_once(longest, tail, num_distinct, batch_size, positions),
        candidates_at_once=tails_at_once(longest, tail, batch_size, positions),
        conditions=conditions,
    )


def halving(work: Callable[[int, int], object], count: int, at_once: int) -> None:
    """Call ``work(start, stop)`` over ``range(count)`` in chunks of at most ``at_once``.

    A chunk that does not fit into memory is halved, and so are those after it; a warning is logged. The error is raised
    if a single item does not fit.

    Args:
        work: Processes the items ``start`` to ``stop - 1``; it is called again with fewer where they did not fit.
        count: Number of items.
        at_once: Items of the first chunk.
    """
    # A smaller batch is kept for the rest: memory that did not suffice once will not later.
    start = 0
    while start < count:
        stop = min(count, start + at_once)
        if stop - start == 1:
            work(start, stop)  # nothing is left to halve: the error is the caller's
        elif not _fits(work, start, stop):
            at_once = (stop - start) // 2
            logger.warning("out of memory with %d at once; continuing with %d", stop - start, at_once)
            # Cached blocks have the sizes of the failed attempt and would split the memory for the smaller one.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        start = stop


def _fits(work: Callable[[int, int], object], start: int, stop: int) -> bool:
    """Call ``work`` and return whether it fitted into memory.

    A return value, as a traceback would keep the tensors of the failed attempt alive.
    """
    try:
        work(start, stop)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out: a GPU's, the process's, or that of torch's allocator on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in _FULL)
