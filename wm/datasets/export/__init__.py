"""Export triplets in the layouts that other projects read: AURORA JSON, WebDataset tar files, LeRobot v3.0.

An export is planned first (:func:`plan_export`: which rows go into which part), then each part is written on its own
(:func:`write_part`: atomically, in any order, by any process), and at the end :func:`finish_export` writes
what speaks of all parts. Images keep their stored bytes unless a size is asked for.
"""

from wm.datasets.export.parts import (
    FORMATS,
    ExportFormat,
    finish_export,
    marks_folder,
    read_marks,
    remove_marks,
    write_part,
)
from wm.datasets.export.plan import Part, Plan, Slice, plan_export
from wm.datasets.export.row_filter import RowFilter, read_selection
from wm.datasets.export.rows import PROVENANCE, Context, count_licenses, first_image_size

__all__ = [
    "FORMATS",
    "PROVENANCE",
    "Context",
    "ExportFormat",
    "Part",
    "Plan",
    "RowFilter",
    "Slice",
    "count_licenses",
    "finish_export",
    "first_image_size",
    "marks_folder",
    "plan_export",
    "read_marks",
    "read_selection",
    "remove_marks",
    "write_part",
]
