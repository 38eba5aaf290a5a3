"""Prepare the rows that selection works on: score them, filter them, and compare their ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wm.errors import InputError

Score = Literal["mean", "sum"]
Ints: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]
Words: TypeAlias = npt.NDArray[np.uint64]
Booleans: TypeAlias = npt.NDArray[np.bool_]

COLUMNS = ["triplet_id", "class_label", "action_logprob", "action_tokens"]
"""What selection reads of a triplet."""


@dataclass(frozen=True)
class Criteria:
    """What makes a row a candidate. ``classes``: labels that may be chosen (None = all). ``min_changed_codes``: image
    codes that must differ between source and target (0 = any number); a row without codes is not held to it."""

    score: Score = "mean"
    min_score: float | None = None
    classes: frozenset[str] | None = None
    min_changed_codes: int = 0


def score_rows(table: pa.Table, criteria: Criteria) -> pa.Table:
    """Score the rows whose class the criteria take, those below ``min_score`` or ``min_changed_codes`` included.

    Args:
        table: Rows with :data:`COLUMNS`, or all but the ids.
        criteria: Classes and score.

    Returns:
        Columns ``class_label`` (null becomes ""), ``score`` (nats) and, if present, ``triplet_id`` and
        ``changed_codes``.

    Raises:
        InputError: Names the first row without a likelihood.
    """
    table = filter_classes(table, criteria)
    scores = _compute_scores(table, criteria)
    names = [name for name in ("triplet_id", "class_label", "changed_codes") if name in table.column_names]
    return table.select(names).append_column("score", pa.array(scores))


def filter_classes(table: pa.Table, criteria: Criteria) -> pa.Table:
    """Return the rows whose ``class_label`` the criteria take, as text: null becomes "".

    Args:
        table: Has ``class_label``.
        criteria: Classes that may be chosen.
    """
    labels = pc.fill_null(table.column("class_label").cast(pa.string()), "")
    table = table.set_column(table.schema.get_field_index("class_label"), "class_label", labels)
    if criteria.classes is None:
        return table
    return table.filter(pc.is_in(labels, pa.array(sorted(criteria.classes), pa.string())))


def has_changed(table: pa.Table, criteria: Criteria) -> Booleans:
    """Mark the rows in which enough image codes change, and those of which that is not known.

    Args:
        table: Has ``changed_codes``, or not where nothing is known of them.
        criteria: How many must change.
    """
    if "changed_codes" not in table.column_names:
        return np.ones(table.num_rows, bool)
    changed = pc.fill_null(table.column("changed_codes"), criteria.min_changed_codes)
    return np.asarray(changed.to_numpy() >= criteria.min_changed_codes)


def keep_best(table: pa.Table, keys: Sequence[str], criteria: Criteria) -> pa.Table:
    """Keep the best of the rows that are equal in all integer columns ``keys``; of equal scores, the lower id.

    Args:
        table: Rows with :data:`COLUMNS` and the keys.
        keys: Integer columns.
        criteria: How rows are scored.
    """
    if table.num_rows == 0:
        return table
    # Equal keys become neighbours, the best first.
    values = [table.column(name).to_numpy() for name in keys]
    order = np.lexsort((*id_words(table.column("triplet_id"))[::-1], -_compute_scores(table, criteria), *values))
    is_first = np.ones(len(order), bool)
    is_first[1:] = np.logical_or.reduce([column[order][1:] != column[order][:-1] for column in values])
    return table.take(pa.array(order[is_first]))


def _compute_scores(table: pa.Table, criteria: Criteria) -> Floats:
    scores = _to_doubles(table.column("action_logprob"))
    if criteria.score == "mean":
        tokens = _to_doubles(table.column("action_tokens"))
        scores = scores / np.where(tokens > 0, tokens, np.nan)
    if np.isnan(scores).any():
        row = int(np.flatnonzero(np.isnan(scores))[0])
        name = table.column("triplet_id")[row].as_py() if "triplet_id" in table.column_names else f"in row {row}"
        raise InputError(
            f"triplet {name} has no action_logprob or no action_tokens; select works on annotated triplets"
        )
    return scores + 0.0  # -0.0 and 0.0 are one score


def id_words(ids: pa.ChunkedArray) -> list[Words]:
    """Convert ids to columns of 8 bytes each, which sort as the texts do: comparing numbers is many times faster."""
    texts = pc.cast(ids, pa.string()).combine_chunks()
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    if len(texts) == 0:
        return [np.zeros(0, np.uint64)]
    _, offset_bytes, data_bytes = texts.buffers()
    offsets = np.frombuffer(offset_bytes, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(data_bytes or b"", np.uint8)[offsets[0] : offsets[-1]]
    lengths = np.diff(offsets)
    # Padded to words of 8 bytes, compared big-endian: numbers then sort as the texts do.
    width = max(8, -(-int(lengths.max()) // 8) * 8)
    if int(lengths.min()) == width:
        return list(data.view(">u8").reshape(len(texts), -1).T.astype(np.uint64))
    bytes_NW = np.zeros((len(texts), width), np.uint8)
    bytes_NW[np.arange(width) < lengths[:, None]] = data
    words = list(bytes_NW.view(">u8").T.astype(np.uint64))
    return [*words, lengths.astype(np.uint64)]  # a text and the same with zero bytes at its end differ


def check_unique(ids: pa.ChunkedArray, words: list[Words]) -> None:
    """Raise :class:`InputError` if an id occurs twice.

    Args:
        ids: Ids of the rows.
        words: The same as numbers, see :func:`id_words`.
    """
    # Sorted, equal ids are neighbours: no set of a million texts is held.
    by_id = np.lexsort(words)
    same: Any = np.logical_and.reduce([word[by_id][1:] == word[by_id][:-1] for word in words])
    if same.any():
        raise InputError(
            f"triplet {ids[int(by_id[int(np.argmax(same))])]} occurs twice; select needs a data set without repeats"
        )


def _to_doubles(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
