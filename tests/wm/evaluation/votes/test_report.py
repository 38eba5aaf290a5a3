"""Figures of a study whose true means are known, and of votes made by hand."""

import json
from dataclasses import replace
from itertools import pairwise
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from tests.helpers.study_votes import SYSTEMS, items_of, make_study, vote_all, vote_on
from wm.errors import InputError
from wm.evaluation.paper.drawing import save_svg
from wm.evaluation.votes.arrays import VoteArray, build_array
from wm.evaluation.votes.charts import draw_means, draw_wins
from wm.evaluation.votes.findings import list_findings
from wm.evaluation.votes.formats import to_csv, to_markdown, to_text
from wm.evaluation.votes.judged import JudgeScores
from wm.evaluation.votes.means import compute_means
from wm.evaluation.votes.page import Chart, render_page
from wm.evaluation.votes.report import StudyFacts, build_figures
from wm.evaluation.votes.selection import select_votes

UTILITIES = (-0.4, -0.2, 0.2, 0.5)


def figures_of(study, votes, fast_s=3.0, **options):
    items = items_of(study)
    counted = select_votes(votes, [item.item_id for item in items], fast_s=fast_s)
    facts = StudyFacts(study.study_id, study.title, study.systems, items, 14)
    return build_figures(facts, counted, reference="C-FDM", num_resamples=300, fast_s=fast_s, **options)


def true_means(draws=200_000):
    """Means of the same choices by themselves, many of them."""
    values = np.array(UTILITIES) + np.random.default_rng(99).gumbel(size=(draws, 4))
    best, worst = values.argmax(axis=1), values.argmin(axis=1)
    return (np.bincount(best, minlength=4) - np.bincount(worst, minlength=4)) / draws


def test_known_means_come_back_within_their_interval():
    study = make_study(per_subset=5)
    truth = true_means()
    outside = 0
    for seed in range(6):
        table = figures_of(study, vote_all(study, 14, UTILITIES, seed=seed))["table"]
        for row in table.values():
            for system, expected in zip(SYSTEMS, truth, strict=True):
                figure = row[system]
                outside += not figure["ci_low"] <= expected <= figure["ci_high"]
                assert figure["ci_low"] < figure["mean"] < figure["ci_high"]
        # The best and the worst system are told apart with 350 votes.
        assert table["All"]["GoT"]["is_different"] and table["All"]["GoT"]["difference_high"] < 0
    # Of 144 intervals at most 1 in 20; where neither people nor items differ they are wider than need be.
    assert outside <= 2


def test_rows_sum_to_zero_and_all_is_the_mean_of_the_rows():
    study = make_study(per_subset=2)
    votes = vote_all(study, 3, UTILITIES)
    # Incomplete: subsets differ in votes, so that the mean over votes is another figure.
    figures = figures_of(study, votes[:-4])
    table = figures["table"]
    assert figures["rows"] == ["magicbrush", "ag", "something", "whatsup", "kubric", "All"]
    for row in table.values():
        assert sum(figure["mean"] for figure in row.values()) == pytest.approx(0, abs=1e-12)
    for system in SYSTEMS:
        own = [vote.score(system) for vote in votes[:-4] if vote.subset == "ag"]
        assert table["ag"][system]["mean"] == pytest.approx(np.mean(own))
        rows = [table[name][system]["mean"] for name in figures["rows"][:-1]]
        assert table["All"][system]["mean"] == pytest.approx(np.mean(rows))
    assert (table["kubric"]["SE"]["votes"], table["kubric"]["SE"]["expected"]) == (4, 6)
    assert table["All"]["C-FDM"]["p"] is None and table["All"]["C-FDM"]["difference"] is None


def test_a_subset_without_votes_leaves_the_average_empty():
    study = make_study(per_subset=2)
    table = figures_of(study, [vote for vote in vote_all(study, 3, UTILITIES) if vote.subset != "ag"])["table"]
    assert table["ag"]["SE"]["mean"] is None and table["All"]["SE"]["mean"] is None
    assert table["All"]["GoT"]["is_different"] is False and table["kubric"]["SE"]["mean"] is not None


def test_the_bootstrap_resamples_people_and_items():
    study = make_study(per_subset=4)
    votes = vote_all(study, 6, UTILITIES)
    array = build_array(votes, SYSTEMS, items_of(study))
    means = compute_means(array, array.scores, seed=5, num_resamples=400)
    # The same, a resample at a time: a vote counts as often as its participant times its item.
    rng = np.random.default_rng(5)
    people = rng.multinomial(6, np.full(6, 1 / 6), size=400)
    items = rng.multinomial(4, np.full(4, 1 / 4), size=400)
    scores_PI = array.scores[:, :4, 3]
    by_hand = [
        np.average(scores_PI, weights=np.outer(times_P, times_I))
        for times_P, times_I in zip(people, items, strict=True)
    ]
    # Four items: √(4 / 3) times Student's 3.182 for 3 degrees of freedom, as a quantile of the normal distribution.
    tail = NormalDist().cdf(-sqrt(4 / 3) * 3.182446)
    assert (means.low[0, 3], means.high[0, 3]) == pytest.approx(tuple(np.quantile(by_hand, [tail, 1 - tail])), abs=1e-6)
    # One item with votes, or one person who voted, says nothing of the next, whoever and whatever else there is.
    few = [vote for vote in votes if vote.subset != "ag" or vote.item_id == "item4"]
    few = [vote for vote in few if vote.subset != "kubric" or vote.participant == "code2"]
    partial = build_array(few, SYSTEMS, items_of(study))
    bounded = ~np.isnan(compute_means(partial, partial.scores, num_resamples=200).low).any(axis=1)
    assert bounded.tolist() == [True, False, True, True, False, False]
    alone = build_array(votes[:20], SYSTEMS, items_of(study))
    assert np.isnan(compute_means(alone, alone.scores, num_resamples=20).low).all()


def test_intervals_cover_where_items_and_people_differ():
    study = make_study(per_subset=5)
    items = items_of(study)
    rng = np.random.default_rng(1)

    def sample(num_people, num_items):
        """Scores of people with tastes of their own on items that favour one system or another."""
        shape = (num_people, num_items, 4)
        values = np.array(UTILITIES) + rng.normal(size=(1, *shape[1:])) + rng.normal(0, 0.5, (num_people, 1, 4))
        values = values + rng.gumbel(size=shape)
        scores = np.zeros(shape)
        np.put_along_axis(scores, values.argmax(axis=2)[..., None], 1, axis=2)
        np.put_along_axis(scores, values.argmin(axis=2)[..., None], -1, axis=2)
        return scores

    truth = np.mean([sample(100, 100).mean(axis=(0, 1)) for _ in range(20)], axis=0)
    subsets = tuple(dict.fromkeys(item.subset for item in items))
    covered = []
    for seed in range(40):
        scores = sample(14, 25)
        array = VoteArray(SYSTEMS, tuple("abcdefghijklmn"), items, subsets, scores, scores.argmax(axis=2).astype(float))
        means = compute_means(array, scores, seed=seed, num_resamples=300)
        covered.append((means.low <= truth) & (truth <= means.high))
    # Of 800 and 160 intervals; those of plain percentiles hold 91 and 92 %.
    assert np.mean([rows[:-1] for rows in covered]) >= 0.95 and np.mean([rows[-1] for rows in covered]) >= 0.95


def test_win_rates_and_the_judge_are_counted_by_hand():
    study = make_study()
    first, second, *_ = study.items
    votes = [
        vote_on(study, first, 0, "GoT", "SE"),
        vote_on(study, first, 1, "C-FT", "SE"),
        vote_on(study, second, 0, "GoT", "C-FDM"),
    ]
    finals = {
        "GoT": {"t0": 4.0, "t1": 9.0}, "SE": {"t0": 1.0, "t1": 5.0}, "C-FT": {"t0": 4.0, "t1": 5.0},
        "C-FDM": {"t1": 2.0},
    }  # fmt: skip
    figures = figures_of(study, votes, judge=JudgeScores("gpt-4o", finals))
    # By item: t0 GoT and C-FT .5 each, SE -1, C-FDM 0; t1 GoT 1, C-FDM -1.
    wins = figures["wins_by_item"]
    assert (wins["wins"]["GoT"]["C-FT"], wins["wins"]["C-FT"]["GoT"], wins["ties"]["GoT"]["C-FT"]) == (0.5, 0, 0.5)
    assert wins["wins"]["GoT"]["SE"] == 1 and wins["counts"]["GoT"]["SE"] == 2 and wins["wins"]["SE"]["SE"] is None
    by_vote = figures["wins_by_vote"]
    assert by_vote["wins"]["GoT"]["C-FT"] == pytest.approx(2 / 3) and by_vote["counts"]["GoT"]["C-FT"] == 3
    assert by_vote["ties"]["C-FT"]["C-FDM"] == pytest.approx(1 / 3)
    judge = figures["judge"]
    # C-FDM has no score on t0, so the judge's best of t0 is unknown; on t1 both say GoT.
    assert judge["missing"] == {"GoT": 3, "SE": 3, "C-FT": 3, "C-FDM": 4}
    assert (judge["same_best"]["share"], judge["same_best"]["n"]) == (1, 1)
    assert (judge["correlation_items"]["n"], judge["correlation_votes"]["n"]) == (7, 10)
    # Ranks of votes (.5 -1 .5 | 1 0 0 -1) and of scores (4 1 4 | 9 5 5 2), ties in the middle.
    ranks = [(5.5, 1.5, 5.5, 7, 3.5, 3.5, 1.5), (3.5, 1, 3.5, 7, 5.5, 5.5, 2)]
    assert judge["correlation_items"]["rho"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert judge["wins"]["wins"]["GoT"]["SE"] == 1 and judge["wins"]["counts"]["GoT"]["C-FDM"] == 1
    with pytest.raises(InputError, match="it scored 'x', the study has 'GoT'"):
        figures_of(study, votes, judge=JudgeScores("gpt-4o", {"x": {"t0": 1.0}}))


def test_positions_and_times_are_counted():
    study = make_study()
    votes = [vote_on(study, item, number, "GoT", "SE") for item in study.items for number in range(4)]
    figures = figures_of(study, votes, fast_s=21.5)
    # Balanced orders: whoever always likes the same system chooses all positions alike.
    assert figures["best_positions"]["counts"] == [5, 5, 5, 5] and figures["best_positions"]["p"] == 1
    first = [replace(vote, best=vote.systems[0], worst=vote.systems[-1]) for vote in votes]
    positions = figures_of(study, first)["best_positions"]
    assert positions["counts"] == [20, 0, 0, 0] and positions["p"] == pytest.approx(9.7e-13, rel=0.1)
    assert (figures["times"]["median_s"], figures["times"]["num_fast"]) == (21.5, 10)
    assert [person["fast_votes"] for person in figures["participants"]] == [5, 5, 0, 0]


def test_what_is_said_of_people_is_true_of_those_left_out():
    study = make_study(num_checks=1)
    votes = vote_all(study, 3, UTILITIES)
    check = study.items[-1]
    # P3, who joins last, is fast, incomplete, and fails the check, for which it is left out.
    own = [replace(vote, seconds=1.0) for vote in votes if vote.participant == "code1" and not vote.is_check][:2]
    votes = [vote for vote in votes if vote.participant != "code1"]
    votes += [*own, vote_on(study, check, 1, check.worst, check.best)]
    items = items_of(study)
    counted = select_votes(votes, [item.item_id for item in items], fast_s=3.0, failed_checks="leave_out")
    facts = StudyFacts(study.study_id, study.title, study.systems, items, 14)
    text = " ".join(
        list_findings(
            build_figures(facts, counted, reference="C-FDM", fast_s=3.0, failed_checks="leave_out", num_resamples=20)
        )
    )
    assert "; 0 took less than 3 s." in text
    assert "Incomplete: P3 2 of 5; their votes count, but for P3, left out for another reason." in text
    assert "2 passed, 1 failed (P3 1; their votes are left out)." in text


def test_a_dollar_in_a_name_is_no_formula_of_a_chart():
    study = replace(make_study(systems=("a$\\b$", "C-FDM")), title=r"Win $\none$ now")
    votes = [vote_on(study, item, number, "C-FDM", "a$\\b$") for item in study.items for number in (0, 1)]
    figures = figures_of(study, votes)
    for draw in (draw_means, draw_wins):
        assert save_svg(draw(figures)).startswith(b"<?xml")


def test_nothing_of_a_hostile_title_is_markup():
    figures = figures_of(make_study(), vote_all(make_study(), 2, UTILITIES, origin="simulated"))
    text = to_markdown({**figures, "title": "a | <b> `c`\n# d"})
    assert text.startswith("# a \\| \\<b\\> \\`c\\` \\# d (simulated votes)\n")
    # Every table row has as many cells as its head.
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for first, second in pairwise(tables):
        if second.startswith("| ---"):
            assert first.replace("\\|", "").count("|") == second.count("|")
    assert to_text(figures).splitlines()[0] == "Which is <best>? (simulated votes)"
    lines = to_csv(figures).splitlines()
    assert len(lines) == 1 + 6 * 4 and lines[1].startswith("simulated,magicbrush,GoT,C-FDM,")
    page = render_page(figures, [Chart("votes", "x", b"<svg/>")] * 3)
    assert page.count("simulated votes") == 2 and "Which is &lt;best&gt;?" in page and "<script" not in page
    # JSON has no NaN, which other programs do not read.
    json.dumps(figures, allow_nan=False)
