"""Build V3's table 7: the judge's score where much moves between source and target, and where little does."""

from collections.abc import Mapping
from statistics import median

import cv2
import numpy as np

from wm.evaluation.image_scoring import read_targets
from wm.evaluation.judge.figures import TOP
from wm.evaluation.metrics.stats import mean_interval
from wm.evaluation.paper.cells import Absent, Cell, Column, Row, Table
from wm.evaluation.paper.sources import Sources
from wm.evaluation.paper.systems import explain_unscored
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.predictions import read_image_bytes
from wm.evaluation.published import load_published
from wm.images import Pixels, decode_image

FLOW_SIDE_PX = 256
"""Longer side at which the flow is computed, so that images of all sizes are alike."""
_SYSTEMS = ("C-FT", "C-FDM")
_TITLES = ("High motion (top 50 %)", "Low motion (bottom 50 %)")


def flow_magnitude(source_HWC: Pixels, target_HWC: Pixels) -> float:
    """Compute the mean magnitude of Farnebäck's optical flow from source to target.

    The paper does not say which flow it takes. The target is resized to the source's size, both to a longer side of
    :data:`FLOW_SIDE_PX`.

    Args:
        source_HWC: uint8 RGB.
        target_HWC: uint8 RGB.

    Returns:
        Share of the longer side that a pixel moves on average.
    """
    # One scale for both images, whatever their sizes.
    height, width = source_HWC.shape[:2]
    scale = FLOW_SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    grey = [
        cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        for image in (source_HWC, target_HWC)
    ]
    # The parameters of OpenCV's documentation.
    flow_HW2 = cv2.calcOpticalFlowFarneback(
        grey[0], grey[1], np.zeros((*grey[0].shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0
    )
    return float(np.linalg.norm(flow_HW2, axis=2).mean()) / FLOW_SIDE_PX


def measure_motion(sources: Sources) -> dict[str, float]:
    """Measure the motion of every pair of the bench.

    Args:
        sources: The results.

    Returns:
        Id of a triplet → :func:`flow_magnitude`.

    Raises:
        InputError: An image cannot be read.
    """
    motion: dict[str, float] = {}
    # Row groups are read one after another: a bench of thousands is never in memory.
    for begin in range(0, len(sources.rows), 16):
        chunk = sources.rows[begin : begin + 16]
        for row, target_HWC in zip(chunk, read_targets(chunk), strict=True):
            encoded = read_image_bytes(row.file, [row.row], "source_image")[0]
            source_HWC = decode_image(encoded, f"source_image of triplet {row.triplet_id}")
            motion[row.triplet_id] = flow_magnitude(source_HWC, target_HWC)
    return motion


def build_motion_table(layout: Layout) -> Table:
    """Build the table; the bench is split at the median of its motion, pairs on it being of the lower half."""
    printed = load_published()["table-v3-7"]
    sources = layout.sources
    judged = any(layout.measured.judged(sources.label(system)) for system in _SYSTEMS)
    # Only where there is something to split: it takes seconds.
    motion = measure_motion(sources) if judged else {}
    middle = median(motion.values()) if motion else 0.0
    halves = (
        {key for key, value in motion.items() if value > middle},
        {key for key, value in motion.items() if value <= middle},
    )
    rows = []
    for title, half in zip(_TITLES, halves, strict=True):
        cells = [_cell(layout, system, half) for system in _SYSTEMS]
        cells.append(_difference(layout, half))
        columns = (*_SYSTEMS, "Δ")
        rows.append(
            Row(title, tuple(layout.add_published(c, (printed, title, n)) for c, n in zip(cells, columns, strict=True)))
        )
    return Table(
        key="table-v3-7",
        title=f"{layout.judge} score by motion between source and target, the bench split at its median",
        columns=(*(Column(system) for system in _SYSTEMS), Column("Δ", "fact")),
        rows=tuple(rows),
        source=printed.source if layout.is_published else "",
        notes=(
            *layout.judge_notes(),
            "Motion: mean magnitude of Farnebäck's optical flow over the longer side; which flow the paper takes is "
            "not stated. Means over items, not over subsets.",
            *layout.notes("table-v3-7"),
        ),
        is_toy=sources.is_toy,
    )


def _cell(layout: Layout, system: str, half: set[str]) -> Cell:
    finals = layout.measured.finals_by_item(layout.sources.label(system))
    cell = _mean_cell({key: value for key, value in finals.items() if key in half}, len(half))
    return cell or Cell(absent=explain_unscored(layout.sources, system, "judge"))


def _difference(layout: Layout, half: set[str]) -> Cell:
    first, second = (layout.measured.finals_by_item(layout.sources.label(system)) for system in _SYSTEMS)
    # Of items that both have: what makes one hard for both cancels.
    paired = {key: second[key] - first[key] for key in half if key in first and key in second}
    cell = _mean_cell(paired, len(half), is_signed=True)
    if cell is not None:
        return cell
    missing = _SYSTEMS[0] if not first else _SYSTEMS[1]
    reason = explain_unscored(layout.sources, missing, "judge")
    return Cell(is_signed=True, absent=reason if not first or not second else Absent("no item has both"))


def _mean_cell(values: Mapping[str, float], expected: int, *, is_signed: bool = False) -> Cell | None:
    if not values:
        return None
    # Sorted: a sum in floating point depends on the order.
    ordered = np.array([values[key] for key in sorted(values)])
    # A score is bounded by its scale, a difference is not.
    low, high = mean_interval(ordered, top=None if is_signed else TOP)
    return Cell(
        mean=float(ordered.mean()), ci_low=low, ci_high=high, n=len(values), expected=expected, is_signed=is_signed
    )
