"""Hold a proposed pair on its way through the filters, and split work into batches. Knows neither codec nor IDM."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from jobs.annotate.tables import DecodedVideo, PairRow
from wm.datasets.filters import Filters, PairNumbers
from wm.records import stable_id
from wm.video import frame_pairs

if TYPE_CHECKING:
    from wm.dynamics import ScoredAction  # brings torch, which the driver need not load

T = TypeVar("T")


@dataclass
class Pair:
    """A source and a target of a video on their way through the filters.

    Attributes:
        video: The decoded video.
        source: Row of the source in the video's lists of key-frames.
        target: Row of the target.
        repeat_bits: Bits to the nearest earlier pair.
        changed_codes: Image codes that differ.
        num_codes: Codes of an image.
        findings: Thresholds that the pair is beyond.
        reason: Why it is filtered; empty if it is not.
        detail: The same in words.
        action: What the IDM reads from the pair.
    """

    video: DecodedVideo
    source: int
    target: int
    repeat_bits: int | None = None
    changed_codes: int | None = None
    num_codes: int = 0
    findings: list[str] = field(default_factory=list)
    reason: str = ""
    detail: str = ""
    action: "ScoredAction | None" = None

    def id_parts(self, *more: str) -> tuple[str | int, ...]:
        """Return the parts of this pair's ids."""
        frames = self.video["keyframes"]
        return (self.video["key"], *more, frames[self.source], frames[self.target])

    def hashes(self) -> tuple[int, int]:
        """Return the perceptual hashes of both frames."""
        return self.video["phash"][self.source], self.video["phash"][self.target]

    def numbers(self, filters: Filters) -> PairNumbers:
        """Return the figures that the image filters compare; None where a filter is off."""

        def min_of_both(values: Sequence[float]) -> float:
            return float(min(values[self.source], values[self.target]))

        # A pair is as dark or blurred as its worse frame.
        return {
            "repeat_bits": self.repeat_bits,
            "difference": self.video["difference"][self.target] if filters.static != "off" else None,
            "cut": self.video["cut"][self.target] if filters.cut != "off" else None,
            "luma": min_of_both(self.video["luma"]) if filters.dark != "off" else None,
            "sharpness": min_of_both(self.video["sharpness"]) if filters.blurred != "off" else None,
        }

    def row(self, dataset: str, filters: Filters) -> PairRow:
        """Build this pair's row of the table ``pairs``.

        Args:
            dataset: Name of the data set, a part of the id.
            filters: Numbers of a filter that is off are null.
        """
        # What was not measured, or not reached, is null.
        frames, action = self.video["keyframes"], self.action
        # An endpoint may report no token of an answer without words.
        is_scored = action is not None and not math.isnan(action.logprob)
        hashes = self.hashes() if filters.near_duplicate != "off" else (None, None)
        return {
            "triplet_id": stable_id(dataset, *self.id_parts()),
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
            "action_logprob": action.logprob if action and is_scored else None,
            "action_tokens": action.num_tokens if action and is_scored else None,
            "outcome": "filtered" if self.reason else "ok",
            "reason": self.reason,
            "findings": self.findings,
        }


def propose_pairs(videos: Sequence[DecodedVideo]) -> list[Pair]:
    """Propose every pair of consecutive key-frames, video by video.

    Args:
        videos: Those of one key-frame, or that failed, give none.
    """
    return [
        Pair(video, source, target)
        for video in videos
        for source, target in frame_pairs(range(len(video["phash"] or [])))
    ]


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
    """Split items into consecutive chunks whose sizes differ by at most one: 65 by 64 are 33 and 32, not 64 and 1.

    Args:
        items: What is split.
        max_size: Max number of items in a chunk, 1 or more.
    """
    count = -(-len(items) // max_size)
    for part in range(count):
        yield list(items[part * len(items) // count : (part + 1) * len(items) // count])


def halve_when_full(function: Callable[[int, int], T], count: int) -> list[T]:
    """Call a function on a batch, or on parts of it where memory does not hold all of it.

    Args:
        function: Maps the rows from start to stop to a result.
        count: Number of rows.

    Returns:
        The results of consecutive parts, in order.
    """
    # Imported here: it brings torch, which the driver need not load.
    from wm.sampling.batches import halving

    parts: list[T] = []
    halving(lambda start, stop: parts.append(function(start, stop)), count, count)
    return parts
