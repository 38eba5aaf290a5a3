"""Count rows by class and score bin: which rows are chosen follows from these counts alone."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.selection.rows import Booleans, Criteria, Floats, Ints, has_changed

_BIN_BITS = 5
"""Score bins an octave: 2**5, each 2 to 3 per cent wide: enough to cut one large class into parts, few enough that
their counts stay small (a class with scores from -8 to -0.05 has 230)."""
SLOT_BITS = 12 + _BIN_BITS
"""Bits of a bin number: sign and exponent of a double, and the first bits of its fraction."""


@dataclass(frozen=True)
class Tally:
    """Rows counted by class and score bin, over S slots (class, bin) that hold any.

    ``labels``: class names, sorted. ``seen_C``: rows of each class before ``min_score``. ``key_S``: class number and
    bin in one number that ascends with (class, score from best to worst). ``count_S``: rows in the slot.
    """

    labels: list[str]
    seen_C: Ints  # noqa: N815 - the shape is part of the name
    key_S: Ints  # noqa: N815
    count_S: Ints  # noqa: N815

    @property
    def available_C(self) -> Ints:  # noqa: N802
        """Rows of each class that meet the criteria."""
        sums = np.bincount(self.key_S >> SLOT_BITS, weights=self.count_S, minlength=len(self.labels))
        return np.rint(sums).astype(np.int64)


def tally(rows: pa.Table, criteria: Criteria) -> Tally:
    """Count the rows of a table that :func:`wm.datasets.selection.rows.score_rows` gave.

    Args:
        rows: Of the same.
        criteria: What makes a row a candidate.
    """
    # Class numbers sort as the names do; only the dictionary's few names are sorted for it.
    encoded = pc.dictionary_encode(rows.column("class_label").combine_chunks())
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names = [str(label) for label in encoded.dictionary.to_pylist()]
    labels = sorted(names)
    code_of = {label: number for number, label in enumerate(labels)}
    code_D = np.array([code_of[name] for name in names], np.int64)
    codes = code_D[encoded.indices.to_numpy(zero_copy_only=False)] if rows.num_rows else np.zeros(0, np.int64)
    scores = rows.column("score").to_numpy()
    seen_C = np.bincount(codes, minlength=len(labels)).astype(np.int64)
    is_candidate = mark_candidates(rows, criteria)
    key_S, count_S = np.unique(encode_keys(codes[is_candidate], scores[is_candidate]), return_counts=True)
    return Tally(labels, seen_C, key_S, count_S.astype(np.int64))


def merge_tallies(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up. Memory: some tens of bytes a slot, whatever the number of rows."""
    waiting: list[Tally] = []
    num_waiting = 0
    for counts in tallies:
        waiting.append(counts)
        num_waiting += len(counts.key_S) + len(counts.labels)
        # Merging rarely keeps the cost near one pass over all slots, whatever the number of files.
        if num_waiting > max(2**20, 2 * (len(waiting[0].key_S) + len(waiting[0].labels))):
            waiting, num_waiting = [_merge_all(waiting)], 0
    return _merge_all(waiting)


def _merge_all(tallies: Collection[Tally]) -> Tally:
    labels = sorted({label for counts in tallies for label in counts.labels})
    code_of = {label: number for number, label in enumerate(labels)}
    seen_C = np.zeros(len(labels), np.int64)
    # Class numbers differ from tally to tally: each is translated before it is added.
    keys = [np.zeros(0, np.int64)]
    for counts in tallies:
        code_D = np.array([code_of[label] for label in counts.labels], np.int64)
        seen_C[code_D] += counts.seen_C
        if len(counts.key_S):
            keys.append(code_D[counts.key_S >> SLOT_BITS] << SLOT_BITS | counts.key_S & (1 << SLOT_BITS) - 1)
    key_S, slot = np.unique(np.concatenate(keys), return_inverse=True)
    count_S = np.zeros(len(key_S), np.int64)
    np.add.at(count_S, slot, np.concatenate([np.zeros(0, np.int64), *(counts.count_S for counts in tallies)]))
    return Tally(labels, seen_C, key_S, count_S)


def mark_candidates(rows: pa.Table, criteria: Criteria) -> Booleans:
    """Mark the rows that may be chosen.

    Args:
        rows: Of :func:`wm.datasets.selection.rows.score_rows`.
        criteria: What makes a row a candidate.
    """
    has_score = True if criteria.min_score is None else rows.column("score").to_numpy() >= criteria.min_score
    return has_changed(rows, criteria) & has_score


def encode_keys(codes: Ints, scores: Floats) -> Ints:
    """Encode class and score bin in one number.

    The bits of a double, those of negative ones inverted, sort as the numbers do; the first of them are the bin.

    Args:
        codes: Class numbers.
        scores: Of the same rows.
    """
    bits = scores.view(np.int64)
    ascending = (bits ^ ((bits >> 63) & np.int64(2**63 - 1))) >> (64 - SLOT_BITS)  # from -2**16 to 2**16 - 1
    worst_last = (1 << SLOT_BITS - 1) - 1 - ascending
    return (codes << SLOT_BITS) | worst_last
