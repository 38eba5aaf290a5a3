"""Check prefixes before and numbers after a pass."""

from collections.abc import Sequence

from torch import Tensor

from wm.errors import InputError


def check_prefixes(prefixes: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raise :class:`InputError` for an empty prefix, or an id outside the vocabulary.

    Args:
        prefixes: Vocabulary ids.
        vocabulary: Number of vocabulary ids.
    """
    for row, ids in enumerate(prefixes):
        if not len(ids):
            raise InputError(f"prefix {row} is empty; expected one vocabulary id or more")
        # An id beyond the embeddings would end a GPU's process.
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            bad = next(token for token in ids if not 0 <= token < vocabulary)
            raise InputError(f"prefix {row}: id {bad} is outside the vocabulary [0, {vocabulary})")


def check_finite(values: Tensor, name: str, vlm: object) -> None:
    """Raise :class:`InputError` if a model gives non-finite numbers, from which codes would be sampled in silence.

    Args:
        values: What the model has computed; reading it waits for the device.
        name: Plural noun for ``values`` in the message.
        vlm: The model, named in the message.
    """
    # Codes sampled from NaN would look like any others.
    if not bool(values.isfinite().all()):
        model = " ".join(str(getattr(vlm, part, "")) for part in ("family", "base_id")).strip() or type(vlm).__name__
        raise InputError(
            f"model {model}: {name} are nan or infinite; expected numbers. Its weights are damaged, or {values.dtype} "
            "does not reach as far as they do (bfloat16 and float32 do)"
        )
