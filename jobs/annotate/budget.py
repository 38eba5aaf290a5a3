"""Apply a recipe's budget to its listing: lengths come from headers, read in a child that may be killed."""

import json
from typing import cast

import pyarrow as pa

from wm.cli import progress_bar
from wm.datasets.videos.budget import BUDGET, BudgetReport, VideoBudget, apply_budget, budget_note
from wm.errors import InputError
from wm.files.uris import is_remote, local_path
from wm.video.errors import VideoError
from wm.video.isolation import IsolatedProcess
from wm.video.length import read_length_s

MAX_LENGTH_S = 24 * 3600
"""A header that says more is taken for a damaged one: the length is then not known."""


def take_budget(listing: pa.Table, budget: VideoBudget, limit_s: float) -> pa.Table:
    """Take the part of the listing that the budget allows, with a note of what was taken.

    Args:
        listing: A row a video.
        budget: The limits.
        limit_s: Time for one header; a video that takes longer has no known length.

    Raises:
        InputError: Hours are asked for of videos that are remote.
    """
    # Nothing is opened, and no note written, where there is no limit.
    if not budget.is_limited:
        return listing
    if budget.hours is None:
        return _add_note(listing, *apply_budget(listing, budget, lambda row: None))
    uris, starts, ends = (listing.column(name).to_pylist() for name in ("uri", "start_s", "end_s"))
    with IsolatedProcess() as process, progress_bar(round(budget.hours * 3600), "s", "budget") as bar:

        def length_s(row: int) -> float | None:
            start_s, end_s = starts[row] or 0.0, ends[row]
            # A segment brings its length; only what lasts to the file's end has to be looked up.
            if end_s is None:
                if is_remote(uris[row]):
                    raise InputError(
                        f"budget.hours = {budget.hours:g} needs the length of {uris[row]!r:.200}, and remote headers "
                        "are not read; give budget.videos_per_class, or a list with start_s and end_s"
                    )
                try:
                    end_s = process.call(limit_s, read_length_s, local_path(uris[row]))
                # Taken all the same: it becomes a reject with its reason.
                except VideoError:
                    return None
                # A damaged header would fill the budget with one file.
                if end_s > MAX_LENGTH_S:
                    return None
            seconds = max(0.0, float(end_s) - start_s)
            bar.update(round(seconds))
            return seconds

        part, report = apply_budget(listing, budget, length_s)
    return _add_note(listing, part, report)


def report_of(listing: pa.Table) -> BudgetReport | None:
    """Return what the budget took; None for a complete listing."""
    note = budget_note(listing)
    return cast(BudgetReport, json.loads(note)) if note else None


def _add_note(listing: pa.Table, part: pa.Table, report: BudgetReport) -> pa.Table:
    """Return the part with the listing's notes and the budget's."""
    return part.replace_schema_metadata({**(listing.schema.metadata or {}), BUDGET: json.dumps(report)})
