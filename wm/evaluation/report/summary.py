"""Format the tables as plain text, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

CHOICE_WORDS = {"none": "", "greedy": "greedy", "idm": "", "oracle": "oracle"}


def spread_text(figure: Mapping[str, Any] | None, *, digits: int = 3) -> str:
    """Format a figure as ``0.370 ± 0.042``; without ± where there is one value; an en dash for a missing figure."""
    if figure is None:
        return "–"
    text = f"{figure['mean']:.{digits}f}"
    return text if figure["std"] is None else f"{text} ± {figure['std']:.{digits}f}"


def row_name(row: Mapping[str, Any]) -> str:
    """Name a row: ``C-FT, K = 4`` and the like."""
    if row["choice"] == "none":
        return str(row["label"])
    if row["choice"] == "greedy":
        return f"{row['label']}, greedy"
    if row["k"] == 1:
        return f"{row['label']}, K = 1"
    return f"{row['label']}, K = {row['k']}" + (" (oracle best-of-N)" if row["choice"] == "oracle" else "")


def main_metrics(tables: Mapping[str, Any]) -> list[str]:
    """List the columns of the forward table, as the judge allows."""
    judged = ["final", "editing_success", "minimal_editing", "right", "copied"]
    return [*(judged if tables["judge"] != "none" else []), "l1", "unchanged_tokens"]


def format_tables(tables: Mapping[str, Any]) -> str:
    """Format all tables of ``tables.json`` as aligned text."""
    columns = main_metrics(tables)
    blocks = [
        _format_grid(
            ["forward dynamics", *columns],
            [[row_name(row), *(spread_text(row["metrics"].get(name)) for name in columns)] for row in tables["fdm"]],
        )
    ]
    adaptive = [row for row in tables.get("adaptive", []) if row["margin"] is not None]
    if adaptive:
        metric = "final" if tables["judge"] != "none" else "l1"
        rows = [
            [
                f"{row['label']}, margin {row['margin']:g}",
                f"{row['metrics']['draws']['mean']:.2f}",
                spread_text(row["metrics"][metric]),
                f"{row['fixed'][metric]:.3f}",
            ]
            for row in adaptive
        ]
        blocks.append(_format_grid([f"adaptive N, {metric}", "draws", "adaptive", "fixed N, as many"], rows))
    if tables["idm"]:
        names = list(
            dict.fromkeys(name for row in tables["idm"] for part in ("metrics", "absent") for name in row.get(part, {}))
        )
        rows = [[row["label"], *(spread_text(row["metrics"].get(name)) for name in names)] for row in tables["idm"]]
        blocks.append("\n".join([_format_grid(["inverse dynamics", *names], rows), *text_notes(tables["idm"], {})]))
    if tables["probe"]:
        kinds = list(dict.fromkeys(row["negative"] for row in tables["probe"]))
        shares: dict[tuple[str, str], dict[str, str]] = {}
        for row in tables["probe"]:
            of_model = shares.setdefault((row["role"], row["label"]), {})
            of_model[row["negative"]] = spread_text(row["metrics"].get("share"))
        rows = [
            [f"{label} ({role})", *(by_kind.get(kind, "–") for kind in kinds)]
            for (role, label), by_kind in shares.items()
        ]
        blocks.append("\n".join([_format_grid(["preference for the truth", *kinds], rows), *probe_notes(tables)]))
    return "\n\n".join(blocks)


def text_notes(rows: Sequence[Mapping[str, Any]], words: Mapping[str, str]) -> list[str]:
    """Say by which tokens text metrics were computed, and why one is absent.

    Args:
        rows: ``idm`` of ``tables.json``.
        words: Metric → its name on the page; others go by their own.

    Returns:
        A line for each way of computing and for each reason.
    """
    metrics: dict[str, dict[str, None]] = {}
    for row in rows:
        notes = [(note, name) for name, note in row.get("notes", {}).items()]
        notes += [(f"absent: {why}", name) for name, why in row.get("absent", {}).items()]
        for note, name in notes:
            metrics.setdefault(note, {})[words.get(name, name)] = None
    return [f"{', '.join(names)}: {note}" for note, names in metrics.items()]


def probe_notes(tables: Mapping[str, Any]) -> list[str]:
    """Say which comparisons of the probe are absent, and why: a line for each kind of negative."""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in tables.get("absent", []):
        labels.setdefault((row["negative"], row["reason"]), []).append(f"{row['label']} ({row['role']})")
    return [f"{kind} absent of {', '.join(of)}: {reason}" for (kind, reason), of in labels.items()]


def print_tables(tables: Mapping[str, Any]) -> None:
    """Print :func:`format_tables`."""
    print(format_tables(tables))


def _format_grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for first, *others in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]))
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
