"""Select by stratified top-K sampling with action-class uniformity: Algorithm 1 of the paper (appendix E), in pieces.

The loop takes rows in the order of (rank in class, class). So which rows it takes follows from counts alone: class c
gives its best ``quota[c]`` rows (:func:`quotas`). That makes an exact selection possible over files of which only one
is ever in memory:

1. :func:`wm.datasets.selection.tally.tally` counts each file's rows by class and score bin, and ``merge_tallies``
   beside it adds the counts up;
2. :func:`make_plan` turns counts into quotas, the worst bin that each class still needs, and parts: ranges of
   (class, bin) with few enough rows to be sorted in memory;
3. :func:`candidates` keeps a file's rows that may be chosen, with the part of each;
4. :func:`choose` sorts one part and gives the chosen rows their rank and their turn, as the loop over everything would.

:func:`select_top_k` does all of it for one table. Nothing here knows of files or of other processes.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.selection.rows import Criteria, Ints, Score, check_unique, id_words, score_rows
from wm.datasets.selection.tally import SLOT_BITS, Tally, encode_keys, mark_candidates, tally
from wm.errors import InputError

SELECTION_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("class_label", pa.string()),
        ("score", pa.float64()),
        ("rank_in_class", pa.int64()),
        ("order", pa.int64()),
    ]
)
"""What was chosen and why: ``score`` is what ranked it, ``rank_in_class`` its place among its class (0 = best),
``order`` the turn at which the round robin took it."""

CANDIDATE_SCHEMA = pa.schema([("triplet_id", pa.string()), ("class_code", pa.int32()), ("score", pa.float64())])
"""Rows on their way to :func:`choose`; ``class_code`` indexes :attr:`Plan.labels`."""


@dataclass(frozen=True)
class Plan:
    """How many rows each class gives, and how the candidates are shared out over parts.

    ``last_key_C``: the worst slot a class needs (-1 = none). ``first_key_P``: where each part begins; a part holds
    complete slots. ``earlier_P``: candidates that the class of a part's first slot has in earlier parts.
    """

    labels: list[str]
    available_C: Ints  # noqa: N815
    quota_C: Ints  # noqa: N815
    last_key_C: Ints  # noqa: N815
    first_key_P: Ints  # noqa: N815
    earlier_P: Ints  # noqa: N815
    num_candidates: int
    _codes: dict[str, int] = field(repr=False)

    @property
    def num_parts(self) -> int:
        """Parts, at least one."""
        return len(self.first_key_P)

    def codes_of(self, labels: pa.ChunkedArray) -> Ints:
        """Return the class numbers of a column of labels without nulls; -1 for a class that the plan does not know."""
        encoded = pc.dictionary_encode(labels.combine_chunks())
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        codes_D = np.array([self._codes.get(label, -1) for label in encoded.dictionary.to_pylist()], np.int64)
        return codes_D[encoded.indices.to_numpy(zero_copy_only=False)] if len(labels) else np.zeros(0, np.int64)


def quotas(available_C: Ints, k: int) -> Ints:
    """Compute how many rows the loop takes of each class, in the order of names.

    R complete rounds, R as large as k allows, and one more row of the first classes that still have one.

    Args:
        available_C: int64, rows of each class that meet the criteria.
        k: Rows to choose.

    Returns:
        int64, rows of each class, at most ``k`` in all.
    """
    low, high = 0, int(available_C.max(initial=0))
    while low < high:
        # Rows taken grow with the number of rounds, so that bisection finds the last one that fits.
        middle = (low + high + 1) // 2
        low, high = (middle, high) if np.minimum(available_C, middle).sum() <= k else (low, middle - 1)
    quota_C = np.minimum(available_C, low)
    quota_C[np.flatnonzero(available_C > low)[: k - int(quota_C.sum())]] += 1
    return quota_C


def make_plan(counts: Tally, k: int, rows_per_part: int = 1_000_000) -> Plan:
    """Compute the quotas of the classes, and parts of about ``rows_per_part`` candidates (a slot is never divided).

    Args:
        counts: Of all rows.
        k: Rows to choose.
        rows_per_part: Candidates of a part, about.
    """
    if k < 1:
        raise InputError(f"k = {k}; expected at least 1")
    available_C = counts.available_C
    quota_C = quotas(available_C, k)
    class_S = counts.key_S >> SLOT_BITS
    before_S = np.cumsum(counts.count_S) - counts.count_S
    first_of_class_C = np.searchsorted(class_S, np.arange(len(counts.labels)))
    if len(class_S):
        before_S = before_S - before_S[first_of_class_C[class_S]]
    # A slot is needed if fewer better rows of its class come before it than the quota.
    needed_S = before_S < quota_C[class_S]
    last_key_C = np.full(len(counts.labels), -1, np.int64)
    last_key_C[class_S[needed_S]] = counts.key_S[needed_S]  # keys ascend: the last assignment counts
    key_S, count_S = counts.key_S[needed_S], counts.count_S[needed_S]
    # Parts of few enough rows to be sorted in memory.
    part_S = (np.cumsum(count_S) - count_S) // rows_per_part
    starts_P = np.flatnonzero(np.diff(part_S, prepend=-1)) if len(part_S) else np.zeros(0, np.int64)
    first_key_P = key_S[starts_P] if len(starts_P) else np.zeros(1, np.int64)
    earlier_P = before_S[needed_S][starts_P] if len(starts_P) else np.zeros(1, np.int64)
    code_of = {label: number for number, label in enumerate(counts.labels)}
    return Plan(counts.labels, available_C, quota_C, last_key_C, first_key_P, earlier_P, int(count_S.sum()), code_of)


def candidates(rows: pa.Table, plan: Plan, criteria: Criteria) -> tuple[pa.Table, Ints]:
    """Return the rows of :func:`score_rows` that may be chosen, as :data:`CANDIDATE_SCHEMA`, and the part of each.

    Args:
        rows: Of :func:`score_rows`.
        plan: Quotas and parts.
        criteria: What makes a row a candidate.
    """
    scores = rows.column("score").to_numpy()
    codes = plan.codes_of(rows.column("class_label"))
    # Rows that no quota can reach are dropped before anything is sorted.
    keys = encode_keys(codes, scores)
    last_keys = np.append(plan.last_key_C, -1)[codes]  # of an unknown class, whose code is -1: none
    chosen_rows = np.flatnonzero(mark_candidates(rows, criteria) & (codes >= 0) & (keys <= last_keys))
    ids = rows.column("triplet_id").cast(pa.string()).take(pa.array(chosen_rows))
    columns = [ids.combine_chunks(), pa.array(codes[chosen_rows], pa.int32()), pa.array(scores[chosen_rows])]
    parts = np.searchsorted(plan.first_key_P, keys[chosen_rows], side="right") - 1
    return pa.Table.from_arrays(columns, schema=CANDIDATE_SCHEMA), parts.astype(np.int64)


def choose(part_rows: pa.Table, plan: Plan, part: int) -> pa.Table:
    """Choose among all candidates of one part; return :data:`SELECTION_SCHEMA` in the order of the rows' turns.

    Args:
        part_rows: All candidates of the part.
        plan: Quotas and parts.
        part: Its number.

    Raises:
        InputError: An id occurs twice among them.
    """
    if part_rows.num_rows == 0:
        return SELECTION_SCHEMA.empty_table()
    words = id_words(part_rows.column("triplet_id"))
    check_unique(part_rows.column("triplet_id"), words)
    codes = part_rows.column("class_code").to_numpy().astype(np.int64)
    scores = part_rows.column("score").to_numpy()
    # 1. Best first within each class, of equal scores the lower id.
    by_class = np.lexsort((*words[::-1], -scores, codes))
    codes = codes[by_class]
    # Only the first class of a part may have rows in earlier parts: its ranks start later.
    first_class = int(plan.first_key_P[part]) >> SLOT_BITS
    ranks = np.arange(len(codes)) - np.searchsorted(codes, codes) + plan.earlier_P[part] * (codes == first_class)
    # 2. What the quota takes.
    within = ranks < plan.quota_C[codes]
    codes, ranks, by_class = codes[within], ranks[within], by_class[within]
    # 3. In the order in which the paper's loop takes them.
    turns = _compute_turns(codes, ranks, first_class, plan.available_C)
    in_turn = np.argsort(turns)
    rows = pa.array(by_class[in_turn])
    labels = pa.array([plan.labels[code] for code in codes[in_turn]], pa.string())
    columns = [part_rows.column("triplet_id").take(rows), labels, part_rows.column("score").take(rows)]
    return pa.table([*columns, ranks[in_turn], turns[in_turn]], schema=SELECTION_SCHEMA)


def _compute_turns(codes: Ints, ranks: Ints, first_class: int, available_C: Ints) -> Ints:
    """Compute the turn of each chosen row of a part: rows of earlier rounds, and classes before its own in its round.

    A part holds a range of classes of which only the first may have begun before it. So the classes before a row's own
    in round r are: those before the range that have more than r rows; the first, if it has; and rows of this part.
    """
    # 1. Rows that all classes gave in the rounds before.
    sizes = np.sort(available_C)
    below = np.concatenate([[0], np.cumsum(sizes)])
    small = np.searchsorted(sizes, ranks, side="right")  # classes with r rows or fewer
    turns = below[small] + (len(sizes) - small) * ranks
    # 2. In its own round: the classes before the range, and the first of the range.
    before = np.sort(available_C[:first_class])
    turns += len(before) - np.searchsorted(before, ranks, side="right")
    later = codes > first_class
    turns[later] += ranks[later] < available_C[first_class]
    # 3. Rows of this part, whose classes have begun in it.
    by_round = np.flatnonzero(later)[np.lexsort((codes[later], ranks[later]))]
    in_round = ranks[by_round]
    turns[by_round] += np.arange(len(by_round)) - np.searchsorted(in_round, in_round)
    return np.asarray(turns, np.int64)


def select_top_k(triplets: pa.Table, k: int, score: Score = "mean", min_score: float | None = None) -> pa.Table:
    """Choose ``k`` rows: classes take turns, each giving its best remaining row, until k are taken or none is left.

    Where Algorithm 1 leaves ties open: classes take their turns in the order of their names, and of equal scores the
    lower triplet id goes first. So the result depends on the set of rows alone, not on their order.

    Args:
        triplets: Table with :data:`wm.datasets.selection.rows.COLUMNS`.
        k: Rows to choose.
        score: "mean" log-likelihood per action token, or its "sum", in nats.
        min_score: Rows below it are left out.

    Returns:
        A table of :data:`SELECTION_SCHEMA` in order of selection.
    """
    criteria = Criteria(score, min_score)
    rows = score_rows(triplets, criteria)
    check_unique(rows.column("triplet_id"), id_words(rows.column("triplet_id")))
    # One part: the table is in memory anyway.
    plan = make_plan(tally(rows, criteria), k, rows_per_part=max(1, rows.num_rows))
    return choose(candidates(rows, plan, criteria)[0], plan, 0)
