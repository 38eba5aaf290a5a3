"""Describe a process, a finished step and a line of ``metrics.jsonl``, and cut such files where a run resumes."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from wm.training.data.order import Indices
from wm.training.step import MicroBatch


class WindowFigures(TypedDict, total=False):
    """Figures of a window, in its last line."""

    tokens_per_s: float
    mfu: float
    memory_peak_bytes: int
    loss_by_source: dict[str, float]
    loss_by_change: dict[str, float]
    weight_counts: list[int]


class StepLine(WindowFigures):
    """A line of ``metrics.jsonl``."""

    step: int
    epoch: float
    loss: float
    """Of the global batch."""
    lr: float
    grad_norm: float
    samples_per_s: NotRequired[float]


@dataclass(frozen=True)
class RankInfo:
    """A process of the training: its number, of how many, and its device."""

    rank: int
    size: int
    device: torch.device


@dataclass(frozen=True)
class StepResult:
    """A finished step as this rank saw it, P of the global batch's rows being its own."""

    step: int
    """From 1."""
    loss: float
    """This rank's contribution: the mean over ranks is the loss of the global batch."""
    lr: float
    grad_norm: float
    rows: Indices
    """The global batch."""
    num_learned: int
    """Completion tokens of the global batch."""
    rows_2P: Tensor  # noqa: N815
    """:func:`wm.training.step.row_nll` of this rank's rows."""
    micro_batches: Sequence[MicroBatch]


def drop_lines_after(path: Path, first: int) -> list[dict[str, Any]]:
    """Drop the lines of later steps from a file.

    The others are written to a new file: a worker left over from before a kill, if one still writes, writes into the
    old one.

    Args:
        path: File of JSON objects with a ``step``.
        first: Last step that stays.

    Returns:
        The lines that stay.
    """
    lines = []
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                # The line that was being written when the run was killed.
                break
            if line["step"] <= first:
                lines.append(line)
    # Renamed when complete, so that a kill loses no line.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.replace(path)
    return lines
