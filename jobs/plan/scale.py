"""Compute what a plan asks of the driver and the bucket. Knows nothing of how it is printed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from jobs.plan.recipe import PlanScale
from wm.datasets.scale import (
    MEASURED,
    SHARDS_A_WAVE,
    Habit,
    Limit,
    Load,
    Store,
    UnitCosts,
    list_limits,
    memory_by_part,
    simulate,
)
from wm.errors import InputError

NEAR = 0.1
"""Share of a limit from which on the parts are shown."""


def load_unit_costs(file: str | None) -> UnitCosts:
    """Load measured costs of files and shards.

    Args:
        file: JSON of ``wm benchmark scale``; None: those that are measured already.

    Raises:
        InputError: It is no such file.
    """
    if not file:
        return MEASURED
    # Whatever is wrong with the file is one line.
    path = Path(file)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"scale.unit_costs = {file!r:.200} cannot be read: {error}") from error
    unit_costs = record.get("unit_costs") if isinstance(record, dict) else None
    costs: dict[str, float] = {}
    for name in MEASURED:
        # True is an integer to Python.
        value = unit_costs.get(name) if isinstance(unit_costs, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
            raise InputError(
                f"scale.unit_costs = {file!r:.200} has unit_costs.{name} = {value!r:.40}; wm benchmark scale writes "
                "such files"
            )
        costs[name] = float(value)
    return cast(UnitCosts, costs)


def build_store(recipe: PlanScale) -> Store:
    """Build the bucket's limits and prices from a recipe."""
    return Store(
        list_request_s=recipe.list_request_s,
        request_s=recipe.request_s,
        price_per_1000_writes=recipe.price_per_1000_writes,
        price_per_1000_reads=recipe.price_per_1000_reads,
        writes_per_s=recipe.writes_per_s,
        reads_per_s=recipe.reads_per_s,
    )


def simulate_run(recipe: PlanScale, clips: int) -> tuple[Habit, list[Load]]:
    """Simulate the driver and the bucket of a run.

    Args:
        recipe: How clips lie, and what was measured.
        clips: Videos in all.

    Returns:
        The run's numbers, and the load of each part.

    Raises:
        InputError: The measured costs cannot be read.
    """
    # Waves are as long as the annotation makes them.
    habit = Habit(clips, recipe.videos_per_shard, recipe.files_per_folder, recipe.bytes_per_video, recipe.in_bucket)
    return habit, simulate(habit, load_unit_costs(recipe.unit_costs), build_store(recipe), SHARDS_A_WAVE)


def to_json(recipe: PlanScale, habit: Habit, loads: list[Load], hours: float) -> Mapping[str, Any]:
    """Convert a simulation to JSON values.

    Args:
        recipe: Limits and prices.
        habit: The run.
        loads: Of its parts.
        hours: Of the nodes' work.

    Returns:
        Parts, limits with what breaks first in front, and the price of all requests.
    """
    store = build_store(recipe)
    # What a part needs beside what earlier ones hold: that is what the head node must have.
    memory = memory_by_part(loads)
    limits: list[Limit] = list_limits(
        habit, loads, store, hours=hours, driver_memory_mib=1024 * recipe.driver_memory_gib
    )
    return {
        "shards": habit.shards,
        "parts": [
            {
                "name": load.name,
                "driver_s": round(load.seconds, 3),
                "driver_mib": round(memory[load.name], 1),
                "writes": load.writes,
                "reads": load.reads,
                "price": round(load.price(store), 4),
                "is_beside": load.is_beside,
            }
            for load in loads
        ],
        "limits": [
            {"name": limit.name, "share": round(limit.share, 6), "breaks_at": limit.breaks_at, "remedy": limit.remedy}
            for limit in limits
        ],
        "price": round(sum(load.price(store) for load in loads), 4),
    }
