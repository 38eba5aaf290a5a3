"""What is asked of prefixes before and of numbers after a pass."""

from collections.abc import Sequence

from torch import Tensor

from wm.errors import InputError


def need_prefixes(prefixes: Sequence[Sequence[int]], vocabulary: int) -> None:
    """:class:`InputError` for an empty prefix, or an id outside the vocabulary."""
    for row, ids in enumerate(prefixes):
        if not len(ids):
            raise InputError(f"prefix {row} is empty; expected one vocabulary id or more")
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            bad = next(token for token in ids if not 0 <= token < vocabulary)
            raise InputError(f"prefix {row}: id {bad} is outside the vocabulary [0, {vocabulary})")


def need_finite(values: Tensor, what: str, vlm: object) -> None:
    """:class:`InputError` if a model gives nan or infinity, from which codes would be drawn in silence all the same.
    The device is waited for."""
    if not bool(values.isfinite().all()):
        name = " ".join(str(getattr(vlm, part, "")) for part in ("family", "base_id")).strip() or type(vlm).__name__
        raise InputError(
            f"model {name}: {what} are nan or infinite; expected numbers. Its weights are damaged, or {values.dtype} "
            "does not reach as far as they do (bfloat16 and float32 do)"
        )
