"""Format figures as the cells of the report's tables. Knows how a metric is shown, not what it means."""

from collections.abc import Sequence
from dataclasses import dataclass

from wm.evaluation.rows import Figure


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    word: str
    scale: float = 1  # factor of its values: 100 for per cent
    digits: int = 2  # after the point
    lower_is_better: bool = False

    def text(self, value: float) -> str:
        """Format a value."""
        return f"{value * self.scale:.{self.digits}f}"


METRICS = {
    "final": Metric("score"),
    "editing_success": Metric("editing success"),
    "minimal_editing": Metric("minimal editing"),
    "right": Metric("right, %", scale=100, digits=1),
    "copied": Metric("copies, %", scale=100, digits=1, lower_is_better=True),
    "l1": Metric("L1", digits=3, lower_is_better=True),
    "unchanged_tokens": Metric("unchanged tokens, %", scale=100, digits=1),
    "state_equivalent": Metric("right, %", scale=100, digits=1),
    "exact_match": Metric("exact, %", scale=100, digits=1),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "bleu": Metric("BLEU"),
    "mean_logprob": Metric("nats/token"),
}
"""Metrics by their name in ``tables.json``, in the order of columns."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table; all texts are plain."""

    text: str
    small: str = ""  # behind it in small print
    hint: str = ""  # tooltip
    kind: str = ""  # CSS class
    background: str = ""  # CSS colour


@dataclass(frozen=True)
class Grid:
    """A table; all texts are plain."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    row_kinds: Sequence[str] = ()  # CSS class of each row, if rows have any


def figure_cell(figure: Figure | None, name: str, *, is_best: bool = False, why_absent: str = "") -> Cell:
    """Build the cell of a figure: mean ± standard deviation, with number of runs and interval as its hint.

    Args:
        figure: The figure; None gives a dash.
        name: Its metric, a key of :data:`METRICS`.
        is_best: Show it in bold.
        why_absent: Hint of a dash.

    Returns:
        The cell.
    """
    if figure is None:
        return Cell("–", hint=why_absent, kind="soft")
    metric = METRICS[name]
    hint = f"n = {figure['n']} {figure['over']}"
    low, high = figure["ci_low"], figure["ci_high"]
    if low is not None and high is not None:
        hint += f"; 95 % interval over items {metric.text(low)} to {metric.text(high)}"
    spread = "" if figure["std"] is None else f" ± {metric.text(figure['std'])}"
    return Cell(metric.text(figure["mean"]), spread, hint, "best" if is_best else "")
