"""Stratified top-K selection against the paper's loop, written out."""

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.datasets.selection import SELECTION_SCHEMA, select_top_k
from wm.errors import InputError

Row = dict[str, Any]


def table(rows: list[Row]) -> pa.Table:
    schema = pa.schema(
        [
            ("triplet_id", pa.string()),
            ("class_label", pa.string()),
            ("action_logprob", pa.float64()),
            ("action_tokens", pa.int32()),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def row(name: str, label: str | None, logprob: float | None, tokens: int | None = 1) -> Row:
    return {"triplet_id": name, "class_label": label, "action_logprob": logprob, "action_tokens": tokens}


def algorithm_1(rows: list[Row], k: int, score: str, min_score: float | None = None) -> list[tuple[str, str, int]]:
    """Appendix E line by line; ties as :func:`select_top_k` defines them. Gives (id, class, rank in class)."""

    def score_of(one: Row) -> float:
        return one["action_logprob"] / one["action_tokens"] if score == "mean" else one["action_logprob"]

    left = [one for one in rows if min_score is None or score_of(one) >= min_score]
    left.sort(key=lambda one: (-score_of(one), one["triplet_id"]))  # line 1
    classes = sorted({one["class_label"] or "" for one in left})
    taken: list[tuple[str, str, int]] = []  # line 2
    counts = dict.fromkeys(classes, 0)
    while len(taken) < k and left:  # line 3; the paper assumes that K items are there
        for label in classes:  # line 4
            best = next((one for one in left if (one["class_label"] or "") == label), None)  # line 5
            if best is not None:  # lines 6 to 9
                taken.append((best["triplet_id"], label, counts[label]))
                left.remove(best)
                counts[label] += 1
            if len(taken) == k:  # lines 11 to 13
                break
    return taken


def selected(chosen: pa.Table) -> list[tuple[str, str, int]]:
    return [(one["triplet_id"], one["class_label"], one["rank_in_class"]) for one in chosen.to_pylist()]


ROWS = st.lists(
    st.builds(
        row,
        st.uuids().map(str),
        st.sampled_from(["jump", "run", "walk", "Ärger", "", None]),
        st.sampled_from([-0.5, -1.0, -1.5, -2.0, -3.0, -6.0]),  # few values: many ties
        st.integers(1, 4),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda one: one["triplet_id"],
)


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.integers(1, 50),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([None, -1.0, -2.5]),
    st.randoms(use_true_random=False),
)
def test_selection_is_the_papers_loop_in_any_order_of_rows(
    rows: list[Row], k: int, score: Any, min_score: float | None, shuffler: random.Random
) -> None:
    chosen = select_top_k(table(rows), k, score, min_score)
    assert selected(chosen) == algorithm_1(rows, k, score, min_score)
    shuffled = list(rows)
    shuffler.shuffle(shuffled)
    assert select_top_k(table(shuffled), k, score, min_score).equals(chosen)


def test_a_small_case_by_hand() -> None:
    rows = [
        row("a1", "a", -1.0, 2),
        row("a2", "a", -2.0, 2),
        row("a3", "a", -0.9, 1),
        row("b1", "b", -9.0, 1),
        row("n1", None, -3.0, 3),
    ]
    chosen = select_top_k(table(rows), 4)
    assert chosen.schema.equals(SELECTION_SCHEMA)
    assert chosen.to_pylist() == [
        {"triplet_id": "n1", "class_label": "", "score": -1.0, "rank_in_class": 0, "order": 0},
        {"triplet_id": "a1", "class_label": "a", "score": -0.5, "rank_in_class": 0, "order": 1},
        {"triplet_id": "b1", "class_label": "b", "score": -9.0, "rank_in_class": 0, "order": 2},
        {"triplet_id": "a3", "class_label": "a", "score": -0.9, "rank_in_class": 1, "order": 3},
    ]
    assert [one[0] for one in selected(select_top_k(table(rows), 9, "sum"))] == ["n1", "a3", "b1", "a1", "a2"]
    assert select_top_k(table(rows), 9, "mean", -0.4).num_rows == 0


def test_an_empty_table_gives_an_empty_selection() -> None:
    chosen = select_top_k(table([]), 3)
    assert chosen.num_rows == 0 and chosen.schema.equals(SELECTION_SCHEMA)


def test_what_cannot_be_selected_from() -> None:
    good = row("a", "x", -1.0)
    for bad in (row("h1", "x", None, None), row("h1", "x", -1.0, None), row("h1", "x", -1.0, 0)):
        with pytest.raises(InputError, match="triplet h1 has no action_logprob or no action_tokens"):
            select_top_k(table([good, bad]), 1)
    with pytest.raises(InputError, match="triplet h2 has no action_logprob"):
        select_top_k(table([good, row("h2", "x", None)]), 1, "sum")
    with pytest.raises(InputError, match="stands twice"):
        select_top_k(table([good, good]), 1)
    with pytest.raises(InputError, match="k = 0; expected at least 1"):
        select_top_k(table([good]), 0)
