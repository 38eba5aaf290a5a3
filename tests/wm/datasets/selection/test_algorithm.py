"""Stratified top-K selection against the paper's loop, written out."""

import itertools
import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.datasets.selection.algorithm import (
    SELECTION_SCHEMA,
    candidates,
    choose,
    make_plan,
    quotas,
    select_top_k,
)
from wm.datasets.selection.rows import Criteria, id_words, keep_best, score_rows
from wm.datasets.selection.tally import merge_tallies, tally
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


def in_parts(tables: list[pa.Table], k: int, criteria: Criteria, rows_per_part: int) -> pa.Table:
    """As over files: counts of each, their sum, candidates of each, then part by part."""
    plan = make_plan(merge_tallies(tally(score_rows(one, criteria), criteria) for one in tables), k, rows_per_part)
    shared = [candidates(score_rows(one, criteria), plan, criteria) for one in tables]
    parts = []
    for part in range(plan.num_parts):
        rows = pa.concat_tables([rows.filter(pa.array(where == part)) for rows, where in shared])
        parts.append(choose(rows, plan, part))
        assert parts[-1]["order"].to_pylist() == sorted(parts[-1]["order"].to_pylist())
    return pa.concat_tables(parts).sort_by("order")


@settings(max_examples=300, deadline=None)
@given(
    ROWS,
    st.integers(1, 50),
    st.sampled_from(["mean", "sum"]),
    st.sampled_from([None, -1.0, -2.5]),
    st.tuples(st.lists(st.integers(0, 40), max_size=4), st.integers(1, 12)),
)
def test_selection_in_parts_is_the_papers_loop(
    rows: list[Row], k: int, score: Any, min_score: float | None, division: tuple[list[int], int]
) -> None:
    cuts, rows_per_part = division
    bounds = [0, *sorted(cuts), len(rows)]
    tables = [table(rows[start:stop]) for start, stop in itertools.pairwise(bounds)]
    chosen = in_parts(tables, k, Criteria(score, min_score), rows_per_part)
    assert selected(chosen) == algorithm_1(rows, k, score, min_score)
    assert chosen["order"].to_pylist() == list(range(chosen.num_rows))


SCORES = st.one_of(
    st.floats(-30, 0, width=64), st.sampled_from([0.0, -0.0, -1e-300, -1e9, float("-inf"), 2.5, -1.0, -1.0001])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), SCORES), min_size=1, max_size=60), st.integers(1, 70))
def test_any_scores_even_odd_ones(pairs: list[tuple[str, float]], k: int) -> None:
    rows = [row(f"{number:024x}", label, score) for number, (label, score) in enumerate(pairs)]
    wanted = algorithm_1(rows, k, "sum")
    for rows_per_part in (1, 7, 1000):
        chosen = in_parts([table(rows[::2]), table(rows[1::2])], k, Criteria("sum"), rows_per_part)
        assert selected(chosen) == wanted


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 60))
def test_quotas_are_those_of_taking_turns(available: list[int], k: int) -> None:
    left, taken = Counter(dict(enumerate(available))), Counter[int]()
    while sum(taken.values()) < min(k, sum(available)):
        for label in range(len(available)):
            if left[label] and sum(taken.values()) < k:
                left[label] -= 1
                taken[label] += 1
    assert quotas(np.array(available, np.int64), k).tolist() == [taken[label] for label in range(len(available))]


def test_only_rows_that_may_be_chosen_travel() -> None:
    rng = np.random.default_rng(0)
    rows = [row(f"{n:024x}", f"c{n % 7}", float(score)) for n, score in enumerate(rng.normal(-2, 0.5, 7000))]
    criteria = Criteria("sum")
    plan = make_plan(tally(score_rows(table(rows), criteria), criteria), 70)
    remaining, parts = candidates(score_rows(table(rows), criteria), plan, criteria)
    assert 70 <= remaining.num_rows == plan.num_candidates < 250 and set(parts.tolist()) == {0}
    classes = Criteria("sum", classes=frozenset({"c3"}))
    assert set(score_rows(table(rows), classes)["class_label"].to_pylist()) == {"c3"}


def test_a_large_class_is_cut_into_parts() -> None:
    rng = np.random.default_rng(1)
    rows = [row(f"{n:024x}", "only", float(score)) for n, score in enumerate(rng.normal(-2, 0.5, 5000))]
    plan = make_plan(tally(score_rows(table(rows), Criteria("sum")), Criteria("sum")), 4000, 500)
    assert 6 <= plan.num_parts <= 9
    chosen = in_parts([table(rows)], 4000, Criteria("sum"), 500)
    assert chosen.equals(select_top_k(table(rows), 4000, "sum").replace_schema_metadata(None))


@given(st.lists(st.text(max_size=20), min_size=1, max_size=20), st.integers(0, 3))
def test_ids_as_numbers_sort_as_text_does(ids: list[str], start: int) -> None:
    column = pa.chunked_array([pa.array(ids, pa.string())]).slice(min(start, len(ids) - 1))
    words = id_words(column)
    by_words = np.lexsort(words[::-1])
    texts = column.to_pylist()
    assert [texts[index] for index in by_words] == sorted(texts)


def test_of_equal_keys_the_best_stays() -> None:
    rows = [("b", 1, 1, -1.0), ("a", 1, 1, -1.0), ("c", 1, 2, -5.0), ("d", 1, 2, -4.0), ("e", 2, 1, -9.0)]
    columns = list(zip(*rows, strict=True))
    data = pa.table(
        {
            "triplet_id": columns[0],
            "class_label": ["x"] * 5,
            "action_logprob": columns[3],
            "action_tokens": pa.array([1] * 5, pa.int32()),
            "source_hash": pa.array(columns[1], pa.uint64()),
            "target_hash": pa.array(columns[2], pa.uint64()),
        }
    )
    remaining = keep_best(data, ["source_hash", "target_hash"], Criteria("sum"))
    assert sorted(remaining["triplet_id"].to_pylist()) == ["a", "d", "e"]
    assert keep_best(data.slice(0, 0), ["source_hash"], Criteria("sum")).num_rows == 0


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
    with pytest.raises(InputError, match="occurs twice"):
        select_top_k(table([good, good]), 1)
    with pytest.raises(InputError, match="k = 0; expected at least 1"):
        select_top_k(table([good]), 0)
