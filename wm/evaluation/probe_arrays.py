"""Keep the preference probe's log-likelihoods item by item in the file of its unit, and read them back."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wm.errors import InputError
from wm.evaluation.probe import NEGATIVES, Likelihoods, Pairs, ProbeScores

Arrays: TypeAlias = dict[str, npt.NDArray[np.generic]]


def to_arrays(scores: ProbeScores) -> Arrays:
    """Convert scores to named arrays.

    Args:
        scores: Of B items.

    Returns:
        ``reference`` and ``tokens.reference``, float64 (B,): sums of log-probabilities in nats and numbers of tokens;
        ``negative.KIND`` and ``tokens.KIND``, float64 (P,): the same of the negatives; ``rows.KIND``, int64 (P,): the
        numbers of their items.
    """
    arrays: Arrays = {"reference": scores.reference.sums, "tokens.reference": scores.reference.tokens}
    for kind, (rows, negative) in scores.negatives.items():
        arrays |= {f"negative.{kind}": negative.sums, f"tokens.{kind}": negative.tokens, f"rows.{kind}": rows}
    # Scorers may return narrower floats: a difference of two sums of thousands of nats would lose its last digits.
    return {name: value.astype(np.int64 if name.startswith("rows.") else np.float64) for name, value in arrays.items()}


def from_arrays(arrays: Mapping[str, npt.NDArray[np.generic]]) -> ProbeScores | None:
    """Convert the arrays of :func:`to_arrays` back; None for a file of an earlier version, which holds shares alone."""
    # An evaluation of an earlier version: its figures stand, its items are not known.
    if "reference" not in arrays:
        return None
    floats = {name: value.astype(np.float64) for name, value in arrays.items() if not name.startswith("rows.")}
    return ProbeScores(
        Likelihoods(floats["reference"], floats["tokens.reference"]),
        {
            kind: Pairs(
                arrays[f"rows.{kind}"].astype(np.int64),
                Likelihoods(floats[f"negative.{kind}"], floats[f"tokens.{kind}"]),
            )
            for kind in NEGATIVES
            if f"rows.{kind}" in arrays
        },
    )


def check_finite(scores: ProbeScores, ids: Sequence[str], path: str) -> None:
    """Check that every log-likelihood is a finite number.

    Args:
        scores: Of the triplets and their negatives.
        ids: Of the triplets.
        path: Of the model, for errors.

    Raises:
        InputError: It names the first triplet without one.
    """
    of_all = np.arange(len(ids))
    for rows, side in [(of_all, scores.reference), *scores.negatives.values()]:
        bad = rows[~np.isfinite(side.sums)]
        if len(bad):
            raise InputError(
                f"{path} gives triplet {ids[int(bad[0])]} and {len(bad) - 1:,} others no finite likelihood: its "
                "weights are damaged, or resources.dtype has too small a range (float32 has not)"
            )
