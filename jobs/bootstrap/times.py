"""Measure when stages begin and end, estimate what is left, and store both in ``stages.json``.

The estimate plays the rest of the plan through with the times of a measured run of the same recipe, scaled by how fast
this machine has been so far.
"""

import json
import time
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.bootstrap.graph import Graph
from jobs.bootstrap.recipe import BootstrapRecipe
from wm.runs import write_json

STAGES = "stages.json"
MEASURED = Path(__file__).parent.parent / "measured" / "demo.json"
"""Times of ``make demo`` on a machine that the file describes."""

_REUSED_S = 2.0
"""A stage that took no longer may have been complete before: it says nothing of the machine's speed."""


@dataclass
class StageTime:
    """When a stage ran, in seconds since the run began."""

    name: str
    begin_s: float
    end_s: float
    beside: list[str]
    """Stages that ran at the same time, for a while at least."""

    @property
    def seconds(self) -> float:
        """Return how long it took."""
        return self.end_s - self.begin_s


class Times:
    """Clock of a run."""

    def __init__(self, graph: Graph, expected_s: Mapping[str, float]) -> None:
        """Start the clock.

        Args:
            graph: All stages.
            expected_s: Seconds that each stage took elsewhere, by name; one that is absent: no estimate.
        """
        self._graph = graph
        self._started = time.monotonic()
        self._expected_s = expected_s if all(stage.name in expected_s for stage in graph.stages) else {}
        self.stages: dict[str, StageTime] = {}

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._started

    def begin(self, name: str, finished: AbstractSet[str], running: AbstractSet[str]) -> str:
        """Note that a stage begins.

        Args:
            name: Of the stage.
            finished: Names of the stages that are complete.
            running: Names of those that run.

        Returns:
            A line for the user.
        """
        now_s = self.elapsed_s
        # Of two stages that run at the same time, each names the other.
        self.stages[name] = StageTime(name, now_s, now_s, sorted(running))
        for other in running:
            self.stages[other].beside.append(name)
        # In the order in which they begin, which need not be the plan's.
        number, total = len(self.stages), len(self._graph.stages)
        remaining_s = self.estimate_s(finished)
        estimate = "" if remaining_s is None else f", about {format_time(remaining_s)} left"
        beside = f", beside {', '.join(sorted(running))}" if running else ""
        return f"\n[{number}/{total}] {name}{beside} ({format_time(now_s)} so far{estimate})"

    def end(self, name: str) -> str:
        """Note that a stage has ended; returns a line for the user."""
        entry = self.stages[name]
        entry.end_s = self.elapsed_s
        return f"{name}: complete after {format_time(entry.seconds)}"

    def estimate_s(self, finished: AbstractSet[str]) -> float | None:
        """Estimate the seconds until all stages are complete.

        Args:
            finished: Names of the stages that are complete; others in :attr:`stages` run.

        Returns:
            Seconds from now; None where nothing is known of such a run.
        """
        if not self._expected_s:
            return None
        # 1. How fast this machine is, by the stages that have ended here.
        measured = [entry for entry in self.stages.values() if entry.name in finished and entry.seconds > _REUSED_S]
        here_s = sum(entry.seconds for entry in measured)
        there_s = sum(self._expected_s[entry.name] for entry in measured)
        scale = here_s / there_s if there_s else 1.0
        # 2. Play the rest through: when one ends, those that it kept waiting begin.
        now_s, clock_s, complete = self.elapsed_s, 0.0, set(finished)
        ends_s = {
            name: max(0.0, self._expected_s[name] * scale - (now_s - entry.begin_s))
            for name, entry in self.stages.items()
            if name not in finished
        }
        while len(complete) < len(self._graph.stages):
            for stage in self._graph.list_startable(complete, ends_s.keys()):
                ends_s[stage.name] = clock_s + self._expected_s[stage.name] * scale
            name = min(ends_s, key=ends_s.__getitem__)
            clock_s = ends_s.pop(name)
            complete.add(name)
        return clock_s

    def store(self, recipe: BootstrapRecipe) -> None:
        """Write ``stages.json``; times of an earlier run there stay for stages that were complete before.

        Args:
            recipe: Of the run.
        """
        out = Path(recipe.out)
        # A stage that was complete returned at once: what it took is what it took then.
        earlier = load_times(out)
        stages = {}
        for stage in self._graph.stages:
            entry = self.stages[stage.name]
            is_reused = entry.seconds <= _REUSED_S and stage.name in earlier
            stages[stage.name] = earlier[stage.name] if is_reused else round(entry.seconds, 1)
        # When they ran this time, complete ones too.
        timeline = [asdict(entry) for entry in self.stages.values()]
        for entry_values in timeline:
            entry_values |= {key: round(entry_values[key], 1) for key in ("begin_s", "end_s")}
        record = {
            "recipe_digest": digest_of_settings(recipe),
            "max_stages": recipe.max_stages,
            "wall_s": round(self.elapsed_s, 1),
            "stages": stages,
            "timeline": timeline,
        }
        write_json(out / STAGES, record)


def load_times(out: Path) -> dict[str, float]:
    """Load the seconds of each stage that ``stages.json`` holds; empty if there is none, or it is damaged."""
    try:
        return {str(name): float(seconds) for name, seconds in json.loads((out / STAGES).read_text())["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # times of a run that is gone are no reason to fail


def load_expected(recipe: BootstrapRecipe) -> dict[str, float]:
    """Load the seconds of each stage of a measured run of the same recipe.

    Args:
        recipe: Of the run.

    Returns:
        Seconds by stage; empty where no such run was measured.
    """
    try:
        record = json.loads(MEASURED.read_text())
        # Another recipe has other sizes: its times say nothing of this one.
        if record["recipe_digest"] != digest_of_settings(recipe):
            return {}
        return {str(name): float(seconds) for name, seconds in record["stages"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # a wheel comes without measurements


def digest_of_settings(recipe: BootstrapRecipe) -> str:
    """Return a digest of what decides how long a run takes: all but where it is written."""
    return recipe.model_copy(update={"out": ""}).digest()


def format_time(seconds: float) -> str:
    """Format seconds as minutes and seconds."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
