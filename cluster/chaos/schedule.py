"""Plan kills from a seed, and carry them out at their times. Not known here: which processes there are."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.chaos.recipe import ChaosRecipe, Kind, Phase

_RETRY_S = 0.5

Strike = Callable[[Kind, float], str | None]
"""Kills one of a kind, chosen by a number of [0, 1); returns what it was, None where there is none at the moment."""


@dataclass(frozen=True)
class PlannedKill:
    """What is to be killed when."""

    at_s: float
    """Seconds after the phase begins."""
    kind: Kind
    draw: float
    """Number of [0, 1) that chooses among those there are then."""


@dataclass(frozen=True)
class Kill:
    """What was killed when."""

    at_s: float
    kind: Kind
    victim: str
    progress: dict[str, float] = field(default_factory=dict)
    """How far the work had come at that moment."""


def plan_kills(recipe: ChaosRecipe, phase: Phase) -> list[PlannedKill]:
    """Plan the kills of a phase.

    Args:
        recipe: Seed, gaps, kinds.
        phase: Which; each has numbers of its own.

    Returns:
        Kills in the order of their times.
    """
    # Of the names, not of their order: leaving a phase out does not change the others.
    generator = random.Random(f"{recipe.seed}/{phase}")
    kinds = recipe.kinds_of(phase)
    kills: list[PlannedKill] = []
    at_s = generator.uniform(recipe.min_gap_s, recipe.max_gap_s)
    while at_s < recipe.phase_s:
        # Each kind comes up in each round of as many kills as there are kinds: a short run meets all of them.
        if len(kills) % len(kinds) == 0:
            generator.shuffle(kinds)
        kills.append(PlannedKill(round(at_s, 3), kinds[len(kills) % len(kinds)], generator.random()))
        at_s += generator.uniform(recipe.min_gap_s, recipe.max_gap_s)
    return kills


@dataclass
class Disturber:
    """A thread that carries a plan out, from the start of the block to its end."""

    plan: Sequence[PlannedKill]
    strike: Strike
    seconds: float
    """Length of the phase: the last kill is tried again until then."""
    look: Callable[[], dict[str, float]] = dict
    """Says how far the work has come; called before each kill."""
    kills: list[Kill] = field(default_factory=list)
    missed: list[PlannedKill] = field(default_factory=list)
    """Kills for which there was nothing."""
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)
        self._begin_s = 0.0

    def __enter__(self) -> "Disturber":
        self._begin_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # What it is doing comes to its end: a node that was killed is replaced.
        self._stop.set()
        self._thread.join()

    @property
    def elapsed_s(self) -> float:
        """Return the seconds since the block began."""
        return time.monotonic() - self._begin_s

    @property
    def is_over(self) -> bool:
        """Return whether nothing more is killed."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait for the end of the plan, so many seconds at most."""
        self._thread.join(seconds)

    def _run(self) -> None:
        for number, planned in enumerate(self.plan):
            if self._stop.wait(max(0.0, planned.at_s - self.elapsed_s)):
                self.missed += self.plan[number:]
                return
            try:
                # Until the next one is due: what is missing longer must not delay it.
                until_s = self.plan[number + 1].at_s if number + 1 < len(self.plan) else self.seconds
                victim, progress = self._strike_once(planned, until_s)
            except Exception as error:  # what the trial cannot do is reported, and the trial continues
                self.errors.append(f"{planned.kind}: {error!r:.200}")
                continue
            if victim is None:
                self.missed.append(planned)
            else:
                self.kills.append(Kill(round(self.elapsed_s, 1), planned.kind, victim, progress))
        # The phase lasts as long as it was said, though the last kill comes earlier.
        self._stop.wait(max(0.0, self.seconds - self.elapsed_s))

    def _strike_once(self, planned: PlannedKill, until_s: float) -> tuple[str | None, dict[str, float]]:
        """Kill what was planned, as soon as there is one; returns what it was, and how far the work had come before."""
        while True:
            progress = self.look()
            # Between two attempts of a command there is no driver and no worker.
            if (victim := self.strike(planned.kind, planned.draw)) is not None:
                return victim, progress
            if self.elapsed_s + _RETRY_S > until_s or self._stop.wait(_RETRY_S):
                return None, progress
