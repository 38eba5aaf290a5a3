"""Name the subsets of AURORA-Bench as the paper's tables do, in their order, and the rows that its release lacks."""

from collections.abc import Iterable, Mapping

SUBSET_NAMES = {
    "magicbrush": "MagicBrush",
    "ag": "AG",
    "something": "Something",
    "whatsup": "WhatsUp",
    "kubric": "Kubric",
}
"""``class_label`` of a row → its subset's name in the paper's tables, in their order."""

MISSING_TARGETS = ("data/something/images/214831/last.jpg", "data/something/images/213316/last.jpg")
"""Targets that the release names and does not hold: of 250 rows 248 are complete."""
NUM_COMPLETE = 248


def order_subsets(names: Iterable[str]) -> list[str]:
    """Sort names of subsets: those of the paper in its order, then the others by name."""
    order = list(SUBSET_NAMES)
    return sorted(set(names), key=lambda name: (order.index(name) if name in order else len(order), name))


def subset_title(name: str) -> str:
    """Return the name that tables show for a subset."""
    return SUBSET_NAMES.get(name, name or "(no name)")


def macro_mean(by_subset: Mapping[str, float | None]) -> float | None:
    """Average the means of subsets, each counting alike, as the paper's tables do.

    Args:
        by_subset: Mean of each subset of the bench; None where it has no data.

    Returns:
        The average; None if a subset has no data: over fewer subsets it would be another figure.
    """
    means = [value for value in by_subset.values() if value is not None]
    return sum(means) / len(means) if means and len(means) == len(by_subset) else None


def footnote(num_items: int, subsets: Iterable[str]) -> str:
    """Write the note below a table of AURORA-Bench that names the missing rows.

    Args:
        num_items: Triplets of the bench.
        subsets: Names of their subsets.

    Returns:
        The note; empty for other benches.
    """
    if set(subsets) != set(SUBSET_NAMES) or num_items != NUM_COMPLETE:
        return ""
    # The folder of the image is the id of its video.
    rows = " and ".join(path.split("/")[-2] for path in MISSING_TARGETS)
    return f"{NUM_COMPLETE} of AURORA-Bench's 250 pairs: the release lacks the targets of something {rows}"
