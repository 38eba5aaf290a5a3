"""Read what a run folder holds for the report: stages by their ``run.json``, losses, tables, examples."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wm.errors import InputError, MissingPathError
from wm.evaluation.rows import Example, Tables
from wm.runs import read_run

_DEPTH = 4
SUPERSEDED = "superseded"
"""Folder below the run's that keeps outputs which a later run has replaced; the report passes it over."""
_TRAINING_KEYS = {"max_steps": "steps", "epochs": "epochs", "global_batch_size": "global_batch", "triplets": "triplets"}
"""Keys of a training's recipe that say how long it learned from what, each with its name in earlier records."""


@dataclass(frozen=True)
class Stage:
    """A finished stage."""

    name: str  # its folder relative to the run's
    folder: Path
    record: dict[str, Any]

    @property
    def kind(self) -> str:
        """Return the command that wrote it, such as ``train``."""
        return str(self.record.get("stage", ""))

    @property
    def wall_s(self) -> float:
        """Return its wall-clock time."""
        return float(self.record.get("wall_s", 0.0))

    @property
    def interval_s(self) -> tuple[float, float] | None:
        """Return when it began and ended, in seconds since 1970; None where the record does not say it."""
        # The last process of it alone: a stage that was killed and resumed says no more.
        try:
            end = datetime.strptime(str(self.record.get("finished_at")), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            return None
        return end.timestamp() - self.wall_s, end.timestamp()

    def table(self, *names: str) -> dict[str, Any]:
        """Look up a table in the record, such as ``counts``; empty where the record has none."""
        table: Any = self.record
        for name in names:
            table = table.get(name) if isinstance(table, dict) else None
        return table if isinstance(table, dict) else {}


@dataclass(frozen=True)
class LossCurve:
    """Losses of one training run, one a logged step."""

    name: str
    kind: str
    steps: list[float]
    losses: list[float]


@dataclass(frozen=True)
class Findings:
    """What a run folder holds; the last three are None without an ``evaluate`` stage."""

    folder: Path
    stages: list[Stage]  # in order of time
    curves: list[LossCurve]
    evaluation: Stage | None
    tables: Tables | None
    examples: list[Example] | None

    @property
    def wall_s(self) -> float:
        """Return the seconds in which at least one stage ran: of stages side by side none counts twice."""
        intervals = [stage.interval_s for stage in self.stages]
        total_s = sum(stage.wall_s for stage in self.stages if stage.interval_s is None)
        # In the order of their begins: each adds what is after all ends so far.
        last_end = -math.inf
        for begin, end in sorted(interval for interval in intervals if interval is not None):
            total_s += max(0.0, end - max(begin, last_end))
            last_end = max(last_end, end)
        return total_s

    def of(self, kind: str) -> list[Stage]:
        """List the stages of one kind, in order of time."""
        return [stage for stage in self.stages if stage.kind == kind]

    def label_of(self, stage: Stage) -> str:
        """Find the evaluation's label of a training stage's model; else the stage's own name."""
        if self.evaluation is not None:
            own = stage.folder.resolve()
            for entry in self.evaluation.table("recipe", "models").values():
                path = Path(entry["path"]).resolve()
                if own in (path, *path.parents):
                    return str(entry["label"])
        return stage.name


def read_findings(folder: str | Path) -> Findings:
    """Look for finished stages up to four folders deep; of several ``evaluate`` stages the last finished one is
    reported.

    Args:
        folder: The run's folder.

    Returns:
        The stages in order of time, with the losses, tables and examples that they hold.

    Raises:
        InputError: If there is no finished stage, or a file of one is damaged.
    """
    root = Path(folder)
    if not root.is_dir():
        raise MissingPathError(root, "run folder")
    stages = []
    for path in sorted(root.rglob("run.json")):
        parts = path.relative_to(root).parts
        if len(parts) > _DEPTH + 1 or any(part.startswith(".") or part == SUPERSEDED for part in parts):
            continue
        record = read_run(path.parent) or {}
        if record.get("stage") and record["stage"] != "report":
            name = str(path.parent.relative_to(root))
            stages.append(Stage(name if name != "." else root.name, path.parent, record))
    if not stages:
        raise InputError(f"{root} holds no finished stage (no run.json up to {_DEPTH} folders deep)")
    # By time, so that the last evaluation is the one reported.
    stages.sort(key=lambda stage: str(stage.record.get("finished_at", "")))
    evaluated = [stage for stage in stages if stage.kind == "evaluate"]
    last = evaluated[-1] if evaluated else None
    return Findings(
        folder=root,
        stages=stages,
        curves=[curve for stage in stages if (curve := load_losses(stage)) is not None],
        evaluation=last,
        tables=None if last is None else _load_json(last.folder / "tables.json"),
        examples=None if last is None else _load_json(last.folder / "examples.json"),
    )


def load_losses(stage: Stage) -> LossCurve | None:
    """Load ``metrics.jsonl`` of a stage (an object a line, with ``step`` and ``loss``); None if it has none."""
    path = stage.folder / "metrics.jsonl"
    if not path.is_file():
        return None
    steps, losses = [], []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: no JSON, a number of too many digits
            raise InputError(f"{path}, line {number} is not JSON: {error}") from error
        if isinstance(row, dict) and "loss" in row and "step" in row:
            steps.append(float(row["step"]))
            losses.append(float(row["loss"]))
    kind = str(stage.table("recipe").get("task") or stage.kind)
    return LossCurve(stage.name, kind, steps, losses) if steps else None


def same_training(first: Stage, second: Stage) -> list[str] | None:
    """List in which of steps, epochs, batch and triplets two training runs differ.

    Args:
        first: A training stage.
        second: Another.

    Returns:
        A text for each difference; none means equal data and steps. None if a recipe does not say what it was trained
        on.
    """
    settings, others = (
        {key: stage.table("recipe").get(key, stage.table("recipe").get(old)) for key, old in _TRAINING_KEYS.items()}
        for stage in (first, second)
    )
    if settings["triplets"] is None or others["triplets"] is None:
        return None
    return [f"{key}: {value!r} and {others[key]!r}" for key, value in settings.items() if value != others[key]]


def _load_json(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is missing, though its stage is complete")
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
        raise InputError(f"{path} is damaged: {error}") from error
