"""Define the tables of the paper as typed data: cells with spread, number of items and published value.

Not known here: where figures come from, and how a table is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

ColumnKind: TypeAlias = Literal["model", "reference", "oracle", "fact"]
"""What a column is: a ``model`` that is compared with the others of its row; a ``reference``, such as Copy; an
``oracle``, which chooses by the true score; a ``fact`` that nobody compares, such as a number of videos."""

DASH = "–"
"""Text of an empty cell."""


@dataclass(frozen=True)
class Absent:
    """Say why something cannot be had, and which command would give it."""

    reason: str
    command: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell: our figure with its spread, the published one, or why ours is absent.

    Attributes:
        mean: Our figure; None where there is none.
        std: Standard deviation; None for one value.
        num_values: Values that ``std`` is of.
        over: What they are, such as ``training seeds``.
        ci_low: Lower end of the 95 % interval over items; None where it is not defined.
        ci_high: Upper end.
        n: Items that ``mean`` is over; None where items do not apply.
        expected: Items that it should be over, those of the bench.
        published: The paper's figure; None where it prints none, or where it must not stand beside ours.
        published_mark: What the paper prints behind it, such as †.
        published_digits: Digits after its point, as printed.
        digits: Digits after the point of ours.
        is_signed: Whether a plus is written, as for differences.
        lower_is_better: Whether the smallest of a row is the best.
        is_best: Whether it is the best model of its row.
        is_published_best: Whether the paper prints it bold.
        mark: What is written behind our figure, such as †.
        absent: Why there is no figure of ours.
        is_blank: Whether the table has nothing at this place.
    """

    mean: float | None = None
    std: float | None = None
    num_values: int = 0
    over: str = "training seeds"
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    expected: int | None = None
    published: float | None = None
    published_mark: str = ""
    published_digits: int = 2
    digits: int = 2
    is_signed: bool = False
    lower_is_better: bool = False
    is_best: bool = False
    is_published_best: bool = False
    mark: str = ""
    absent: Absent | None = None
    is_blank: bool = False

    @property
    def is_partial(self) -> bool:
        """Return whether the mean is over fewer items than it should be."""
        return self.n is not None and self.expected is not None and self.n < self.expected

    def format_value(self, value: float | None) -> str:
        """Format a figure with the digits of this cell; a dash for None."""
        if value is None:
            return DASH
        # Of -0.001 two digits are 0.00, which has no sign.
        rounded = round(value, self.digits) + 0.0
        return f"{rounded:{'+' if self.is_signed else ''},.{self.digits}f}"

    def text(self) -> str:
        """Format our figure with its mark; a dash where there is none."""
        if self.is_blank:
            return ""
        return self.format_value(self.mean) + (self.mark if self.mean is not None else "")

    def spread_text(self) -> str:
        """Format spread and items: ``± 0.12 (3 training seeds; n 40 of 48)``; empty where there is neither."""
        # One value has no spread, and nothing is said of it.
        parts = []
        if self.std is not None:
            parts.append(f"± {replace(self, is_signed=False).format_value(self.std)}")
        # A mean over fewer items than the bench is never printed without saying so.
        notes = [f"{self.num_values} {self.over}"] if self.std is not None else []
        notes += [f"n {self.n:,} of {self.expected:,}"] if self.is_partial else []
        parts += [f"({'; '.join(notes)})"] if notes else []
        return " ".join(parts)

    def interval_text(self) -> str:
        """Format the interval: ``[0.10, 0.31]``; empty where there is none."""
        # A single item, or items that are all alike, bound nothing.
        if self.ci_low is None or self.ci_high is None:
            return ""
        return f"[{self.format_value(self.ci_low)}, {self.format_value(self.ci_high)}]"

    def published_text(self) -> str:
        """Format the published figure; empty where there is none."""
        # As many digits as are printed: more would be made up.
        if self.published is None:
            return ""
        return replace(self, digits=self.published_digits).format_value(self.published) + self.published_mark


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: Its head.
        kind: What it is, which decides whether its figures may be bold.
        group: Head above several columns; empty: none.
        key: Name in the CSV; empty: the title.
    """

    title: str
    kind: ColumnKind = "model"
    group: str = ""
    key: str = ""

    @property
    def name(self) -> str:
        """Return the name in the CSV."""
        return self.key or " ".join(part for part in (self.group, self.title) if part)


@dataclass(frozen=True)
class Row:
    """A row.

    Attributes:
        title: Its first cell.
        cells: One a column.
        group: What several rows in turn share, such as a subset; empty: nothing.
        is_summary: Whether it is an average of the rows before it.
    """

    title: str
    cells: tuple[Cell, ...]
    group: str = ""
    is_summary: bool = False


@dataclass(frozen=True)
class Table:
    """A table of the paper.

    Attributes:
        key: Such as ``table-2``, which also names its files.
        title: Its caption.
        columns: Columns behind the first one.
        rows: Rows, with as many cells as there are columns.
        source: Where the published figures are printed, such as ``ACL, Table 2``; empty: none are shown.
        notes: Sentences below it.
        is_toy: Whether the results are of the toy world.
        is_simulated: Whether the votes that it shows were given by no person.
        interval_over: What the intervals of its cells are over.
        absent: Why the table has no figure of ours at all; None where it has some.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    source: str = ""
    notes: tuple[str, ...] = field(default=())
    is_toy: bool = False
    is_simulated: bool = False
    interval_over: str = "items"
    absent: Absent | None = None

    def __post_init__(self) -> None:
        """Check that every row has a cell a column."""
        # A shifted cell would be another column's figure.
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.key}, row {row.title}: {len(row.cells)} cells, {len(self.columns)} columns")

    @property
    def marks(self) -> tuple[str, ...]:
        """Return what a reader must know of the results first: that they are of the toy world, or simulated votes."""
        # In the order in which they are shown.
        kinds = ((self.is_toy, "toy world"), (self.is_simulated, "simulated votes"))
        return tuple(mark for applies, mark in kinds if applies)

    def list_absent(self) -> list[Absent]:
        """List the different reasons of empty cells, in the order of the cells."""
        # A reason of all of the table comes first.
        reasons = [cell.absent for row in self.rows for cell in row.cells if cell.absent is not None]
        return list(dict.fromkeys([*([self.absent] if self.absent is not None else []), *reasons]))


def mark_best(cells: Sequence[Cell], columns: Sequence[Column]) -> tuple[Cell, ...]:
    """Mark the best model of a row; references and oracles take no part. Equal printed figures share the place.

    Args:
        cells: Of the row.
        columns: Of the table.

    Returns:
        The cells, in their order.
    """
    rivals = [
        cell
        for cell, column in zip(cells, columns, strict=True)
        if column.kind == "model" and cell.mean is not None and not cell.is_signed
    ]
    # Alone there is nothing to be better than.
    if len(rivals) < 2:
        return tuple(cells)
    # As printed: a difference that nobody sees is none.
    choose = min if rivals[0].lower_is_better else max
    best = rivals[0].format_value(choose(cell.mean for cell in rivals if cell.mean is not None))
    return tuple(
        replace(cell, is_best=column.kind == "model" and cell.mean is not None and cell.format_value(cell.mean) == best)
        for cell, column in zip(cells, columns, strict=True)
    )
