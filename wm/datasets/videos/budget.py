"""Take a part of a listing: so many videos of each class, or so many hours ("approximately 45 hours", section 3.2).

Videos come in a random order that a seed and each video's own key give. So which ones are taken depends neither on the
order of the listing, nor on where the files are, nor on whether a class was there that is not taken. Knows no file: how
long a video is, the caller says.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from wm.config import Recipe
from wm.datasets.videos.listing import listing_note

BUDGET = "budget"
"""Name of the listing's note that holds the report, as JSON."""


class VideoBudget(Recipe):
    """Which part of the videos is taken. With both limits, ``videos_per_class`` applies first."""

    hours: float | None = Field(default=None, gt=0)
    """Take videos in a random order until they last so many hours; left out: no limit. Local videos only: their headers
    are read in that order until the budget is full."""
    videos_per_class: int | None = Field(default=None, ge=1)
    """Take so many random videos of each class, all of a class that has fewer; left out: no limit. Opens no file."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the random order."""

    @property
    def is_limited(self) -> bool:
        """Return whether there is a limit at all."""
        return self.hours is not None or self.videos_per_class is not None


class BudgetReport(TypedDict):
    """What a budget took.

    Attributes:
        budget: Its settings.
        listed: Videos in the listing.
        taken: Videos that were taken.
        hours: Their length, as far as it is known; None without a budget of hours.
        is_full: The videos taken last as long as the budget; False: all are taken, and there were not more.
        unknown_lengths: Taken videos whose length could not be read; they count as nothing and become rejects.
        by_class: Videos taken of each class.
        short_classes: Classes of which all videos are taken, there being fewer than ``videos_per_class``.
    """

    budget: dict[str, Any]
    listed: int
    taken: int
    hours: float | None
    is_full: bool
    unknown_lengths: int
    by_class: dict[str, int]
    short_classes: int


def random_order(keys: Iterable[str], seed: int) -> npt.NDArray[np.int64]:
    """Order rows by a hash of seed and key.

    Args:
        keys: Of the rows.
        seed: Gives the order.

    Returns:
        Row numbers, int64.
    """
    # A hash of each key, not a shuffle of all: a video's turn does not depend on which others there are.
    prefix = f"{seed}\x1f".encode()
    hashes = [
        int.from_bytes(hashlib.sha256(prefix + key.encode(errors="surrogateescape")).digest()[:8]) for key in keys
    ]
    return np.argsort(np.array(hashes, np.uint64), kind="stable")


def apply_budget(
    listing: pa.Table, budget: VideoBudget, length_s: Callable[[int], float | None]
) -> tuple[pa.Table, BudgetReport]:
    """Take the part of a listing that a budget allows.

    Args:
        listing: A row a video, each key once.
        budget: The limits.
        length_s: Returns the length of a row's video in seconds, None where it cannot be read. Asked in the random
            order, and only until the hours are full; never without a budget of hours.

    Returns:
        The rows taken, in the listing's order, and what was taken.
    """
    order = random_order(listing.column("key").to_pylist(), budget.seed).tolist()
    labels: list[str] = listing.column("class_label").to_pylist()
    # 1. The first so many of each class.
    if budget.videos_per_class is not None:
        order = _first_of_each(order, labels, budget.videos_per_class)
    # 2. Of these, the first until the hours are full: the last one may go beyond them.
    total_s, num_unknown, is_full = 0.0, 0, True
    if budget.hours is not None:
        taken: list[int] = []
        for row in order:
            if total_s >= budget.hours * 3600:
                break
            seconds = length_s(row)
            num_unknown += seconds is None
            total_s += seconds or 0.0
            taken.append(row)
        order, is_full = taken, total_s >= budget.hours * 3600
    # 3. In the listing's own order again, so that segments of one file stay neighbours.
    by_class = Counter(labels[row] for row in order)
    listed = Counter(labels)
    per_class = budget.videos_per_class or 0
    report: BudgetReport = {
        "budget": budget.model_dump(),
        "listed": listing.num_rows,
        "taken": len(order),
        "hours": None if budget.hours is None else round(total_s / 3600, 4),
        "is_full": is_full,
        "unknown_lengths": num_unknown,
        "by_class": dict(sorted(by_class.items())),
        "short_classes": sum(count < per_class for count in listed.values()),
    }
    return listing.take(pa.array(sorted(order), pa.int64())), report


def describe_budget(report: BudgetReport) -> str:
    """Describe in a line what a budget took."""
    # Evenness in a few words: the report itself has every class.
    counts = report["by_class"].values()
    each = f"{min(counts)} to {max(counts)}" if counts and min(counts) < max(counts) else f"{max(counts, default=0)}"
    text = f"budget: {report['taken']:,} of {report['listed']:,} videos, {each} of each of {len(counts):,} classes"
    if report["short_classes"]:
        text += f" (all of {report['short_classes']:,} classes that have fewer than was asked for)"
    if report["hours"] is not None:
        text += f"; {report['hours']:.4g} h of the {report['budget']['hours']:.4g} h asked for"
        text += "" if report["is_full"] else ": there are no more, all are taken"
    if report["unknown_lengths"]:
        text += f"; the length of {report['unknown_lengths']:,} cannot be read"
    return text


def budget_note(listing: pa.Table) -> str:
    """Return the note about the budget that a listing was taken by, as JSON; "" for a complete one."""
    return listing_note(listing, BUDGET)


def _first_of_each(order: list[int], labels: list[str], count: int) -> list[int]:
    counts: Counter[str] = Counter()
    rows: list[int] = []
    for row in order:
        if counts[labels[row]] < count:
            counts[labels[row]] += 1
            rows.append(row)
    return rows
