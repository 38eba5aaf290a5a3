"""The head of the page: what the data set holds, in a few figures."""

from collections.abc import Mapping
from typing import Any

from wm.viewer.sample import Sample

Figures = list[list[str]]


def figures(record: Mapping[str, Any] | None, triplets: Sample, rejects: Sample, classes: int) -> Figures:
    """[name, value] pairs: rows, then the columns of the paper's Table 7 as far as ``record`` (a stage's
    ``run.json``) has the counts for them."""
    outcomes = {"filtered": 0, "failed": 0}
    for name, count in rejects.counts.items():
        outcome = name.split("\x1f", 1)[0]
        outcomes[outcome] = outcomes.get(outcome, 0) + count
    found: Figures = [["triplets", f"{triplets.total:,}"], ["classes", f"{classes:,}"]]
    if rejects.total:
        found += [[name, f"{count:,}"] for name, count in outcomes.items()]
    return found + table_7(record.get("counts") if record else None)


def table_7(counts: Any) -> Figures:
    """Mean and total length, samples, observations, actions and words (Table 7 counts videos with at least one
    pair as samples); what cannot be known from ``counts`` is left out."""
    if not isinstance(counts, Mapping):
        return []

    def number(name: str) -> float:
        value = counts.get(name)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0

    video_s, decoded = number("video_s"), number("decoded") or number("videos")
    samples, triplets = number("videos_with_triplets"), number("triplets")
    found: Figures = []
    if video_s and decoded:
        found += [["mean length", f"{video_s / decoded:.2f} s"], ["total length", f"{video_s / 3600:,.2f} h"]]
    if samples:
        found.append(["videos with triplets", f"{samples:,.0f}"])
        if number("keyframes_of_paired") and number("paired"):
            found.append(["observations a video", f"{number('keyframes_of_paired') / number('paired'):.2f}"])
        found.append(["actions a video", f"{triplets / samples:.2f}"])
    if number("words") and triplets:
        if samples:
            found.append(["words a video", f"{number('words') / samples:.1f}"])
        found.append(["words an action", f"{number('words') / triplets:.1f}"])
    return found
