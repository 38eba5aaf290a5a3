"""Hold a proposed pair on its way through the filters, and split work into batches. Knows neither codec nor IDM."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from wm.datasets.filters import Filters
from wm.records import stable_id

T = TypeVar("T")


@dataclass
class Pair:
    """One source and target of a video: rows of the video's key-frame lists; then what became of it."""

    video: dict[str, Any]
    source: int
    target: int
    repeat_bits: int | None = None
    changed_codes: int | None = None
    num_codes: int = 0
    findings: list[str] = field(default_factory=list)
    reason: str = ""
    detail: str = ""
    action: Any = None

    def ident(self, *more: str) -> tuple[Any, ...]:
        """Return the parts of this pair's ids."""
        frames = self.video["keyframes"]
        return (self.video["key"], *more, frames[self.source], frames[self.target])

    def lower(self, column: str) -> float:
        """Return the smaller of both frames' values in a column."""
        return float(min(self.video[column][self.source], self.video[column][self.target]))

    def hashes(self) -> tuple[int, int]:
        """Return the perceptual hashes of both frames."""
        return self.video["phash"][self.source], self.video["phash"][self.target]

    def numbers(self, filters: Filters) -> dict[str, Any]:
        """Return the figures that the image filters compare; None where a filter is off."""
        return {
            "repeat_bits": self.repeat_bits,
            "difference": self.video["difference"][self.target] if filters.static != "off" else None,
            "cut": self.video["cut"][self.target] if filters.cut != "off" else None,
            "luma": self.lower("luma") if filters.dark != "off" else None,
            "sharpness": self.lower("sharpness") if filters.blurred != "off" else None,
        }

    def row(self, dataset: str, filters: Filters) -> dict[str, Any]:
        """Build this pair's row of :data:`jobs.annotate.tables.PAIRS_SCHEMA`."""
        frames, action = self.video["keyframes"], self.action
        hashes = self.hashes() if filters.near_duplicate != "off" else (None, None)
        return {
            "triplet_id": stable_id(dataset, *self.ident()),
            "key": self.video["key"],
            "class_label": self.video["class_label"],
            "source_frame": frames[self.source],
            "target_frame": frames[self.target],
            "motion": self.video["motion"][frames[self.target]],
            **self.numbers(filters),
            "source_hash": hashes[0],
            "target_hash": hashes[1],
            "changed_codes": self.changed_codes,
            "changed_share": None if self.changed_codes is None else self.changed_codes / self.num_codes,
            "action": action.text if action else None,
            "action_logprob": action.logprob if action else None,
            "action_tokens": action.num_tokens if action else None,
            "outcome": "filtered" if self.reason else "ok",
            "reason": self.reason,
            "findings": self.findings,
        }


@dataclass
class Seconds:
    """Time spent on a shard, by stage."""

    by_stage: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to ``stage``."""
        begin = time.perf_counter()
        yield
        self.by_stage[stage] = self.by_stage.get(stage, 0.0) + time.perf_counter() - begin


def even_chunks(items: Sequence[T], max_size: int) -> Iterator[list[T]]:
    """Split items into consecutive chunks whose sizes differ by at most one: 65 by 64 are 33 and 32, not 64 and 1."""
    count = -(-len(items) // max_size)
    for part in range(count):
        yield list(items[part * len(items) // count : (part + 1) * len(items) // count])


def halve_when_full(function: Callable[[Any], Sequence[Any]], batch: Any) -> list[Any]:
    """Call a function on a batch, or on parts of it where memory does not hold all of it.

    Args:
        function: Returns a tuple of sequences or tensors, each with a row for every row of its batch.
        batch: Anything that has a length and can be sliced.

    Returns:
        The function's sequences and tensors for the complete batch.
    """
    import torch

    from wm.sampling.batches import halving

    parts: list[Sequence[Any]] = []
    halving(lambda start, stop: parts.append(function(batch[start:stop])), len(batch), len(batch))
    return [
        torch.cat(column) if isinstance(column[0], torch.Tensor) else [row for rows in column for row in rows]
        for column in zip(*parts, strict=True)
    ]
