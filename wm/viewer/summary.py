"""Summarise a data set for the head of the page: what the data set holds, in a few figures."""

from collections.abc import Mapping
from typing import TypeAlias, TypeGuard

from wm.viewer.sample import Sample

Figures: TypeAlias = list[tuple[str, str]]
"""Names and values, both as text."""


def list_figures(record: Mapping[str, object] | None, triplets: Sample, rejects: Sample, classes: int) -> Figures:
    """List the number of rows, then the columns of the paper's Table 7 as far as they were counted.

    Args:
        record: A stage's ``run.json``, or None.
        triplets: The sampled triplets.
        rejects: The sampled rejects.
        classes: Number of classes.

    Returns:
        The figures.
    """
    # Both outcomes are shown where there is any reject, so that a 0 can be read.
    outcomes = {"filtered": 0, "failed": 0}
    for name, count in rejects.counts.items():
        outcome = name.split("\x1f", 1)[0]
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    result: Figures = [("triplets", f"{triplets.total:,}"), ("classes", f"{classes:,}")]
    if rejects.total:
        result += [(name, f"{count:,}") for name, count in outcomes.items()]
    counts = record.get("counts") if record else None
    return result + list_table_7(counts if isinstance(counts, Mapping) else {})


_TABLE_7 = {
    "mean_length_s": ("mean length", "{:.2f} s"),
    "total_length_h": ("total length", "{:,.2f} h"),
    "samples": ("videos with triplets", "{:,.0f}"),
    "observations_per_video": ("observations a video", "{:.2f}"),
    "actions_per_video": ("actions a video", "{:.2f}"),
    "words_per_action": ("words an action", "{:.1f}"),
}


def list_table_7(counts: Mapping[str, object]) -> Figures:
    """List the columns of the paper's Table 7 that a run counted (``counts["table7"]``); from an older run's counts
    what follows from them.
    """
    table = counts.get("table7")
    if not isinstance(table, Mapping):
        table = _from_counts(counts)
    return [(name, form.format(value)) for key, (name, form) in _TABLE_7.items() if _is_number(value := table.get(key))]


def _from_counts(counts: Mapping[str, object]) -> dict[str, float]:
    # Runs of before the table was counted: what their sums give.
    names = ("video_s", "videos", "videos_with_triplets", "triplets")
    video_s, videos, used, triplets = (value if _is_number(value := counts.get(name)) else 0 for name in names)
    table: dict[str, float] = {}
    if video_s and videos:
        table |= {"mean_length_s": video_s / videos, "total_length_h": video_s / 3600}
    if used:
        table |= {"samples": used, "actions_per_video": triplets / used}
    return table


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
