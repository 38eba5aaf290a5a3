"""Which predictions and which triplets a study shows."""

import pytest

from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.study.design import choose_predictions, choose_rows

IDS = [f"t{number}" for number in range(30)]
ROWS = [
    BenchRow(id_, "bench", "test", ("kubric", "ag", "other")[n % 3], "act", "", "", "part.parquet", n)
    for n, id_ in enumerate(IDS)
]


def facts(system: str, ids=IDS, *, run=0, seed=0, candidates=1, verified=False, decoding="sampled"):
    """List rows of a prediction set; a verifier likes the middle candidate best."""
    return [
        {
            "triplet_id": id_, "system": system, "run": run, "sampling_seed": seed, "decoding": decoding,
            "candidates": [candidate], "chosen_at": [], "pixels_sha256": f"{system}{id_}{candidate}",
            "width_px": 64, "height_px": 48, "view": "full", "file": "f", "row": candidate,
            "verifier_logprob": -abs(candidate - candidates // 2) if verified else None,
        }
        for id_ in ids
        for candidate in range(candidates)
    ]  # fmt: skip


def test_the_first_run_and_the_verifiers_choice():
    rows = facts("FDM", run=2, candidates=4, verified=True) + facts("FDM", run=1, seed=5, candidates=4, verified=True)
    rows += facts("FDM", run=1, seed=3, candidates=4, verified=True) + facts("GoT", run=1)
    fdm, got = choose_predictions(rows, IDS, ["FDM", "GoT"], 4)
    assert (fdm.run, fdm.sampling_seed, fdm.num_candidates) == (1, 3, 4)
    assert {row["row"] for row in fdm.predictions.values()} == {2} and list(fdm.predictions) == IDS
    assert (got.run, got.num_candidates) == (1, 1) and {row["row"] for row in got.predictions.values()} == {0}
    (first, _) = choose_predictions(rows, IDS, ["FDM", "GoT"], 1)
    assert first.num_candidates == 1 and {row["row"] for row in first.predictions.values()} == {0}


def test_no_other_run_fills_a_gap():
    rows = facts("FDM", IDS[1:], run=0) + facts("FDM", run=1) + facts("GoT")
    (fdm, _) = choose_predictions(rows, IDS, [], 1)
    assert fdm.run == 0 and list(fdm.predictions) == IDS[1:]


@pytest.mark.parametrize(
    ("rows", "systems", "message"),
    [
        (facts("FDM"), [], "compare 1 systems.*expected 2 to 10"),
        ([row for n in range(11) for row in facts(f"S{n}")], [], "compare 11 systems"),
        (facts("FDM") + facts("GoT"), ["FDM", "Gott"], "did you mean 'GoT'"),
        (facts("FDM") + facts("GoT", decoding="greedy"), [], "'GoT' has no sampled prediction"),
        (facts("FDM", ["x"]) + facts("GoT", ["x"]), [], "were they made for another one"),
    ],
)
def test_systems_that_cannot_be_compared(rows, systems, message):
    with pytest.raises(InputError, match=message):
        choose_predictions(rows, IDS, systems, 1)


def test_as_many_of_each_subset_that_all_systems_have():
    choices = choose_predictions(facts("FDM", IDS[3:]) + facts("GoT", IDS[:27]), IDS, [], 1)
    design = choose_rows(ROWS, choices, "class_label", 5, 0)
    # Subsets in the order of the paper's tables, triplets in the bench's.
    assert [row.class_label for row in design.rows] == ["ag"] * 5 + ["kubric"] * 5 + ["other"] * 5
    for name in ("ag", "kubric", "other"):
        numbers = [row.row for row in design.rows if row.class_label == name]
        assert numbers == sorted(numbers) and set(numbers) <= set(range(3, 27))
    assert design.missing == {"FDM": IDS[:3], "GoT": IDS[27:]} and design.num_complete == 24
    assert {row.triplet_id for row in design.rows + design.spares} == set(IDS)
    assert len(design.rows) + len(design.spares) == len(IDS)


def test_a_triplet_that_is_lost_is_replaced_by_one_other():
    full = choose_rows(ROWS, choose_predictions(facts("A") + facts("B"), IDS, [], 1), "class_label", 4, 7)
    lost = full.rows[5].triplet_id
    rest = [id_ for id_ in IDS if id_ != lost]
    less = choose_rows(ROWS, choose_predictions(facts("A") + facts("B", rest), IDS, [], 1), "class_label", 4, 7)
    assert len({row.triplet_id for row in full.rows} & {row.triplet_id for row in less.rows}) == 11
    # The order of the bench's files does not matter, the seed does.
    choices = choose_predictions(facts("A") + facts("B"), IDS, [], 1)
    backwards = choose_rows(ROWS[::-1], choices, "class_label", 4, 7)
    assert {row.triplet_id for row in backwards.rows} == {row.triplet_id for row in full.rows}
    other = choose_rows(ROWS, choices, "class_label", 4, 8)
    assert {row.triplet_id for row in other.rows} != {row.triplet_id for row in full.rows}


def test_every_triplet_is_chosen_equally_often():
    choices = choose_predictions(facts("A") + facts("B"), IDS, [], 1)
    counts = dict.fromkeys(IDS, 0)
    for seed in range(200):
        for row in choose_rows(ROWS, choices, "class_label", 5, seed).rows:
            counts[row.triplet_id] += 1
    # 5 of 10 in 200 draws: 100 expected, standard deviation 7.1.
    assert all(70 < count < 130 for count in counts.values())


def test_a_subset_with_too_few_is_named_with_whom():
    choices = choose_predictions(facts("FDM", IDS[12:]) + facts("GoT"), IDS, [], 1)
    with pytest.raises(InputError) as error:
        choose_rows(ROWS, choices, "class_label", 7, 0)
    assert str(error.value) == (
        "per_subset = 7: too few triplets that all systems have: subset 'ag' has 6 of 10 (FDM lacks 4); subset "
        "'kubric' has 6 of 10 (FDM lacks 4); subset 'other' has 6 of 10 (FDM lacks 4)"
    )
