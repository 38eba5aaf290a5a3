"""Build table 1: how well inverse models name the action between two images."""

from collections.abc import Mapping
from functools import cached_property
from typing import cast

from wm.evaluation.metrics.stats import sample_std
from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table, mark_best
from wm.evaluation.paper.shared_systems import Facts
from wm.evaluation.paper.sources import PREDICTING_STAGES, Source, Sources
from wm.evaluation.paper.systems import explain_unread, score_command
from wm.evaluation.paper.tables.common import Layout, cell_or
from wm.evaluation.published import load_published
from wm.evaluation.rows import Figure
from wm.evaluation.score_tables import ScoreRow

_ROWS = (
    ("Chameleon ZS", "C-ZS"),
    ("Chameleon IDM (all Kubric)", "C-IDM (all Kubric)"),
    ("Chameleon IDM", "C-IDM"),
    ("Liquid IDM", "L-IDM"),
    ("VILA-U", "VILA-U"),
)
"""The paper's row → the system that it is of."""
_METRICS = (("BS", "bertscore"), ("R-1", "rouge1"), ("R-2", "rouge2"), ("R-L", "rougeL"), ("BLEU", "bleu"))


class TextFigures:
    """Text metrics of every label: of the scoring where it has them, else of the evaluation."""

    def __init__(self, sources: Sources) -> None:
        """Take the results; nothing is read yet."""
        self._sources = sources

    @cached_property
    def _scored(self) -> dict[str, tuple[ScoreRow, Mapping[str, float]]]:
        """Label → its row, and BLEU by run."""
        rows = self._sources.shared.join_rows(
            self._sources.of("score"), _load_rows, lambda entry: entry[0]["system"], _facts_of_row
        )
        return {entry[0]["system"]: entry for entry in rows}

    @cached_property
    def _evaluated(self) -> dict[str, tuple[Source, Mapping[str, Figure], int]]:
        return {
            row["label"]: (source, row["metrics"], tables["items"])
            for source, tables in self._sources.tables
            for row in tables["idm"]
        }

    def labels(self) -> list[str]:
        """List the labels that have text metrics."""
        return list(dict.fromkeys([*self._scored, *self._evaluated]))

    def cell(self, label: str, metric: str) -> Cell | None:
        """Build the cell of a metric.

        Args:
            label: Label of the inverse model in the results.
            metric: Such as ``rougeL``; ``bleu`` is that of the corpus.

        Returns:
            The cell; None where it was not measured.
        """
        row, bleu = self._scored.get(label, (None, {}))
        expected = len(self._sources.rows)
        # 1. Of a corpus there is no value an item, and so no interval.
        if metric == "bleu" and bleu and row is not None:
            values = list(bleu.values())
            return Cell(
                mean=sum(values) / len(values), std=sample_std(values), num_values=len(values), n=row["num_items"],
                expected=expected,
            )  # fmt: skip
        # 2. The scoring's.
        if row is not None and metric in row["metrics"]:
            figure = row["metrics"][metric]
            # Scorings of earlier versions count by another name.
            num_values = figure.get("num_values") or cast(dict[str, int], figure)["num_runs"]
            return Cell(
                mean=figure["micro_mean"], std=figure["std"], num_values=num_values, ci_low=figure["ci_low"],
                ci_high=figure["ci_high"], n=figure["num_items"], expected=expected,
            )  # fmt: skip
        # 3. The evaluation's, which knows no BERTScore.
        if label in self._evaluated:
            _, metrics, items = self._evaluated[label]
            if metric in metrics:
                own = metrics[metric]
                return Cell(
                    mean=own["mean"], std=own["std"], num_values=own["n"], over=own["over"], ci_low=own["ci_low"],
                    ci_high=own["ci_high"], n=items, expected=expected,
                )  # fmt: skip
        return None


def _load_rows(source: Source) -> list[tuple[ScoreRow, Mapping[str, float]]]:
    texts = source.load_json("scores.json").get("actions") or {}
    return [(row, texts["corpus_bleu"].get(row["system"], {})) for row in texts.get("rows", [])]


def _facts_of_row(entry: tuple[ScoreRow, Mapping[str, float]]) -> Facts:
    row, bleu = entry
    return "actions", {name: figure["micro_mean"] for name, figure in row["metrics"].items()} | {"bleu": bleu}


def build_text_table(layout: Layout) -> Table:
    """Build table 1.

    Args:
        layout: The results.

    Returns:
        The table; inverse models that the paper does not have are below the paper's.
    """
    sources, figures = layout.sources, TextFigures(layout.sources)
    published = load_published()
    # The paper's families are none of the toy world's: there a row is named as the results name it.
    titled_rows = [(sources.label(system) if sources.is_toy else title, system) for title, system in _ROWS]
    own = {sources.label(system) for _, system in _ROWS}
    # Base models are evaluated as inverse models under one name in both directions.
    extra = [(label, label) for label in figures.labels() if label not in own]
    rows = []
    for title, system in (*titled_rows, *extra):
        # The later text first; what it leaves out is in the earlier one.
        cells = []
        for column, metric in _METRICS:
            cell = cell_or(figures.cell(sources.label(system), metric), _explain(layout, figures, system, metric))
            cells.append(
                layout.add_published(
                    cell, (published["table-1"], title, column), (published["table-1-v1"], title, column)
                )
            )
        if any(cell.mean is not None or cell.published is not None for cell in cells):
            rows.append((title, cells))
    columns = tuple(Column(column) for column, _ in _METRICS)
    return Table(
        key="table-1",
        title="Actions of inverse models against those of people",
        columns=columns,
        rows=_mark_best_by_column(rows),
        source="ACL, Table 1; R-2, VILA-U and all Kubric: V1, Table 1" if layout.is_published else "",
        notes=(
            "BS: BERTScore F1, rescaled by its baseline; R-1, R-2, R-L: ROUGE F1; BLEU: of the corpus, divided by 100. "
            "Means over items.",
            *layout.notes("table-1"),
        ),
        is_toy=sources.is_toy,
    )


def _mark_best_by_column(rows: list[tuple[str, list[Cell]]]) -> tuple[Row, ...]:
    # Here systems are rows: each column has its best.
    columns = [
        mark_best(cells, [Column(title) for title, _ in rows]) for cells in zip(*(c for _, c in rows), strict=True)
    ]
    return tuple(Row(title, tuple(cells)) for (title, _), cells in zip(rows, zip(*columns, strict=True), strict=True))


def _explain(layout: Layout, figures: TextFigures, system: str, metric: str) -> Absent:
    label = layout.sources.label(system)
    if label not in figures.labels():
        return explain_unread(layout.sources, system)
    bench = layout.sources.triplets
    # All sets at once: two scorings of one system could not be given together.
    folders = [str(source.folder) for source in layout.sources.of(*PREDICTING_STAGES)] or ["PREDICTIONS"]
    key = "bertscore.model=ROBERTA" if metric == "bertscore" else ""
    return Absent(f"{metric} was not measured", score_command(folders, bench, key))
