"""Name the columns that separate subsets of a bench, and choose some of its rows. Imports no model and no torch."""

from typing import Literal, TypeAlias

SubsetColumn: TypeAlias = Literal["dataset", "class_label", "split"]


def spread_rows(total: int, limit: int | None) -> list[int]:
    """Choose rows of a set, which is often sorted by subset.

    Args:
        total: Rows of the set.
        limit: How many to choose; None: all.

    Returns:
        Row numbers, evenly spaced.
    """
    if limit is None or limit >= total:
        return list(range(total))
    return [int(row * total / limit) for row in range(limit)]
