"""Order clips so that any number of the first ones is spread evenly over the classes and over the list."""

from collections.abc import Iterator, Sequence

import numpy as np


def spread_rows(labels: Sequence[str]) -> Iterator[int]:
    """Order the rows of a listing: one of each class in turns, within a class and among the classes evenly spread.

    Args:
        labels: Class of each row.

    Yields:
        Every row number once.
    """
    # 1. Rows by class; stable, so that the order of the list stays within a class.
    names, codes = np.unique(np.asarray(labels, dtype=object).astype(str), return_inverse=True)
    order = np.argsort(codes, kind="stable")
    rows_by_class = np.split(order, np.searchsorted(codes[order], np.arange(1, len(names))))
    # 2. Rounds over the classes, until the largest has none left.
    turns = [iter(halving_order(len(rows))) for rows in rows_by_class]
    waiting = list(halving_order(len(names))) if len(labels) else []
    while waiting:
        left = []
        for number in waiting:
            # A class that has none left drops out; the others keep their turns.
            position = next(turns[number], None)
            if position is not None:
                yield int(rows_by_class[number][position])
                left.append(number)
        waiting = left


def halving_order(count: int) -> Iterator[int]:
    """Order 0 to ``count`` - 1 so that any number of the first ones is evenly spread: 0, the middle, the quarters.

    Args:
        count: How many.

    Yields:
        Each number once.
    """
    bits = max(0, count - 1).bit_length()
    # The bits of a counter in reverse; what is beyond the end is left out.
    for counter in range(2**bits):
        number = int(f"{counter:0{bits}b}"[::-1], 2) if bits else 0
        if number < count:
            yield number
