"""Means of subsets and items, counted and weighted by hand."""

import pytest

from wm.evaluation.aurora_bench import footnote, macro_mean, order_subsets, subset_title
from wm.evaluation.score_tables import build_score_rows

BENCH = {"a": "ag", "b": "ag", "c": "kubric", "d": "kubric"}


def value(triplet_id, l1, *, run=0, seed=0, chosen_at=(), candidates=(0,), decoding="sampled"):
    return {
        "triplet_id": triplet_id, "system": "S", "run": run, "sampling_seed": seed, "decoding": decoding,
        "candidates": list(candidates), "chosen_at": list(chosen_at), "l1": l1,
    }  # fmt: skip


def test_images_count_as_often_as_they_are_chosen():
    values = [
        value("a", 0.2, chosen_at=[1, 1, 1, 4], candidates=(0, 1, 3)),
        value("a", 0.6, chosen_at=[1], candidates=(2,)),
        value("c", 0.5, chosen_at=[1, 1, 1, 1, 4], candidates=(0, 1, 2, 3)),
        value("c", 0.9, decoding="greedy"),
    ]
    rows = {(row["choice"], row["k"]): row for row in build_score_rows(values, BENCH)}
    assert rows["idm", 1]["metrics"]["l1"]["by_subset"] == pytest.approx({"ag": 0.3, "kubric": 0.5})
    assert rows["idm", 4]["metrics"]["l1"]["by_subset"] == pytest.approx({"ag": 0.2, "kubric": 0.5})
    assert rows["idm", 4]["metrics"]["l1"]["macro_mean"] == pytest.approx(0.35)
    greedy = rows["greedy", 1]
    assert (greedy["num_items"], greedy["num_missing"], greedy["missing_by_subset"]) == (1, 3, {"ag": 2, "kubric": 1})
    assert greedy["metrics"]["l1"]["macro_mean"] is None and greedy["metrics"]["l1"]["micro_mean"] == 0.9
    assert "dino" not in greedy["metrics"]


def test_seeds_are_averaged_within_runs_and_runs_alike():
    values = [
        value("a", x, run=run, seed=seed, chosen_at=[1]) for run, seed, x in ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.6))
    ]
    values += [value(name, 0.0, run=0, chosen_at=[1]) for name in "bcd"]
    (row,) = build_score_rows(values, BENCH)
    figure = row["metrics"]["l1"]
    assert figure["by_subset"] == pytest.approx({"ag": 0.2, "kubric": 0.0})
    assert (figure["micro_mean"], figure["macro_mean"]) == pytest.approx((0.1, 0.1))
    assert (figure["num_values"], figure["over"]) == (2, "training seeds") and figure["std"] == pytest.approx(
        abs(0.6 - 0.05) / 2**0.5
    )
    assert figure["ci_low"] < 0.1 < figure["ci_high"]


def test_subsets_have_the_papers_order_and_names():
    names = ["kubric", "zebra", "whatsup", "ag", "something", "magicbrush", "apple"]
    assert order_subsets(names) == ["magicbrush", "ag", "something", "whatsup", "kubric", "apple", "zebra"]
    assert (subset_title("ag"), subset_title("zebra")) == ("AG", "zebra")
    assert macro_mean({"ag": 1.0, "kubric": None}) is None and macro_mean({}) is None
    assert macro_mean({"ag": 1.0, "kubric": 0.0}) == 0.5
    # Table 2's averages (paper): C-FDM.
    assert macro_mean(dict(zip("abcde", [3.92, 3.64, 2.92, 0.54, 7.32], strict=True))) == pytest.approx(3.668)
    paper = [name for name in names if name not in ("zebra", "apple")]
    assert "214831 and 213316" in footnote(248, paper) and footnote(247, paper) == ""
    assert footnote(200, ["ag"]) == ""
