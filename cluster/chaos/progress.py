"""Look how far work has come at a moment, from what it has written by then. Not known here: who asks, and what for."""

import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

_CHECKPOINT = re.compile(r"checkpoints/step-(\d+)-[0-9a-f]+/checkpoint\.json")
_MARK = re.compile(r"shards/[^/]+\.json")
_TAIL_BYTES = 16_384


def look_at_annotation(names: Sequence[str]) -> dict[str, float]:
    """Count the shards that are finished.

    Args:
        names: Files of the output, in its folder or bucket.

    Returns:
        The number under ``shards``.
    """
    return {"shards": sum(_MARK.fullmatch(name) is not None for name in names)}


def look_at_training(names: Sequence[str], figures: Sequence[Path]) -> dict[str, float]:
    """Find the newest complete checkpoint and the last step.

    Args:
        names: Files of the output, in its folder or bucket.
        figures: Files of figures that there may be, one a node on which the first worker ever ran.

    Returns:
        Steps of the ``checkpoint``; the ``step`` that the newest figures reach, and the seconds since they were written
        (``step_age_s``): few while steps are done, more while workers start. What there is not is left out.
    """
    # 1. A checkpoint is complete when it has its manifest.
    found = [int(match[1]) for name in names if (match := _CHECKPOINT.fullmatch(name))]
    progress: dict[str, float] = {"checkpoint": max(found)} if found else {}
    # 2. Nodes that are gone leave older figures.
    newest, changed_s = None, 0.0
    for path in figures:
        try:
            mtime_s = path.stat().st_mtime
        except FileNotFoundError:
            continue
        if mtime_s > changed_s:
            newest, changed_s = path, mtime_s
    step = None if newest is None else _last_step(newest)
    return progress if step is None else progress | {"step": step, "step_age_s": round(time.time() - changed_s, 1)}


def _last_step(path: Path) -> int | None:
    """Return the step of the last complete line; None if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
    except FileNotFoundError:  # an attempt that begins removes what the one before has left
        return None
    complete = [line for line in lines if line.startswith(b"{") and line.endswith(b"}\n")]
    return int(json.loads(complete[-1])["step"]) if complete else None
