"""Read what the figures of the preference probe show from evaluations: shares of all models, pairs of one model."""

from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.probe import PANELS, HeatCell, HeatData, Scatter, ScatterData
from wm.evaluation.paper.sources import Source, Sources
from wm.evaluation.probe import NO_NEGATIVE, ProbeScores
from wm.evaluation.probe_arrays import from_arrays
from wm.evaluation.published import PublishedTable, load_published
from wm.evaluation.rows import ProbeRow
from wm.evaluation.units import Unit, load_part

ROWS = {
    "random_action": "Rand. Act.",
    "inverse": "Inv. Obs.",
    "copy": "Copy. Obs.",
    "random_observation": "Rand. Obs.",
    "counterfactual_action": "Count. Act.",
}
"""Kinds of negatives in the order of the heat map, with the paper's names."""
_HEAT_PANELS = {
    "fdm": ("Forward dynamics: next observation", "figure-2-forward"),
    "idm": ("Inverse dynamics: action", "figure-2-inverse"),
}
_SCORED = {"idm": "Action", "fdm": "Next observation"}
PAPER_COLUMNS = {"Chameleon-7B": "C-ZS", "Liquid-8B": "L-ZS"}
"""Columns of the paper's Figure 2 whose model has another name in the tables."""
_EVALUATE = "wm evaluate paper/evaluate-aurora-bench"
_PROBE_VLMS = "wm evaluate paper/probe-vlms"


def read_heatmap(sources: Sources) -> HeatData | Absent:
    """Gather the shares of the reference preferred, of every model that was probed.

    Args:
        sources: The results.

    Returns:
        One panel a direction with the paper's columns first, ours beside them; an ``Absent`` without any probe.
    """
    rows = [row for _, tables in sources.tables for row in tables["probe"]]
    if not rows:
        return Absent("no evaluation with the preference probe", _PROBE_VLMS)
    expected = max(tables["items"] for _, tables in sources.tables)
    published = load_published() if sources.is_published else {}
    panels = {}
    for role, (title, key) in _HEAT_PANELS.items():
        of_role = {(row["label"], row["negative"]): row for row in rows if row["role"] == role}
        table = published.get(key)
        columns = _list_columns(sources, list(dict.fromkeys(label for label, _ in of_role)), table)
        # Rows of the paper always, the fifth negative where somebody measured it.
        kinds = [kind for kind in ROWS if _is_printed(table, kind) or _has(of_role, kind)]
        # A direction that no model was asked in has no panel.
        if columns and kinds:
            panels[title] = {
                ROWS[kind]: {
                    name: _build_cell(of_role.get((label, kind)), _printed(table, kind, name), expected)
                    for name, label in columns.items()
                }
                for kind in kinds
            }
    # Only what the map needs is explained below it.
    cells = [cell for rows_of in panels.values() for row in rows_of.values() for cell in row.values()]
    notes = {
        "–: not measured; models that read pixels have no likelihood of an image": any(c.share is None for c in cells),
        "grey: published": any(cell.published is not None for cell in cells),
        "*: over fewer pairs than the bench has": any(0 < cell.pairs < cell.expected for cell in cells),
    }
    return HeatData(panels, "; ".join(note for note, is_needed in notes.items() if is_needed), sources.is_toy)


def _list_columns(sources: Sources, labels: list[str], table: PublishedTable | None) -> dict[str, str]:
    """Map the columns' names to our labels: the paper's models first, then the others that were probed."""
    # The paper's names for the models that the tables know by their role.
    columns = {}
    for name in table.columns if table is not None else ():
        columns[name] = sources.label(PAPER_COLUMNS.get(name, name))
    others = [label for label in labels if label not in columns.values()]
    return columns | {sources.title(label): label for label in others}


def _is_printed(table: PublishedTable | None, kind: str) -> bool:
    return table is not None and ROWS[kind] in table.rows


def _has(rows: dict[tuple[str, str], ProbeRow], kind: str) -> bool:
    return any(negative == kind for _, negative in rows)


def _printed(table: PublishedTable | None, kind: str, column: str) -> float | None:
    cell = None if table is None else table.cell(ROWS[kind], column)
    return None if cell is None else cell.value


def _build_cell(row: ProbeRow | None, published: float | None, expected: int) -> HeatCell:
    # Absent, not 0: nobody measured it.
    if row is None:
        return HeatCell(None, published, 0, expected)
    return HeatCell(100 * row["metrics"]["share"]["mean"], published, row["pairs"], expected)


def read_zero_shot_scatter(sources: Sources) -> ScatterData | Absent:
    """Gather the pairs of Figure 7: the base as it is, in both directions."""
    return _read_scatter(sources, "C-ZS", ("idm", "fdm"), "zero-shot")


def read_finetuned_scatter(sources: Sources) -> ScatterData | Absent:
    """Gather the pairs of Figure 8: the fine-tuned inverse model; in the toy world it may be called IDM."""
    system = "C-IDM"
    if sources.is_toy and _find_unit(sources, system, "idm") is None:
        system = "IDM"
    return _read_scatter(sources, system, ("idm",), "fine-tuned inverse model")


def _read_scatter(sources: Sources, system: str, roles: tuple[str, ...], what: str) -> ScatterData | Absent:
    # Each direction by itself: one of them may be missing.
    rows = {}
    for role in roles:
        place = _find_unit(sources, system, role)
        if place is not None:
            rows[_SCORED[role]] = _read_pairs(*place)
    if not rows:
        command = _EVALUATE if system == "C-ZS" else f"wm train paper/c-idm && {_EVALUATE}"
        return Absent(f"no preference probe of {system}", command)
    # Files of earlier versions hold shares alone.
    old = next((panels for panels in rows.values() if isinstance(panels, Absent)), None)
    if old is not None:
        return old
    panels = {name: value for name, value in rows.items() if not isinstance(value, Absent)}
    return ScatterData(f"{sources.label(system)}, {what}", panels, sources.is_toy)


def _find_unit(sources: Sources, system: str, role: str) -> tuple[Source, Unit] | None:
    """Find the probe of a label's first run: the evaluation, and the unit whose file holds its likelihoods."""
    label = sources.label(system)
    for source, tables in sources.tables:
        if any((row["label"], row["role"]) == (label, role) for row in tables["probe"]):
            names = _entry_names(source, label, role)
            if names:
                return source, Unit(names[0], "probe", source.recipe("seeds", [0])[0])
    return None


def _entry_names(source: Source, label: str, role: str) -> list[str]:
    models = source.recipe("models", {})
    # By training seed: the figure shows the first run.
    of_label = sorted(
        (model.get("seed", 0), name)
        for name, model in models.items()
        if (model["label"], model["role"]) == (label, role)
    )
    # The base's two roles have no table in the recipe.
    is_base = source.recipe("base") and source.recipe("zero_shot", True)
    base = [f"zero-shot-{role}"] if is_base and source.recipe("zero_shot_label", "C-ZS") == label else []
    return [*base, *(name for _, name in of_label)]


def _read_pairs(source: Source, unit: Unit) -> dict[str, Scatter | Absent] | Absent:
    path = unit.file(source.folder / "parts")
    scores = from_arrays(load_part(path)[1]) if path.is_file() else None
    if scores is None:
        missing = "has no likelihoods item by item, as an earlier version kept shares alone"
        return Absent(f"{path} {missing}: evaluate again by the same recipe with another out")
    return {kind: _build_scatter(scores, kind) for kind in PANELS}


def _build_scatter(scores: ProbeScores, kind: str) -> Scatter | Absent:
    if kind not in scores.negatives:
        return Absent(NO_NEGATIVE[kind])
    reference, negative = scores.pairs(kind)
    return Scatter(-reference.sums, -negative.sums, len(scores.reference.sums))
