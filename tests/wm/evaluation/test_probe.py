import numpy as np
import pytest
import torch

from wm.errors import InputError
from wm.evaluation.metrics.stats import build_figure, mean_interval, pearson, sample_std
from wm.evaluation.probe import (
    NEGATIVES,
    Likelihoods,
    compare_all,
    pick_others,
    preferences_by_pair,
    probe,
    score_probe,
)
from wm.evaluation.probe_arrays import from_arrays, to_arrays
from wm.evaluation.tables import Collected, probe_rows
from wm.records import row_seeds

ROWS, TOKENS = 12, 4


def _world(seed=0):
    rng = np.random.default_rng(seed)
    source = torch.from_numpy(rng.integers(0, 9, (ROWS, TOKENS)))
    target = torch.from_numpy(rng.integers(0, 9, (ROWS, TOKENS)))
    actions = [f"move {i % 5}" + " now" * (i % 3) for i in range(ROWS)]
    subsets = ["a" if i < 7 else "b" for i in range(ROWS)]
    return source, target, actions, subsets


def _pair_score(source, target, action):
    return -float((2 * source + 3 * target).abs().sum()) - 0.7 * len(action) * (1 + int(source[0]) % 2)


class Recorder:
    """A scorer that remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, source_BN, target_BN, actions):
        triples = list(zip(source_BN, target_BN, actions, strict=True))
        self.calls.append(triples)
        sums = np.array([_pair_score(*triple) for triple in triples])
        return Likelihoods(sums, np.array([float(len(action.split())) for action in actions]))


def test_against_brute_force():
    source, target, actions, subsets = _world()
    recorder = Recorder()
    opposites = [f"undo {text}" for text in actions]
    result = probe(recorder, source, target, actions, subsets, counterfactuals=opposites, seed=3)
    assert list(result) == list(NEGATIVES)
    for kind, triples in zip(NEGATIVES, recorder.calls[1:], strict=True):
        wins, wins_mean, first, second = 0.0, 0.0, [], []
        for row, (s, t, a) in enumerate(triples):
            reference, negative = _pair_score(source[row], target[row], actions[row]), _pair_score(s, t, a)
            wins += (reference > negative) + 0.5 * (reference == negative)
            r_mean, n_mean = reference / len(actions[row].split()), negative / len(a.split())
            wins_mean += (r_mean > n_mean) + 0.5 * (r_mean == n_mean)
            first.append(reference)
            second.append(negative)
            if kind == "random_action":
                assert (s.tolist(), t.tolist()) == (source[row].tolist(), target[row].tolist())
                assert a != actions[row] and a in {actions[i] for i in range(ROWS) if subsets[i] == subsets[row]}
            elif kind == "random_observation":
                assert (s.tolist(), a) == (source[row].tolist(), actions[row])
                assert t.tolist() != target[row].tolist()
                assert t.tolist() in [target[i].tolist() for i in range(ROWS) if subsets[i] == subsets[row]]
            elif kind == "copy":
                assert s.tolist() == t.tolist() == source[row].tolist() and a == actions[row]
            elif kind == "counterfactual_action":
                assert (s.tolist(), t.tolist()) == (source[row].tolist(), target[row].tolist())
                assert a == opposites[row]
            else:
                assert (s.tolist(), t.tolist(), a) == (
                    target[row].tolist(),
                    source[row].tolist(),
                    actions[row],
                )
        assert result[kind].share == pytest.approx(wins / ROWS)
        assert result[kind].share_per_token == pytest.approx(wins_mean / ROWS)
        assert result[kind].pearson_r == pytest.approx(np.corrcoef(first, second)[0, 1])
        assert result[kind].pairs == ROWS


def test_ties_count_half():
    source, target, actions, subsets = _world()

    def indifferent(source_BN, target_BN, texts):
        return Likelihoods(np.full(len(texts), -3.0), np.ones(len(texts)))

    result = probe(indifferent, source, target, actions, subsets)
    assert {(one.share, one.ties, one.pairs) for one in result.values()} == {(0.5, ROWS, ROWS)}


def test_a_target_that_is_its_source_has_no_copy_and_no_inverse():
    """Such a negative would be the truth itself."""
    source, target, actions, subsets = _world()
    target[[1, 4]] = source[[1, 4]]
    scores = score_probe(Recorder(), source, target, actions, subsets)
    rows = [row for row in range(ROWS) if row not in (1, 4)]
    assert scores.negatives["copy"].rows.tolist() == scores.negatives["inverse"].rows.tolist() == rows
    assert len(scores.negatives["random_action"].rows) == ROWS
    still = probe(Recorder(), source, source.clone(), actions, subsets)
    assert set(still) == {"random_action", "random_observation"}


def test_same_seed_same_negatives_other_seed_others():
    values, subsets, ids = list(range(40)), ["x"] * 40, [f"t{row}" for row in range(40)]
    first, again, other = (pick_others(values, subsets, ids, seed=s) for s in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()


def test_picks_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for size, kinds in ((1, 1), (40, 3), (60, 60), (50, 1)):
        values, subsets = rng.integers(0, kinds, size).tolist(), rng.choice(["a", "b"], size).tolist()
        ids = [f"t{number}" for number in rng.permutation(size)]
        picks = pick_others(values, subsets, ids, seed=7)
        for row, row_seed in enumerate(row_seeds(7, ids)):
            others = [r for r in range(size) if subsets[r] == subsets[row] and values[r] != values[row]]
            others.sort(key=lambda r: ids[r])
            assert picks[row] == (others[row_seed % len(others)] if others else -1)


def test_negatives_do_not_depend_on_the_order_of_rows():
    values, subsets = [row % 7 for row in range(60)], ["ab"[row % 2] for row in range(60)]
    ids = [f"t{row}" for row in range(60)]
    picked = pick_others(values, subsets, ids, seed=5)
    order = np.random.default_rng(0).permutation(60).tolist()
    again = pick_others(*([column[row] for row in order] for column in (values, subsets, ids)), seed=5)
    assert {ids[row]: ids[picked[row]] for row in range(60)} == {
        ids[row]: ids[order[again[place]]] for place, row in enumerate(order)
    }


def test_negatives_are_uniform_and_independent_of_each_other():
    """Counts against the binomial distribution; actions and targets are picked with seeds of their own."""
    values, subsets, ids = list(range(6)), ["x"] * 6, list("abcdef")
    picks = np.array([pick_others(values, subsets, ids, seed=seed) for seed in range(2000)])
    counts = np.array([[(picks[:, row] == other).sum() for other in range(6)] for row in range(6)])
    assert counts.diagonal().tolist() == [0] * 6
    off = counts[~np.eye(6, dtype=bool)]
    assert np.abs(off - 400).max() < 4 * np.sqrt(2000 * 0.2 * 0.8)
    together = np.array([[((picks[:, 0] == a) & (picks[:, 1] == b)).sum() for b in (0, 2, 3)] for a in (2, 3, 4)])
    assert np.abs(together - 80).max() < 4 * np.sqrt(2000 * 0.04 * 0.96)


def test_row_without_another_action_is_left_out_and_counted():
    source, target, actions, subsets = _world()
    actions, subsets = list(actions), list(subsets)
    actions[0] = actions[1] = "same"
    subsets[0] = subsets[1] = "alone"
    result = probe(Recorder(), source, target, actions, subsets)
    assert result["random_action"].pairs == ROWS - 2
    assert result["copy"].pairs == ROWS


def test_rows_without_a_contradiction_are_left_out_and_counted():
    """None, and one that reads as the true action: it contradicts nothing."""
    source, target, actions, subsets = _world()
    opposites = [f"undo {text}" for text in actions]
    opposites[2], opposites[5] = None, f"  {actions[5].upper()} "
    recorder = Recorder()
    scores = score_probe(recorder, source, target, actions, subsets, counterfactuals=opposites)
    rows = [row for row in range(ROWS) if row not in (2, 5)]
    assert scores.negatives["counterfactual_action"].rows.tolist() == rows
    assert [triple[2] for triple in recorder.calls[-1]] == [opposites[row] for row in rows]
    result = compare_all(scores)
    assert (result["counterfactual_action"].pairs, result["copy"].pairs) == (ROWS - 2, ROWS)
    assert "counterfactual_action" not in probe(Recorder(), source, target, actions, subsets)
    with pytest.raises(InputError, match="the probe needs as many"):
        probe(Recorder(), source, target, actions, subsets, counterfactuals=opposites[1:])


def test_the_order_of_rows_changes_nothing():
    source, target, actions, subsets = _world()
    ids, opposites = [f"t{row}" for row in range(ROWS)], [f"undo {text}" for text in actions]
    order = np.random.default_rng(4).permutation(ROWS).tolist()
    plain = score_probe(Recorder(), source, target, actions, subsets, ids=ids, counterfactuals=opposites, seed=2)
    mixed = score_probe(
        Recorder(), source[order], target[order],
        *([column[row] for row in order] for column in (actions, subsets)),
        ids=[ids[row] for row in order], counterfactuals=[opposites[row] for row in order], seed=2,
    )  # fmt: skip
    assert mixed.reference.sums.tolist() == plain.reference.sums[order].tolist()
    for kind in NEGATIVES:
        assert mixed.negatives[kind].negative.sums.tolist() == plain.negatives[kind].negative.sums[order].tolist()


def test_item_arrays_give_the_figures_of_the_table():
    """Share, ties and Pearson from what is stored alone, over two runs; the interval is of the items' mean wins."""
    source, target, actions, subsets = _world()
    opposites = [None if row == 3 else f"undo {text}" for row, text in enumerate(actions)]
    collected = Collected(subsets=subsets, ks=[1])
    arrays = {}
    for run in range(2):

        def scorer(source_BN, target_BN, texts, run=run):
            likelihoods = Recorder()(source_BN, target_BN, texts)
            return Likelihoods(likelihoods.sums * (1 + run) + run * source_BN[:, 0].numpy() * 5.0, likelihoods.tokens)

        scores = score_probe(scorer, source, target, actions, subsets, counterfactuals=opposites, seed=1)
        arrays[run] = to_arrays(scores)
        collected.probes["idm", "IDM", run] = compare_all(scores)
        collected.probe_scores["idm", "IDM", run] = from_arrays(arrays[run])
    rows = {row["negative"]: row for row in probe_rows(collected)}
    assert list(rows) == list(NEGATIVES)
    for kind, row in rows.items():
        wins = []
        for run, stored in arrays.items():
            assert stored[f"rows.{kind}"].dtype == np.int64 and stored[f"negative.{kind}"].dtype == np.float64
            reference, negative = stored["reference"][stored[f"rows.{kind}"]], stored[f"negative.{kind}"]
            wins.append([0.5 if a == b else float(a > b) for a, b in zip(reference, negative, strict=True)])
            figures = row["metrics"]
            assert figures["share"]["runs"][str(run)] == pytest.approx(np.mean(wins[-1]))
            assert figures["pearson_r"]["runs"][str(run)] == pytest.approx(np.corrcoef(reference, negative)[0, 1])
            assert row["ties"][str(run)] == wins[-1].count(0.5)
        interval = (row["metrics"]["share"]["ci_low"], row["metrics"]["share"]["ci_high"])
        assert interval == mean_interval(np.mean(wins, axis=0), top=1.0)
        assert row["pairs"] == len(wins[0]) == (ROWS - 1 if kind == "counterfactual_action" else ROWS)


def test_parts_without_item_arrays_give_no_interval():
    source, target, actions, subsets = _world()
    assert from_arrays({}) is None
    collected = Collected(subsets=subsets, ks=[1])
    collected.probes["idm", "IDM", 0] = probe(Recorder(), source, target, actions, subsets)
    (row, *_) = probe_rows(collected)
    assert row["metrics"]["share"]["ci_low"] is None


def test_ties_are_half_a_preference():
    ones = np.ones(3)
    wins = preferences_by_pair(Likelihoods(np.array([-1.0, -2.0, -3.0]), ones), Likelihoods(np.full(3, -2.0), ones))
    assert wins.tolist() == [1.0, 0.5, 0.0]


def test_a_kind_with_no_pair_is_absent():
    source, target, _, subsets = _world()
    assert "random_action" not in probe(Recorder(), source, target, ["same"] * ROWS, subsets)


def test_lengths_must_agree():
    source, target, actions, subsets = _world()
    with pytest.raises(InputError, match="got 12, 12, 11 and 12"):
        probe(Recorder(), source, target, actions[:-1], subsets)


def test_spread():
    assert sample_std([1.0, 2.0, 4.0]) == pytest.approx(np.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2))
    assert sample_std([1.0]) is None
    several = build_figure({0: [1.0, 3.0], 1: [4.0, 4.0], 2: [0.0, 2.0]})
    assert (several["mean"], several["n"], several["over"]) == (pytest.approx(7 / 3), 3, "training seeds")
    assert several["std"] == pytest.approx(np.std([2.0, 4.0, 1.0], ddof=1))
    assert several["runs"] == {"0": 2.0, "1": 4.0, "2": 1.0}
    figure = build_figure({5: [1.0, 3.0]})
    assert (figure["mean"], figure["n"], figure["over"], figure["std"]) == (
        2.0,
        2,
        "sampling seeds",
        pytest.approx(np.sqrt(2)),
    )


def test_pearson_undefined_for_a_constant():
    assert pearson(np.ones(4), np.arange(4.0)) is None
    assert pearson(np.arange(4.0), -np.arange(4.0)) == pytest.approx(-1.0)
