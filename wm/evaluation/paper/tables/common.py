"""Join our cells with the published ones, and lay out rows by subset. Knows no single table."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from wm.evaluation.aurora_bench import SUBSET_NAMES, footnote, subset_title
from wm.evaluation.paper.cells import Absent, Cell, Column
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import REFERENCES, Sources
from wm.evaluation.paper.systems import SYSTEMS
from wm.evaluation.published import PublishedTable, list_contradictions
from wm.evaluation.rows import CEILING, COPY

SHORT_NAMES = {"magicbrush": "MB", "ag": "AG", "something": "ST", "whatsup": "WU", "kubric": "KU"}
"""Subset → its name in the paper's narrow tables."""
BLANK = Cell(is_blank=True)
_GPT_4O = re.compile(r"(?:openai/)?gpt-4o(?:-\d{4}-\d\d-\d\d)?")
"""Names of the paper's judge, of any date; gpt-4o-mini is another model."""
FIRST_CANDIDATE = (
    "Of our models the first candidate is judged, as the paper judges one sample a prediction; K = 1 of a report is "
    "the mean over all candidates: another estimate of the same, which differs by chance."
)
CEILING_TITLE = "Codec"
"""Head of the column of the true targets through the codec."""


CountVideos: TypeAlias = Callable[[Path], Mapping[str, float | None]]


@dataclass(frozen=True)
class Layout:
    """What all tables of one set of results share.

    Attributes:
        measured: The results' figures.
        version: Whose rows and columns.
        caption_of: Of which image CLIP-T's caption is.
        count_videos: Counts table 7's columns from the folder of an annotation that did not count them; None: not.
    """

    measured: Measured
    version: str = "acl"
    caption_of: str = "target"
    count_videos: CountVideos | None = None

    @property
    def sources(self) -> Sources:
        """Return the results."""
        return self.measured.sources

    @property
    def subsets(self) -> list[str]:
        """Return the bench's subsets; those of AURORA-Bench where no result is of a bench."""
        return self.sources.subset_order or list(SUBSET_NAMES)

    @property
    def is_published(self) -> bool:
        """Return whether published numbers may stand beside these results."""
        return self.sources.is_published

    @property
    def judge(self) -> str:
        """Return what tables call the judge: ``GPT-4o`` where it is one or there is none, else ``Judge``."""
        # Named where it is another: its scores are not the paper's.
        models = {str(source.recipe("model")) for source in self.sources.of("judge")}
        return "GPT-4o" if all(_GPT_4O.fullmatch(model) for model in models) else "Judge"

    def judge_notes(self) -> tuple[str, ...]:
        """Return which model judged, and what it was shown; nothing where nothing was judged."""
        judgings = self.sources.of("judge")
        models = ", ".join(sorted({str(source.recipe("model")) for source in judgings}))
        views = {str(source.recipe("source_view", "as_seen")) for source in judgings}
        described = " or ".join(
            sorted("cropped as the prediction is" if view == "as_seen" else "in full" for view in views)
        )
        return (f"Judge: {models}; sources shown {described}. {FIRST_CANDIDATE}",) if models else ()

    def notes(self, key: str) -> tuple[str, ...]:
        """Return the notes below a table: rows that the bench lacks, and contradictions in the paper's numbers."""
        classes = [row.class_label for row in self.sources.rows]
        # Rows that the release lacks are named below every table.
        bench = [f"{note}."] if (note := footnote(len(classes), classes)) else []
        return (*bench, *(list_contradictions(key) if self.is_published else ()))

    def add_published(self, cell: Cell, *lookups: tuple[PublishedTable, str, str]) -> Cell:
        """Add the first published number that one of several tables has for a cell.

        Args:
            cell: Ours.
            *lookups: (table, row, column) of each.

        Returns:
            The cell.
        """
        for table, row, column in lookups:
            printed = table.cell(row, column) if self.is_published else None
            # The first that prints it: the later text before the earlier one.
            if printed is not None:
                return replace(
                    cell, published=printed.value, published_mark=printed.mark, is_published_best=printed.is_bold,
                    published_digits=printed.digits,
                )  # fmt: skip
        return cell

    def short(self, subset: str) -> str:
        """Return a subset's name in narrow tables."""
        return SHORT_NAMES.get(subset, subset_title(subset))

    def extra_systems(self, columns: Sequence[str], labels: Sequence[str]) -> list[str]:
        """List the labels of the results that a table has no column for, references first.

        Args:
            columns: The paper's systems that have a column.
            labels: Labels that have figures of the table's kind.

        Returns:
            Labels; ablations and models that the paper shows in other tables are left out.
        """
        # The paper's systems keep to their tables: ablations are no rivals of table 2.
        own = {self.sources.label(system) for system in (*SYSTEMS, *columns) if system not in REFERENCES}
        extra = [label for label in dict.fromkeys(labels) if label not in own and label not in columns]
        return sorted(extra, key=lambda label: (label != COPY, label != CEILING))


def column_of(label: str) -> Column:
    """Build the column of a system beyond the paper's."""
    # Its full name would be the widest column.
    title = CEILING_TITLE if label == CEILING else label
    return Column(title, "reference" if label in REFERENCES else "model", key=label)


def cell_or(cell: Cell | None, absent: Absent, *, digits: int = 2) -> Cell:
    """Return a cell; where there is none, an empty one with its reason.

    Args:
        cell: Ours, if it could be had.
        absent: Why it could not.
        digits: Of the empty cell.

    Returns:
        The cell.
    """
    return cell if cell is not None else Cell(absent=absent, digits=digits)


def drop_empty(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> list[int]:
    """List the columns that have a figure, ours or a published one; all where none has.

    Args:
        columns: Of the table.
        rows: Cells of each row.

    Returns:
        Numbers of the columns, ascending.
    """
    filled = [
        number
        for number in range(len(columns))
        if any(row[number].mean is not None or row[number].published is not None for row in rows)
    ]
    # A table of dashes still says what would be in it.
    return filled or list(range(len(columns)))
