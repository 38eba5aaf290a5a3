"""Build table 7: statistics of video sets and of the triplets that their annotation gave."""

from collections.abc import Mapping
from typing import cast

from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table
from wm.evaluation.paper.sources import Source
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.published import list_contradictions, load_published

_SETS = {"moments": "MIT", "ucf101": "UCF-101", "kinetics700": "Kinetics700"}
"""``dataset`` of the paper's annotations → its row."""
_RECIPES = {
    "MIT": "paper/annotate-moments",
    "UCF-101": "paper/annotate-ucf101",
    "Kinetics700": "paper/annotate-kinetics700",
}
_COLUMNS = (
    ("Avg. length, s", "mean_length_s", 2),
    ("Total length, h", "total_length_h", 2),
    ("#Samples", "samples", 0),
    ("#Avg. OPV", "observations_per_video", 2),
    ("#Avg. APV", "actions_per_video", 2),
    ("#Avg. WPA", "words_per_action", 2),
)
"""Title, name in the stage's counts, digits."""


def build_video_table(layout: Layout) -> Table:
    """Build table 7 of annotations, and of selections that count the same columns.

    Args:
        layout: The results.

    Returns:
        The table; sets that the paper does not have are below the paper's.
    """
    printed = load_published()["table-7"]
    rows: list[Row] = []
    counted = _list_counted(layout)
    for title in printed.rows:
        own = [(source, counts) for name, source, counts in counted if name == title]
        absent = Absent(
            f"no annotation of {title}", f"wm annotate {_RECIPES[title]} videos=VIDEOS idm=IDM out=ANNOTATED"
        )
        for source, counts in own:
            # Several of one set are distinguished by their folders.
            name = title if len(own) < 2 else f"{title} ({source.folder.name})"
            rows.append(Row(name, tuple(_cell(layout, counts, column, title, absent) for column in _COLUMNS)))
        if not own:
            rows.append(Row(title, tuple(_cell(layout, {}, column, title, absent) for column in _COLUMNS)))
    if layout.sources.is_toy:
        rows = [row for row in rows if any(cell.mean is not None for cell in row.cells)]
    # Sets that the paper does not have.
    for name, source, counts in counted:
        if name not in printed.rows:
            own_cells = tuple(_cell(layout, counts, column, name, Absent("not counted")) for column in _COLUMNS)
            shared = sum(other == name for other, *_ in counted) > 1
            rows.append(Row(f"{name} ({source.folder.name})" if shared else name, own_cells))
    # Only in the toy world, as elsewhere the paper's sets have rows.
    no_counts = None if rows else Absent("no annotation", "wm bootstrap nano/full")
    return Table(
        key="table-7",
        title="Videos and the triplets of their annotation",
        columns=tuple(Column(title, "fact") for title, *_ in _COLUMNS),
        rows=tuple(rows),
        source=printed.source if layout.is_published else "",
        notes=(
            "#Samples: videos with a triplet; OPV, APV: key-frames and actions of these; WPA: words an action. Lengths "
            "are of all videos that decode.",
            *(list_contradictions("table-7") if layout.is_published else ()),
        ),
        is_toy=layout.sources.is_toy,
        absent=no_counts,
    )


def _list_counted(layout: Layout) -> list[tuple[str, Source, Mapping[str, float | None]]]:
    """List set, folder and counts of every stage that counted the columns."""
    counted = []
    for source in layout.sources.folders:
        # Whichever stage counted it: annotations do, but those of earlier versions.
        counts = source.counts.get("table7")
        if counts is None and source.stage == "annotate" and layout.count_videos is not None:
            counts = layout.count_videos(source.folder)
        if isinstance(counts, Mapping):
            dataset = str(source.recipe("dataset", "") or source.folder.name)
            name = _SETS.get(dataset, dataset)
            name = name if source.stage == "annotate" else f"{name}, {source.stage}"
            counted.append((name, source, cast(Mapping[str, float | None], counts)))
    return counted


def _cell(
    layout: Layout, counts: Mapping[str, float | None], column: tuple[str, str, int], row: str, absent: Absent
) -> Cell:
    title, name, digits = column
    # A mean over nothing is null there, and a dash here.
    value = counts.get(name)
    cell = Cell(digits=digits, absent=absent) if value is None else Cell(mean=float(value), digits=digits)
    return layout.add_published(cell, (load_published()["table-7"], row, title))
