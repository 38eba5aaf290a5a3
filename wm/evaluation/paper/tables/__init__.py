"""Build the paper's tables."""

from collections.abc import Callable
from typing import TypeAlias

from wm.evaluation.paper.cells import Table
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.paper.tables.judged import build_ablation_table, build_criteria_table, build_judge_table
from wm.evaluation.paper.tables.metrics import build_metric_table
from wm.evaluation.paper.tables.motion import build_motion_table
from wm.evaluation.paper.tables.study import build_study_table, build_win_rate_table
from wm.evaluation.paper.tables.texts import build_text_table
from wm.evaluation.paper.tables.videos import build_video_table

BuildTable: TypeAlias = Callable[[Layout], Table]

TABLES: dict[str, BuildTable] = {
    "1": build_text_table,
    "2": build_judge_table,
    "3": build_criteria_table,
    "4": build_ablation_table,
    "5": build_study_table,
    "6": build_metric_table,
    "7": build_video_table,
    "v3-6": build_win_rate_table,
    "v3-7": build_motion_table,
}
"""Number of a table → how it is built, in the order of the page."""
