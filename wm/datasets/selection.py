"""Stratified top-K sampling with action-class uniformity: Algorithm 1 of the paper (appendix E)."""

from typing import Literal

import numpy as np
import pyarrow as pa

from wm.errors import InputError

Score = Literal["mean", "sum"]

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

COLUMNS = ["triplet_id", "class_label", "action_logprob", "action_tokens"]


def select_top_k(triplets: pa.Table, k: int, score: Score = "mean", min_score: float | None = None) -> pa.Table:
    """Choose ``k`` rows: classes take turns, each giving its best remaining row, until k are taken or none is left.

    ``triplets`` has :data:`COLUMNS`. ``score``: "mean" log-likelihood per action token, or its "sum", in nats.
    Where Algorithm 1 leaves ties open: classes take their turns in the order of their names, and of equal scores the
    lower triplet id goes first. So the result depends on the set of rows alone, not on their order.
    ``min_score`` leaves out rows below it. Returns a table of :data:`SELECTION_SCHEMA` in order of selection.

    Closed form of the loop: with r the rank of a row in its class, the loop takes rows in the order of (r, class).
    """
    if k < 1:
        raise InputError(f"k = {k}; expected at least 1")
    columns = {name: triplets.column(name).to_pandas() for name in COLUMNS}
    scores = columns["action_logprob"].to_numpy(dtype=np.float64)
    if score == "mean":
        tokens = columns["action_tokens"].to_numpy(dtype=np.float64)
        scores = scores / np.where(tokens > 0, tokens, np.nan)
    ids = columns["triplet_id"].to_numpy(dtype=str)
    labels = columns["class_label"].fillna("").to_numpy(dtype=str)
    if np.isnan(scores).any():
        raise InputError(
            f"triplet {ids[np.isnan(scores)][0]} has no action_logprob or no action_tokens; "
            "select works on annotated triplets"
        )
    if len(np.unique(ids)) != len(ids):
        raise InputError("a triplet_id stands twice; select needs a clean data set")
    wanted = np.ones(len(ids), bool) if min_score is None else scores >= min_score
    ids, labels, scores = ids[wanted], labels[wanted], scores[wanted]
    _, class_number = np.unique(labels, return_inverse=True)
    by_class = np.lexsort((ids, -scores, class_number))
    starts = np.searchsorted(class_number[by_class], np.arange(class_number.max(initial=-1) + 1))
    rank = np.empty(len(ids), np.int64)
    rank[by_class] = np.arange(len(ids)) - starts[class_number[by_class]]
    chosen = np.lexsort((class_number, rank))[:k]
    return pa.table(
        [ids[chosen], labels[chosen], scores[chosen], rank[chosen], np.arange(len(chosen))],
        schema=SELECTION_SCHEMA,
    )
