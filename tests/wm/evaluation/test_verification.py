import numpy as np
import pytest

from wm.errors import InputError
from wm.evaluation.verification import best_in_groups, chosen_values, verification_curve
from wm.judging import JudgeScore

KS = (1, 2, 4, 8)


def _bank(seed=0, items=7, total=8):
    rng = np.random.default_rng(seed)
    return {
        "final": rng.integers(0, 11, (items, total)).astype(float),
        "l1": rng.random((items, total)),
    }, rng.integers(0, 4, (items, total)).astype(float)


def _brute(metric, score, k):
    out = []
    for values, scores in zip(metric.tolist(), score.tolist(), strict=True):
        picked = []
        for start in range(0, len(values) - k + 1, k):
            group = range(start, start + k)
            picked.append(values[max(group, key=lambda index: (scores[index], -index))])
        out.append(sum(picked) / len(picked))
    return out


@pytest.mark.parametrize("k", [1, 2, 3, 4, 8])
def test_choice_against_brute_force(k):
    metrics, verifier = _bank()
    for value in metrics.values():
        assert chosen_values(value, verifier, k).tolist() == pytest.approx(_brute(value, verifier, k))


def test_one_averages_all_and_max_chooses_once():
    metrics, verifier = _bank()
    assert chosen_values(metrics["final"], verifier, 1) == pytest.approx(metrics["final"].mean(axis=1))
    assert best_in_groups(verifier, 8)[:, 0].tolist() == verifier.argmax(axis=1).tolist()


def test_ties_go_to_the_lower_index():
    assert best_in_groups(np.array([[1.0, 1.0, 2.0, 2.0]]), 2).tolist() == [[0, 2]]


def test_oracle_rises_with_k_and_bounds_every_choice():
    metrics, verifier = _bank(seed=4, items=50)
    curve = verification_curve(metrics, verifier, metrics["final"], KS)
    best = [curve["oracle", k]["final"].mean() for k in KS[1:]]
    assert best == sorted(best)
    for k in KS[1:]:
        assert (curve["oracle", k]["final"] >= curve["idm", k]["final"] - 1e-12).all()


def test_without_verifier_only_k_one_and_the_oracle():
    metrics, _ = _bank()
    curve = verification_curve(metrics, None, metrics["final"], KS)
    assert set(curve) == {("idm", 1), ("oracle", 2), ("oracle", 4), ("oracle", 8)}


def test_k_beyond_the_bank():
    metrics, verifier = _bank()
    with pytest.raises(InputError, match="k = 9, expected 1 to 8"):
        chosen_values(metrics["final"], verifier, 9)


def test_judge_score():
    assert JudgeScore(7.0, 4.5, False, False).final == 4.5
    with pytest.raises(InputError, match="editing_success = 11"):
        JudgeScore(11.0, 4.5, False, False)
