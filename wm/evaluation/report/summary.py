"""Format the tables as plain text, for the terminal."""

import shlex
from collections.abc import Mapping, Sequence

from wm.evaluation.rows import DifferenceRow, Figure, ForwardRow, InverseRow, ItemDifference, Tables
from wm.evaluation.sensitivity_table import absence_notes, table_cells
from wm.evaluation.verification import EVALUATED_K

_MAX_PAIRS = 12
"""Differences that are printed; of many models there are more pairs than a screen has lines."""


def spread_text(figure: Figure | None) -> str:
    """Format a figure as ``0.370 ± 0.042``; without ± where there is one value; an en dash for a missing figure."""
    if figure is None:
        return "–"
    return f"{figure['mean']:.3f}" if figure["std"] is None else f"{figure['mean']:.3f} ± {figure['std']:.3f}"


def name_best(count: int, *, is_judged: bool) -> str:
    """Name the choice ``oracle``: by the judge's score; without a judge by the L1 distance to the true target.

    Args:
        count: Number of candidates.
        is_judged: Whether there is a judge.
    """
    return f"oracle, best of {count}" if is_judged else f"closest to the target of {count}"


def row_name(row: ForwardRow, *, is_judged: bool) -> str:
    """Name a row: ``C-FT, K = 4`` and the like.

    Args:
        row: Of ``fdm`` in ``tables.json``.
        is_judged: Whether there is a judge, which the best of several candidates is by.
    """
    if row["choice"] == "none":
        return row["label"]
    if row["choice"] == "greedy":
        return f"{row['label']}, greedy"
    if row["choice"] == "oracle":
        return f"{row['label']}, {name_best(row['k'], is_judged=is_judged)}"
    return f"{row['label']}, K = {row['k']}"


def judged_metrics(tables: Tables) -> list[str]:
    """List the metrics that a judge gave; none without a judge."""
    return ["final", "editing_success", "minimal_editing", "right", "copied"] if tables["judge"] != "none" else []


def format_tables(tables: Tables) -> str:
    """Format all tables of ``tables.json`` as aligned text."""
    blocks = [
        _format_sensitivity(tables),
        _format_forward(tables),
        _format_differences(tables),
        _format_adaptive(tables),
        _format_inverse(tables),
        _format_probe(tables),
    ]
    return "\n\n".join(block for block in blocks if block)


def _format_sensitivity(tables: Tables) -> str:
    """Format whether forward models heed their actions; those that do not are named first."""
    table = tables.get("sensitivity")
    # Evaluations of earlier versions, and of inverse models alone, have none.
    if table is None or not (table["rows"] or table["absent"]):
        return ""
    grid = [format_grid(*table_cells(table))] if table["rows"] else []
    return "\n".join([*table["ignoring"], *grid, *absence_notes(table)])


def _format_forward(tables: Tables) -> str:
    columns = [*judged_metrics(tables), "l1", "unchanged_tokens"]
    is_judged = bool(judged_metrics(tables))
    rows = [
        [row_name(row, is_judged=is_judged), *(spread_text(row["metrics"].get(name)) for name in columns)]
        for row in tables["fdm"]
    ]
    # Only where something was sampled: references and greedy predictions are one prediction each.
    notes = [EVALUATED_K] if any(row["choice"] == "idm" for row in tables["fdm"]) else []
    return "\n".join([format_grid(["forward dynamics", *columns], rows), *notes])


def _format_differences(tables: Tables) -> str:
    """Format the differences of models in the headline metric, single predictions and the largest K."""
    metric = "final" if judged_metrics(tables) else "l1"
    rows = [
        row
        for row in tables.get("differences", [])
        if row["metric"] == metric and row["first"][1] == "idm" and row["first"][1:] == row["second"][1:]
    ]
    # Evaluations of earlier versions have no such interval.
    rows = [row for row in rows if row.get("bootstrap_low") is not None]
    if not rows:
        return ""
    cells = [[_name_pair(row), f"{row['mean']:+.3f}", *_format_certainty(row)] for row in rows[:_MAX_PAIRS]]
    header = [f"difference, {metric}", "mean", "95 % interval", "p", "n", "training seeds"]
    notes = ["paired bootstrap over the items (BCa); p: Wilcoxon's signed-rank test; by subset: wm compare"]
    if len(rows) > _MAX_PAIRS:
        notes.append(f"{len(rows) - _MAX_PAIRS} more pairs in tables.json")
    return "\n".join([format_grid(header, cells), *notes])


def _name_pair(row: DifferenceRow) -> str:
    return f"{row['first'][0]} - {row['second'][0]}, K = {row['first'][2]}"


def _format_certainty(row: ItemDifference) -> list[str]:
    """Format interval, p, number of items and of training seeds of a difference."""
    low, high, std = row.get("bootstrap_low"), row.get("bootstrap_high"), row.get("std")
    interval = "–" if low is None or high is None else f"[{low:+.3f}, {high:+.3f}]"
    # Unequal numbers of seeds are not paired: both are given.
    first, second = (len(seeds) for seeds in row["runs"])
    seeds = f"{first}" if first == second else f"{first} / {second}"
    return [interval, format_p(row.get("p")), f"{row['items']:,}", seeds if std is None else f"{seeds} (± {std:.3f})"]


def describe_certainty(row: ItemDifference) -> str:
    """Describe interval, p, number of items and of training seeds of a difference in words; empty where an earlier
    version made it.

    Args:
        row: A row of ``differences``.
    """
    if row.get("bootstrap_low") is None:
        return ""
    interval, p, items, seeds = _format_certainty(row)
    return f"bootstrap {interval}, p {p}, n {items}, training seeds {seeds}"


def format_p(p: float | None) -> str:
    """Format a p: ``.012``, ``< .001``; a dash for None."""
    if p is None:
        return "–"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def _format_adaptive(tables: Tables) -> str:
    metric = "final" if judged_metrics(tables) else "l1"
    rows = [
        [
            f"{row['label']}, min gain {row['margin']:g}",
            f"{row['metrics']['draws']['mean']:.2f}",
            spread_text(row["metrics"][metric]),
            f"{row['fixed'][metric]:.3f}",
        ]
        for row in tables.get("adaptive", [])
        if row["margin"] is not None
    ]
    return format_grid([f"adaptive N, {metric}", "candidates", "adaptive", "fixed N, as many"], rows) if rows else ""


def _format_inverse(tables: Tables) -> str:
    if not tables["idm"]:
        return ""
    names = list(dict.fromkeys(name for row in tables["idm"] for name in (*row["metrics"], *row.get("absent", {}))))
    rows = [[row["label"], *(spread_text(row["metrics"].get(name)) for name in names)] for row in tables["idm"]]
    return "\n".join([format_grid(["inverse dynamics", *names], rows), *text_notes(tables["idm"], {})])


def _format_probe(tables: Tables) -> str:
    if not tables["probe"]:
        return ""
    kinds = list(dict.fromkeys(row["negative"] for row in tables["probe"]))
    shares: dict[tuple[str, str], dict[str, str]] = {}
    for row in tables["probe"]:
        of_model = shares.setdefault((row["role"], row["label"]), {})
        of_model[row["negative"]] = spread_text(row["metrics"].get("share"))
    rows = [
        [f"{label} ({role})", *(by_kind.get(kind, "–") for kind in kinds)] for (role, label), by_kind in shares.items()
    ]
    return "\n".join([format_grid(["preference for the truth", *kinds], rows), *probe_notes(tables)])


def suggest_comparison(folder: str, labels: Sequence[str]) -> str:
    """Name the command that says which of two systems of a result is better; empty for fewer than two.

    Args:
        folder: The result.
        labels: Its systems, references left out; the first two are the example.
    """
    # A system alone is compared with nothing.
    if len(labels) < 2:
        return ""
    words = shlex.join([f"{folder}:{labels[0]}", labels[1]])
    return f"which of two is better, and how sure that is: wm compare {words}"


def text_notes(rows: Sequence[InverseRow], words: Mapping[str, str]) -> list[str]:
    """Say by which tokens text metrics were computed, and why one is absent.

    Args:
        rows: ``idm`` of ``tables.json``.
        words: Metric → its name on the page; others go by their own.

    Returns:
        A line for each way of computing and for each reason.
    """
    # Metrics of the same note share a line; a dict keeps their order.
    metrics: dict[str, dict[str, None]] = {}
    for row in rows:
        notes = [(note, name) for name, note in row.get("notes", {}).items()]
        notes += [(f"absent: {why}", name) for name, why in row.get("absent", {}).items()]
        for note, name in notes:
            metrics.setdefault(note, {})[words.get(name, name)] = None
    return [f"{', '.join(names)}: {note}" for note, names in metrics.items()]


def probe_notes(tables: Tables) -> list[str]:
    """Say which comparisons of the probe are absent, and why: a line for each kind of negative."""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in tables.get("absent", []):
        labels.setdefault((row["negative"], row["reason"]), []).append(f"{row['label']} ({row['role']})")
    return [f"{kind} absent of {', '.join(of)}: {reason}" for (kind, reason), of in labels.items()]


def format_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as aligned text.

    Args:
        header: Names of the columns, the first of text, all others of numbers.
        rows: Their cells.

    Returns:
        The lines.
    """
    # The first column is text, all others are numbers and end in line.
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for first, *others in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
