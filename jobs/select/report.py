"""Print what ``select`` would choose and has chosen. Knows nothing of how it is chosen."""

from collections.abc import Mapping
from typing import Any

MAX_CLASSES = 20
"""Classes that are printed; the others are counted."""


def print_counts(counts: Mapping[str, Any], where: str) -> None:
    """Print how many triplets were chosen, in all and by class.

    Args:
        counts: Counts of ``run.json``.
        where: State and folder of the selection, after the number.
    """
    print(f"select: {counts['chosen']:,} of {counts['triplets']:,} triplets {where}")
    if counts.get("unchanged_codes"):
        print(f"  {counts['unchanged_codes']:,} left out: too few of their image codes change (min_changed_codes)")
    if counts.get("without_codes"):
        print(f"  {counts['without_codes']:,} have no image codes, so whether they change is not known")
    by_class = counts["by_class"]
    for label, counts_of_class in list(by_class.items())[:MAX_CLASSES]:
        line = f"  {label or '(no class)':<24} {counts_of_class['chosen']:>7,} of {counts_of_class['triplets']:>7,}"
        if counts_of_class["lowest"] is not None:
            line += f"   score {counts_of_class['lowest']:.3f} to {counts_of_class['highest']:.3f}"
        print(line)
    if len(by_class) > MAX_CLASSES:
        print(f"  … and {len(by_class) - MAX_CLASSES:,} more classes")
