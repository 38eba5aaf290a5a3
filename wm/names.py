"""Write names that people chose, such as labels of systems, into messages: quoted, and with the one that was meant."""

import difflib
from collections.abc import Iterable

_CUTOFF = 0.6


def quote_names(names: Iterable[str], max_names: int = 20) -> str:
    """Write names in quotes, so that one with blanks or commas is seen as one.

    Args:
        names: The names.
        max_names: How many are written out; the others are counted.

    Returns:
        Such as ``'C-FDM', 'GoT'``; ``none`` where there is none.
    """
    # Results may hold hundreds of systems: a message stays one that is read.
    all_names = list(names)
    text = ", ".join(f"{name!r:.100}" for name in all_names[:max_names])
    more = f" and {len(all_names) - max_names:,} more" if len(all_names) > max_names else ""
    return f"{text}{more}" or "none"


def find_nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Find the name that a misspelt one stands for, whatever its case.

    Args:
        name: As it was given.
        candidates: Those that exist.

    Returns:
        The nearest one, or None where none is near.
    """
    # Labels are names, which people remember without their case.
    by_folded = {other.casefold(): other for other in candidates}
    nearest = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_CUTOFF)
    return by_folded[nearest[0]] if nearest else None


def hint_nearest(name: str, candidates: Iterable[str]) -> str:
    """Write ``; did you mean 'C-FDM'?``, or nothing where no name is near.

    Args:
        name: As it was given.
        candidates: Those that exist.
    """
    nearest = find_nearest(name, candidates)
    return f"; did you mean {nearest!r:.100}?" if nearest is not None else ""
