"""Print the plan that ``plan`` has made. Knows nothing of how it is made."""

from collections.abc import Mapping
from typing import Any

from wm.datasets.videos.passed_over import describe

_UNITS = {"scan": "frames", "fetch": "images", "encode": "images", "idm": "pairs", "write": "triplets"}


def print_plan(plan: Mapping[str, Any]) -> None:
    """Print work and rate of each stage, what the cluster needs for it, and what one more machine would change."""
    work = plan["work"]
    print(
        f"plan: {work['videos']:,} videos, {_format_hours(work['length_s'] / 3600)} of video → "
        f"{work['triplets']:,} triplets, {plan['storage_gb']:,.3g} GB"
    )
    for line in describe(plan["passed_over"]):
        print(f"  {line}")
    for note in plan["notes"]:
        print(f"  ({note})")
    print(f"  {'stage':<8}{'work':>16} {'':<9}{'rate /s':>12}{'time of one':>15}")
    for stage, unit in _UNITS.items():
        amount = f"{work['frames' if stage == 'scan' else unit]:,}"
        span = _format_hours(plan["stage_hours"][stage])
        print(f"  {stage:<8}{amount:>16} {unit:<9}{plan['rates'][stage]:>12,.1f}{span:>15}")
    for pool, units in plan["capacity"].items():
        unit_name = {"cpu": "cores", "gpu": "GPUs"}[pool]
        needed_hours, busy = plan["needed_hours"][pool], plan["busy"][pool]
        print(f"  {pool}: {_format_hours(needed_hours)} of one; {units:g} {unit_name}, {busy:.0%} busy")
    print(
        f"  takes {_format_hours(plan['hours'])}; {plan['bottleneck']} is the bottleneck; {_format_cost(plan['cost'])}"
    )
    for name, larger in plan["one_more"].items():
        print(f"  one more {name}: {_format_hours(larger['hours'])}, {_format_cost(larger['cost'])}")


def _format_hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _format_cost(cost: float | None) -> str:
    return "cost not known (a node has no price_per_hour)" if cost is None else f"costs {cost:,.2f}"
