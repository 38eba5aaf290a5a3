"""Render the sections of the report that show the evaluation's figures."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from wm.evaluation.report.adaptive import adaptive_part
from wm.evaluation.report.cells import METRICS, Cell, Grid, figure_cell
from wm.evaluation.report.charts import Line, line_chart
from wm.evaluation.report.claims import Labels, judge_claims
from wm.evaluation.report.findings import Findings, same_training
from wm.evaluation.report.summary import judged_metrics, name_best, probe_notes, row_name, text_notes
from wm.evaluation.report.templates import render
from wm.evaluation.rows import ForwardRow, ProbeRow, Tables
from wm.evaluation.sensitivity_table import absence_notes, table_cells

_BADGES = {"shows": "yes", "does not show": "no", "within the spread": "open", "not measured": "none"}
_ROLE_TITLES = {"idm": "Inverse: likelihood of the action", "fdm": "Forward: likelihood of the target"}
_NEVER_BEST = {"unchanged_tokens", "copied", "minimal_editing"}
"""Metrics at which a copy of the source is best: alone they say nothing."""


def claims_section(findings: Findings, labels: Labels, notes: Mapping[str, str]) -> Markup:
    """Render one card a claim.

    Args:
        findings: What the run holds.
        labels: Which label of the tables plays which part.
        notes: Claim key → text shown with that claim.

    Returns:
        HTML; empty without an evaluation.
    """
    if findings.tables is None:
        return Markup()
    cards = []
    for claim in judge_claims(findings.tables, labels):
        extra = _compare_training(findings, labels) if claim.key == "asymmetry" else []
        cards.append((replace(claim, measured=[*claim.measured, *extra]), notes.get(claim.key, "")))
    return render("claims.html", cards=cards, badges=_BADGES)


def _compare_training(findings: Findings, labels: Labels) -> list[str]:
    """Say whether inverse and forward model were trained on equal data for equal steps, if their recipes say it."""
    stages = {findings.label_of(stage): stage for stage in reversed(findings.of("train"))}
    if labels.idm not in stages or labels.finetuned not in stages:
        return []
    unequal = same_training(stages[labels.idm], stages[labels.finetuned])
    if unequal is None:
        return []
    return [
        f"training differs in {'; '.join(unequal)}" if unequal else "trained on the same triplets for the same steps"
    ]


def forward_section(findings: Findings) -> Markup:
    """Render the table of labels by K, the verification curves, adaptive N and the figures by subset."""
    tables = findings.tables
    if tables is None or not tables["fdm"]:
        return Markup()
    is_judged = tables["judge"] != "none"
    columns = judged_metrics(tables) or ["l1", "unchanged_tokens"]
    # Without a judge a distance is all there is.
    charted = ["right", "final"] if is_judged else ["l1"]
    return render(
        "forward.html",
        judged=is_judged,
        rows=_build_forward_grid([row for row in tables["fdm"] if row["choice"] != "oracle"], columns, is_judged),
        oracle=_build_forward_grid([row for row in tables["fdm"] if row["choice"] == "oracle"], columns, is_judged),
        charts=draw_curves(tables["fdm"], charted, is_judged=is_judged),
        adaptive=adaptive_part(tables.get("adaptive", []), charted),
        by_subset=_build_subset_grid(tables, "final" if is_judged else "l1"),
    )


def _build_forward_grid(rows: Sequence[ForwardRow], columns: Sequence[str], is_judged: bool) -> Grid:
    best = _find_best(rows, columns)
    cells: list[list[str | Cell]] = []
    kinds = []
    for index, row in enumerate(rows):
        figures = [figure_cell(row["metrics"].get(name), name, is_best=index == best.get(name)) for name in columns]
        # A label is shown once, in its first row.
        is_first = index == 0 or rows[index - 1]["label"] != row["label"]
        cells.append([row["label"] if is_first else "", _name_choice(row, is_judged), *figures])
        kinds.append(("first" if is_first else "") + (" dim" if row["choice"] == "none" else ""))
    return Grid(["model", "prediction", *(METRICS[name].word for name in columns)], cells, kinds)


def _name_choice(row: ForwardRow, is_judged: bool) -> str:
    if row["choice"] == "oracle":
        return name_best(row["k"], is_judged=is_judged)
    # At K = 1 nothing is chosen, and all candidates count.
    verified = "K = 1, mean of all" if row["k"] == 1 else f"K = {row['k']}"
    return {"none": "–", "greedy": "greedy", "idm": verified}[row["choice"]]


def _find_best(rows: Sequence[ForwardRow], columns: Sequence[str]) -> dict[str, int]:
    """Map each column to the row of the best figure among honest predictions."""
    best = {}
    for name in columns:
        if name in _NEVER_BEST:
            continue
        sign = -1 if METRICS[name].lower_is_better else 1
        honest = [
            (sign * row["metrics"][name]["mean"], -index)
            for index, row in enumerate(rows)
            if row["choice"] in ("idm", "greedy") and name in row["metrics"]
        ]
        # A column of zeros has no best.
        if honest and max(honest)[0] != 0:
            best[name] = -max(honest)[1]
    return best


def draw_curves(rows: Sequence[ForwardRow], names: Sequence[str], *, is_judged: bool = True) -> list[Markup]:
    """Draw each metric against K for every label: chosen by the inverse model, and the best of K (dashed).

    Args:
        rows: ``fdm`` of ``tables.json``.
        names: Metrics, keys of :data:`METRICS`.
        is_judged: Whether the best is the judge's, else the closest to the target.

    Returns:
        A chart a metric; none for a metric without a curve.
    """
    labels = list(dict.fromkeys(row["label"] for row in rows if row["choice"] == "oracle"))
    charts = []
    for name in names:
        lines = []
        for colour, label in enumerate(labels):
            lines += _build_curves([row for row in rows if row["label"] == label], name, colour)
        word = METRICS[name].word
        title = f"Verification: {word} by K (dashed: {'oracle' if is_judged else 'the closest to the target'})"
        charts.append(line_chart(title, lines, x_label="K candidates", y_label=word, even_x=True))
    return [chart for chart in charts if chart]


def _build_curves(own: Sequence[ForwardRow], name: str, colour: int) -> list[Line]:
    """Build the two curves of a label; the one of the inverse model needs two values of K."""
    scale, label = METRICS[name].scale, own[0]["label"]
    verified, oracle = (
        [row for row in own if row["choice"] == choice and name in row["metrics"]] for choice in ("idm", "oracle")
    )
    is_verified = any(row["k"] > 1 for row in verified)
    lines = []
    # The oracle starts where nothing is chosen yet.
    for rows, is_oracle in ((verified, False), ([*(row for row in verified if row["k"] == 1), *oracle], True)):
        if not is_oracle and len(rows) < 2:
            continue
        stds = [row["metrics"][name]["std"] for row in rows]
        # One value has no spread, which is not a spread of 0: then there is no band.
        spreads = [] if is_oracle or None in stds else [std * scale for std in stds if std is not None]
        ks, means = [row["k"] for row in rows], [row["metrics"][name]["mean"] * scale for row in rows]
        lines.append(Line("" if is_oracle and is_verified else label, ks, means, colour, spreads, dashed=is_oracle))
    return lines


def _build_subset_grid(tables: Tables, name: str) -> Grid:
    """Show the headline metric by subset, for K = 1 and for the largest K chosen by the inverse model."""
    ks = (1, max(tables["k"]))
    is_judged = bool(judged_metrics(tables))
    rows = [
        [
            row_name(row, is_judged=is_judged),
            *(METRICS[name].text(row["by_subset"][subset][name]) for subset in tables["subsets"]),
        ]
        for row in tables["fdm"]
        if row["by_subset"] and row["choice"] != "oracle" and row["k"] in ks
    ]
    return Grid([METRICS[name].word, *(subset or "(none)" for subset in tables["subsets"])], rows)


def inverse_section(findings: Findings) -> Markup:
    """Render the text metrics of the inverse models."""
    tables = findings.tables
    if tables is None or not tables["idm"]:
        return Markup()
    # A metric that is absent has a column too, with the reason.
    measured = {name for row in tables["idm"] for name in (*row["metrics"], *row.get("absent", {}))}
    names = [name for name in METRICS if name in measured]
    rows: list[list[str | Cell]] = [
        [
            row["label"],
            *(
                figure_cell(row["metrics"].get(name), name, why_absent=row.get("absent", {}).get(name, ""))
                for name in names
            ),
        ]
        for row in tables["idm"]
    ]
    words = {name: metric.word for name, metric in METRICS.items()}
    return render(
        "inverse.html",
        checked="state_equivalent" in names,
        rows=Grid(["model", *(words[name] for name in names)], rows),
        notes=text_notes(tables["idm"], words),
    )


def probe_section(findings: Findings) -> Markup:
    """Render the share of true trajectories preferred, by model and kind of negative."""
    tables = findings.tables
    if tables is None or not tables["probe"]:
        return Markup()
    # In the order of the tables, not of the alphabet.
    kinds = list(dict.fromkeys(row["negative"] for row in tables["probe"]))
    grids = []
    for role, title in _ROLE_TITLES.items():
        by_label: dict[str, dict[str, ProbeRow]] = {}
        for row in tables["probe"]:
            if row["role"] == role:
                by_label.setdefault(row["label"], {})[row["negative"]] = row
        rows: list[list[str | Cell]] = [
            [label, *(_probe_cell(by_kind.get(kind)) for kind in kinds)] for label, by_kind in by_label.items()
        ]
        if rows:
            grids.append((title, Grid(["model", *(kind.replace("_", " ") for kind in kinds)], rows)))
    notes = [line.replace("_", " ") for line in probe_notes(tables)]
    return render("probe.html", tables=grids, notes=notes)


def sensitivity_section(findings: Findings) -> Markup:
    """Render by how much the true action makes each forward model's target likelier than other actions do."""
    table = None if findings.tables is None else findings.tables.get("sensitivity")
    if table is None or not table["rows"]:
        return Markup()
    header, cells = table_cells(table)
    # As everywhere, what is not of all triplets is paler.
    kinds = ["dim" if row[0].startswith("  ") else "first" for row in cells]
    return render(
        "sensitivity.html", rows=Grid(header, cells, kinds), ignoring=table["ignoring"], notes=absence_notes(table)
    )


def _probe_cell(row: ProbeRow | None) -> Cell:
    if row is None:
        return Cell("–", kind="soft")
    share, per_token, r = (row["metrics"].get(name) for name in ("share", "share_per_token", "pearson_r"))
    assert share is not None
    # The colour says which side of chance, its strength how far from it.
    tint, strength = "--hi" if share["mean"] >= 0.5 else "--lo", abs(share["mean"] - 0.5) * 0.7
    spread = "" if share["std"] is None else f" ± {share['std'] * 100:.0f}"
    return Cell(
        f"{share['mean'] * 100:.0f} %",
        spread + ("" if r is None else f", r {r['mean']:.2f}"),
        f"{row['pairs']} pairs" + (f", {per_token['mean'] * 100:.0f} % by mean per token" if per_token else ""),
        background=f"rgb(var({tint}) / {strength:.2f})",
    )
