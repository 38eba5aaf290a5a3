"""Accuracies of answers, and when a published number stands beside."""

from math import sqrt
from statistics import NormalDist

import pytest

from wm.evaluation.questions.figures import compute_figures, wilson_share
from wm.evaluation.questions.tables import build_tables


def answer(number, *, right, group="left", num_options=4, failure=None):
    return {
        "question_id": str(number), "group": group, "source": "", "num_options": num_options, "failure": failure,
        "is_right": {"published": right, "one_option": right and number % 2 == 0},
        "is_parsed": {"published": number < 5, "one_option": right},
        "is_ranked_sum": number == 0, "is_ranked_mean": number < 2,
    }  # fmt: skip


ROWS = [
    *[answer(number, right=number < 3) for number in range(4)],
    *[answer(number, right=False, group="right", num_options=2) for number in range(4, 8)],
    answer(8, right=True, failure="too long"),
]


def test_figures_by_hand():
    figures = compute_figures(ROWS, name="m", label="C-FT", run=1, reading="published")
    assert (figures["num_questions"], figures["num_failed"], figures["failures"]) == (9, 1, {"too long": 1})
    assert figures["accuracy"]["share"] == 3 / 8 and figures["accuracy"]["n"] == 8
    assert figures["unparsed"]["share"] == 3 / 8
    assert {name: share["share"] for name, share in figures["readings"].items()} == {
        "published": 3 / 8,
        "one_option": 2 / 8,
    }
    assert (figures["ranking_sum"]["share"], figures["ranking_mean"]["share"]) == (1 / 8, 2 / 8)
    assert figures["chance"] == (4 / 4 + 4 / 2) / 8
    assert {name: (row["accuracy"]["share"], row["chance"]) for name, row in figures["by_group"].items()} == {
        "left": (3 / 4, 1 / 4), "right": (0, 1 / 2),
    }  # fmt: skip
    assert figures["by_source"] == {}
    other = compute_figures(ROWS, name="m", label="C-FT", run=1, reading="one_option")
    assert other["accuracy"]["share"] == 2 / 8 and other["unparsed"]["share"] == 5 / 8


def test_no_answer_is_no_figure():
    figures = compute_figures(ROWS[-1:], name="m", label="C-FT", run=0, reading="published")
    assert figures["accuracy"] is figures["chance"] is None and figures["num_failed"] == 1


def test_intervals_are_wilsons():
    for right, count in ((0, 5), (3, 8), (281, 1076), (40, 40)):
        share = wilson_share(right, count)
        # The roots of |p - right / count| = z sqrt(p (1 - p) / count), by the quadratic formula.
        z, observed = NormalDist().inv_cdf(0.975), right / count
        a, b, c = 1 + z**2 / count, -(2 * observed + z**2 / count), observed**2
        root = sqrt(b**2 - 4 * a * c)
        assert (share["ci_low"], share["ci_high"]) == pytest.approx(((-b - root) / (2 * a), (-b + root) / (2 * a)))


def tables(num_questions, name="m", label="C-FT", benchmark="spatialmqa", rows=ROWS[:8], **changes):
    row = compute_figures(rows, name=name, label=label, run=0, reading="published")
    settings = {"num_rejects": 0, "has_limit": False, "toy_models": []} | changes
    return build_tables(
        [row], benchmark=benchmark, reading="published", style="words", prompt="{question}",
        num_questions=num_questions, **settings,
    )  # fmt: skip


def test_published_numbers_stand_beside_all_questions_alone():
    assert tables(1076)["rows"][0]["published"] == 25.8 and tables(1076)["published_source"] == "ACL, Table 2"
    assert tables(3640, label="L-FDM", benchmark="embspatial")["rows"][0]["published"] == 33.8
    for other in (
        tables(1075),
        tables(1076, label="mine"),
        tables(1076, num_rejects=1),
        tables(1076, has_limit=True),
        tables(1076, toy_models=["m"]),
        tables(1076, rows=ROWS),
        tables(1076, benchmark="folder"),
    ):
        assert "published" not in other["rows"][0] and other["published_source"] == ""
