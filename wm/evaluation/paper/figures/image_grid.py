"""Draw figure 6: a row a triplet with its source, its target and what each system predicted."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from wm.errors import InputError
from wm.evaluation.aurora_bench import order_subsets, subset_title
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.style import SMALL_PT, TEXT_PT, TITLE_PT, draw_image, mark_toy, new_figure, wrap
from wm.evaluation.paper.sources import Sources
from wm.evaluation.predictions import PredictionFacts, read_image_bytes
from wm.images import Pixels, decode_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ORDER: Final = ("PixInst", "GoT", "SE", "C-ZS", "C-FT", "C-FDM", "L-ZS", "L-FT", "L-FDM")
"""Columns as the paper has them; other systems follow."""
INPUT, OUTPUT = "Input", "Output"
"""Columns of the source and of the true target."""
_CELL_IN: Final = 1.25
_TITLE_IN: Final = 0.34
_SIDE_IN: Final = 0.3


@dataclass(frozen=True)
class GridCell:
    """An image, or why there is none."""

    pixels: Pixels | None
    reason: str = ""


@dataclass(frozen=True)
class GridRow:
    """A triplet; ``cells`` has one a column."""

    subset: str
    action: str
    cells: tuple[GridCell, ...]


@dataclass(frozen=True)
class ImageGrid:
    """Figure 6. ``columns``: :data:`INPUT`, :data:`OUTPUT` and the systems."""

    columns: tuple[str, ...]
    rows: tuple[GridRow, ...]
    is_toy: bool = False


def choose_triplets(subsets: Mapping[str, str], triplet_ids: Sequence[str], seed: int) -> list[str]:
    """Choose one triplet a subset, in the order of the paper's tables.

    Args:
        subsets: Triplet → subset, in the bench's order.
        triplet_ids: Those to show; of a subset without one of them ``seed`` chooses one.
        seed: Seed of the choice; a subset's choice does not depend on the other subsets.

    Returns:
        Ids; more than one of a subset where ``triplet_ids`` has several.

    Raises:
        InputError: One of ``triplet_ids`` is not of the bench.
    """
    unknown = [triplet_id for triplet_id in triplet_ids if triplet_id not in subsets]
    if unknown:
        raise InputError(f"triplets: {unknown[0]!r:.100} is not of the bench of {len(subsets)} triplets")
    selection: list[str] = []
    for name in order_subsets(subsets.values()):
        members = [triplet_id for triplet_id, subset in subsets.items() if subset == name]
        # Sorted: the order in which a bench was written must not change the choice.
        example = random.Random(f"{seed} {name}").choice(sorted(members))
        selection += [triplet_id for triplet_id in triplet_ids if triplet_id in members] or [example]
    return selection


def build_image_grid(data: ImageGrid) -> "Figure":
    """Draw the grid, with the action above each row.

    Args:
        data: At least one row; each has a cell a column.

    Returns:
        The figure.
    """
    columns, head_in = len(data.columns), 0.5 if data.is_toy else 0.25
    row_in = _CELL_IN + _TITLE_IN
    width_in, height_in = _SIDE_IN + columns * (_CELL_IN + 0.07), head_in + len(data.rows) * row_in + 0.08
    figure = new_figure(width_in, height_in, constrained=False)
    if data.is_toy:
        figure.text(
            0.5, 1 - 0.1 / height_in, mark_toy("Predictions", True), fontsize=TITLE_PT, ha="center", va="top",
        )  # fmt: skip
    # Placed by hand: images are squares, and the room between them must not depend on the titles.
    edges = [(_SIDE_IN + column * (_CELL_IN + 0.07)) / width_in for column in range(columns)]
    cell = _CELL_IN / width_in, _CELL_IN / height_in
    for name, x in zip(data.columns, edges, strict=True):
        figure.text(
            x + cell[0] / 2, 1 - (head_in - 0.04) / height_in, wrap(name, 16, 1), fontsize=TEXT_PT,
            fontweight="bold", ha="center", va="bottom", parse_math=False,
        )  # fmt: skip
    # About 13 letters an inch at this size.
    letters = int(columns * _CELL_IN * 13)
    # From the top down: inches count from the bottom.
    for number, row in enumerate(data.rows):
        bottom_in = height_in - head_in - (number + 1) * row_in
        figure.text(
            edges[0], (bottom_in + _CELL_IN + 0.06) / height_in, wrap(row.action, letters, 1), fontsize=TEXT_PT,
            style="italic", va="bottom", parse_math=False,
        )  # fmt: skip
        figure.text(
            0.08 / width_in, (bottom_in + _CELL_IN / 2) / height_in, row.subset, fontsize=SMALL_PT, rotation=90,
            va="center", parse_math=False,
        )  # fmt: skip
        for image, x in zip(row.cells, edges, strict=True):
            axes = figure.add_axes((x, bottom_in / height_in, *cell))
            draw_image(axes, image.pixels, reason=image.reason)
    return figure


def read_image_grid(sources: Sources) -> ImageGrid | Absent:
    """Gather one triplet a subset with the prediction of every system that has a prediction set.

    Of a system's candidates the first one of its first run and seed is shown: nobody has chosen it.

    Args:
        sources: The results.

    Returns:
        The data; absent without a prediction set.

    Raises:
        InputError: A triplet of the options is not of the bench.
    """
    if not sources.predictions:
        return Absent("no prediction set", "wm evaluate paper/evaluate-aurora-bench")
    # 1. Which triplets and columns.
    ids = choose_triplets(sources.subsets, sources.options.triplets, sources.options.seed)
    first = _find_first(sources.predictions, ids)
    systems = sorted(
        dict.fromkeys(row["system"] for row in sources.predictions),
        key=lambda label: _ORDER.index(sources.title(label)) if sources.title(label) in _ORDER else len(_ORDER),
    )
    bench = {row.triplet_id: row for row in sources.rows}
    rows = []
    # 2. Their images; what a system lacks is said in its cell.
    for triplet_id in ids:
        row = bench[triplet_id]
        cells = [GridCell(_read_image(row.file, row.row, f"{side}_image")) for side in ("source", "target")]
        for label in systems:
            facts = first.get((label, triplet_id))
            cells.append(
                GridCell(None, "no prediction") if facts is None else GridCell(_read_image(facts["file"], facts["row"]))
            )
        rows.append(GridRow(subset_title(sources.subsets[triplet_id]), row.action, tuple(cells)))
    # The paper's names, where the results have others.
    titles = [sources.title(label) for label in systems]
    return ImageGrid((INPUT, OUTPUT, *titles), tuple(rows), sources.is_toy)


def _find_first(facts: Sequence[PredictionFacts], triplet_ids: Sequence[str]) -> dict[tuple[str, str], PredictionFacts]:
    """Find the first prediction of each system and triplet; a greedy one where nothing was sampled."""
    # Sampled before greedy, then by run, seed and number: the same choice in every order of the files.
    first: dict[tuple[str, str], PredictionFacts] = {}
    members = set(triplet_ids)
    own = [row for row in facts if row["triplet_id"] in members]
    order = sorted(
        own, key=lambda row: (row["decoding"] == "greedy", row["run"], row["sampling_seed"], min(row["candidates"]))
    )
    for row in order:
        first.setdefault((row["system"], row["triplet_id"]), row)
    return first


def _read_image(file: str, row: int, column: str = "image") -> Pixels:
    return decode_image(read_image_bytes(file, [row], column)[0], f"{column} of row {row} in {file}")
