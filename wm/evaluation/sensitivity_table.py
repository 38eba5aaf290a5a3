"""Build and format the table of action sensitivity. Knows neither models nor how the differences were measured."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wm.cards import escape_markdown
from wm.evaluation.rows import SensitivityRow, SensitivityTable, SubsetSensitivity
from wm.evaluation.sensitivity import (
    LIKELIHOOD,
    NO_OTHER,
    OTHER_ACTIONS,
    SHUFFLED,
    VERIFIER,
    Gaps,
    GapSummary,
    align_runs,
    summarise_gaps,
)
from wm.runs import write_text

UNITS = {LIKELIHOOD: "nats an image token", VERIFIER: "nats an action token"}

GapsByRun = Mapping[tuple[str, int], Mapping[str, Gaps]]
"""(label, training seed) → other action → differences."""


def build_sensitivity(
    likelihood: GapsByRun,
    subsets: Sequence[str],
    *,
    verifier: GapsByRun | None = None,
    reasons: Mapping[tuple[str, str, str], str] | None = None,
) -> SensitivityTable:
    """Build the table.

    Args:
        likelihood: Differences of log-likelihoods of targets.
        subsets: Subset of each triplet.
        verifier: Differences of the verifier's log-likelihoods of actions.
        reasons: (label, by, other action) → why a comparison is absent, where it is not the triplets' doing; those of
            models without any comparison too.

    Returns:
        Rows by label and other action, and what is absent with its reason.
    """
    table: SensitivityTable = {"rows": [], "absent": [], "ignoring": []}
    reasons = dict(reasons or {})
    # A model may have figures of both kinds, or of neither with a reason.
    for by, gaps in ((LIKELIHOOD, likelihood), (VERIFIER, verifier or {})):
        labels = [label for label, _ in gaps] + [label for label, of, _ in reasons if of == by]
        for label in dict.fromkeys(labels):
            runs = {run: of_run for (name, run), of_run in gaps.items() if name == label}
            for other in OTHER_ACTIONS:
                parts = {run: of_run[other] for run, of_run in runs.items() if other in of_run}
                # A mean over some of the training runs would be another row's figure.
                if parts and len(parts) == len(runs) and len(align_runs([*parts.values()])[0].rows):
                    table["rows"].append(_build_row(label, by, other, parts, subsets))
                else:
                    reason = reasons.get((label, by, other), NO_OTHER[other])
                    table["absent"].append({"label": label, "by": by, "other": other, "reason": reason})
    table["ignoring"] = [sentence for row in table["rows"] if (sentence := name_ignoring(row))]
    return table


def _build_row(label: str, by: str, other: str, runs: Mapping[int, Gaps], subsets: Sequence[str]) -> SensitivityRow:
    parts = align_runs([*runs.values()])
    aligned = dict(zip(runs, parts, strict=True))
    of_row = [subsets[int(row)] for row in parts[0].rows]
    by_subset: dict[str, SubsetSensitivity] = {}
    # One subset alone would be the row again.
    for subset in sorted(set(of_row)) if len(set(subsets)) > 1 else []:
        rows = parts[0].rows[np.array([name == subset for name in of_row])]
        by_subset[subset] = _to_figures(summarise_gaps(parts, rows))
    summary = summarise_gaps(parts)
    return {
        **_to_figures(summary),
        "label": label,
        "by": by,
        "other": other,
        "unit": UNITS[by],
        "verdict": summary.verdict if other == SHUFFLED else "",
        "runs": {str(run): float((aligned[run].sums / aligned[run].tokens).mean()) for run in sorted(runs)},
        "by_subset": by_subset,
    }


def _to_figures(summary: GapSummary) -> SubsetSensitivity:
    return {
        "mean": summary.mean,
        "low": summary.low,
        "high": summary.high,
        "share": summary.share,
        "pairs": summary.pairs,
    }


def name_ignoring(row: SensitivityRow) -> str:
    """Name a model that ignores its action in a sentence; empty for one that does not, or where it is unclear."""
    if row["verdict"] != "ignores":
        return ""
    subject = "the target is no likelier under" if row["by"] == LIKELIHOOD else "the verifier sees no more of"
    return (
        f"{row['label']} ignores its action: {subject} the true action than under another triplet's "
        f"({describe_figures(row)} {row['unit']}, n = {row['pairs']:,})"
    )


def describe_figures(figures: SubsetSensitivity) -> str:
    """Describe mean and interval: ``+0.0123 [+0.0100, +0.0146]``."""
    interval = "" if figures["low"] is None else f" [{figures['low']:+.4f}, {figures['high']:+.4f}]"
    return f"{figures['mean']:+.4f}{interval}"


def absence_notes(table: SensitivityTable) -> list[str]:
    """Say which comparisons are absent, and why: a line for each kind and reason."""
    labels: dict[tuple[str, str, str], list[str]] = {}
    for row in table["absent"]:
        labels.setdefault((row["by"], row["other"], row["reason"]), []).append(row["label"])
    return [f"{other} by {by} absent of {', '.join(of)}: {reason}" for (by, other, reason), of in labels.items()]


def table_cells(table: SensitivityTable) -> tuple[list[str], list[list[str]]]:
    """Build header and rows of the table as text, the rows of subsets below those of all triplets.

    Args:
        table: As :func:`build_sensitivity` returns it.

    Returns:
        Names of the columns, and a row a model, other action and subset.
    """
    # Names first, numbers after them, as everywhere.
    header = ["action sensitivity", "true over", "unit", "mean", "95 % interval", "true likelier", "n"]
    cells = []
    for row in table["rows"]:
        cells.append([row["label"], row["other"], row["unit"], *_figure_cells(row)])
        cells += [
            [f"  {subset or '(none)'}", row["other"], row["unit"], *_figure_cells(figures)]
            for subset, figures in row["by_subset"].items()
        ]
    return header, cells


def _figure_cells(figures: SubsetSensitivity) -> list[str]:
    interval = "–" if figures["low"] is None else f"[{figures['low']:+.4f}, {figures['high']:+.4f}]"
    return [f"{figures['mean']:+.4f}", interval, f"{figures['share']:.0%}", f"{figures['pairs']:,}"]


def write_sensitivity(out: Path, table: SensitivityTable) -> None:
    """Write ``sensitivity.csv`` and ``sensitivity.md``; neither where no model was measured.

    Args:
        out: Folder of the evaluation.
        table: As :func:`build_sensitivity` returns it.
    """
    header, cells = table_cells(table)
    if not cells:
        return
    # 1. Numbers as they are, for programs.
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    names = ("mean", "low", "high", "share", "pairs")
    rows.writerow(["label", "subset", "by", "other", "unit", *names, "verdict"])
    for row in table["rows"]:
        # All triplets first, then each subset; numbers as they are, not rounded.
        for subset, figures in (("", row), *row["by_subset"].items()):
            values = [figures["mean"], figures["low"], figures["high"], figures["share"], figures["pairs"]]
            verdict = row["verdict"] if figures is row else ""
            rows.writerow([row["label"], subset, row["by"], row["other"], row["unit"], *values, verdict])
    write_text(out / "sensitivity.csv", text.getvalue())
    # 2. The table as it is printed, for people; labels are users' texts.
    lines = [*(f"**{escape_markdown(sentence, longest=2000)}.**\n" for sentence in table["ignoring"])]
    lines += [f"| {' | '.join(map(escape_markdown, line))} |" for line in (header, ["---"] * len(header), *cells)]
    lines += ["", *(f"{escape_markdown(note, longest=2000)}.\n" for note in absence_notes(table))]
    write_text(out / "sensitivity.md", "\n".join(lines).rstrip() + "\n")
