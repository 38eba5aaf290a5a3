"""Name what repeated judgements of an item differ in. Knows nothing of scores."""

from collections.abc import Collection
from typing import TypeAlias

Repetition: TypeAlias = tuple[int, int, int]
"""Training seed, sampling seed and repeat of a judgement; of a system that others trained its own numbering."""


def name_repetitions(keys: Collection[Repetition]) -> str:
    """Name what repeated judgements of an item differ in.

    Args:
        keys: Of the judgements.

    Returns:
        ``training seeds``, ``sampling seeds`` or ``repeats``; where several of them differ, their combinations.
    """
    names = ("training seeds", "sampling seeds", "repeats")
    varying = [name for name, values in zip(names, zip(*keys, strict=True), strict=False) if len(set(values)) > 1]
    # A single judgement has no spread, and this name is never shown.
    if not varying:
        return "sampling seeds"
    return varying[0] if len(varying) == 1 else f"combinations of {' and '.join(varying)}"
