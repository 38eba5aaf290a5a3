"""Print the plan that ``plan`` has made. Knows nothing of how it is made."""

from collections.abc import Mapping
from typing import Any

from jobs.plan.scale import NEAR
from wm.datasets.videos.passed_over import describe

_UNITS = {
    "scan": "frames",
    "flow": "frames",
    "fetch": "images",
    "encode": "images",
    "idm": "pairs",
    "write": "triplets",
}


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
    # 1. Work and time of each stage.
    print(f"  {'stage':<8}{'work':>16} {'':<9}{'rate /s':>12}{'time of one':>15}")
    for stage, unit in _UNITS.items():
        if stage not in plan["stage_hours"]:
            continue  # flow, where cores measure motion
        amount = f"{work[unit]:,}"
        span = _format_hours(plan["stage_hours"][stage])
        print(f"  {stage:<8}{amount:>16} {unit:<9}{plan['rates'][stage]:>12,.1f}{span:>15}")
    # 2. The cluster.
    for pool, units in plan["capacity"].items():
        unit_name = {"cpu": "cores", "gpu": "GPUs"}[pool]
        needed_hours, busy = plan["needed_hours"][pool], plan["busy"][pool]
        print(f"  {pool}: {_format_hours(needed_hours)} of one; {units:g} {unit_name}, {busy:.0%} busy")
    print(
        f"  takes {_format_hours(plan['hours'])}; {plan['bottleneck']} is the bottleneck; {_format_cost(plan['cost'])}"
    )
    for name, larger in plan["one_more"].items():
        print(f"  one more {name}: {_format_hours(larger['hours'])}, {_format_cost(larger['cost'])}")
    # 3. Other sizes, and what no node can take over.
    print("  the same mix with more or fewer nodes, the driver and the bucket counted in:")
    print(f"  {'nodes':>8}{'takes':>14}  {'bottleneck':<14}{'costs':>14}")
    for row in plan["sizes"]:
        cost = "–" if row["cost"] is None else f"{row['cost']:,.2f}"
        print(f"  {row['nodes']:>8,}{_format_hours(row['hours']):>14}  {row['bottleneck']:<14}{cost:>14}")
    _print_scale(plan["scale"])


def _print_scale(scale: Mapping[str, Any]) -> None:
    """Print what the driver and the bucket have to do, and what breaks first."""
    nearest = scale["limits"][0]
    if nearest["share"] < NEAR:
        print(f"  driver and bucket are far from any limit; nearest: {nearest['name']}, {nearest['share']:.1%} of it")
        return
    print(f"  {scale['shards']:,} shards ask of driver and bucket:")
    print(f"  {'':<26}{'driver':>12}{'memory':>12}{'writes':>15}{'reads':>15}{'price':>11}")
    for part in scale["parts"]:
        memory = f"{part['driver_mib'] / 1024:,.2f} GiB" if part["driver_s"] else "–"
        span = _format_hours(part["driver_s"] / 3600) if part["driver_s"] else "–"
        requests = f"{part['writes']:>15,}{part['reads']:>15,}{part['price']:>11,.2f}"
        print(f"  {part['name']:<26}{span:>12}{memory:>12}{requests}")
    broken = [limit for limit in scale["limits"] if limit["share"] >= NEAR]
    for number, limit in enumerate(broken):
        verdict = "breaks" if limit["share"] >= 1 else "is near its limit"
        first = " first" if number == 0 and limit["share"] >= 1 else ""
        at = f" (reached at {limit['breaks_at']:,} videos)" if limit["breaks_at"] else ""
        print(f"  {verdict}{first}: {limit['name']}: {limit['share']:,.0%} of it{at}; {limit['remedy']}")


def _format_hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.2f} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.1f} s"


def _format_cost(cost: float | None) -> str:
    return "cost not known (a node has no price_per_hour)" if cost is None else f"costs {cost:,.2f}"
