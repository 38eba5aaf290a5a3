"""``wm study simulate``: votes whose true means are known, all of them or none, never among people's."""

import pytest

from jobs.study import simulate
from jobs.study.make import StudyMakeRecipe
from jobs.study.make import run as make
from jobs.study.simulate import StudySimulateRecipe, run
from tests.helpers.study_files import PER_SUBSET, write_bench, write_set
from wm.errors import InputError
from wm.evaluation.judge.score_files import SCORES_SCHEMA
from wm.runs import write_json
from wm.study.store import VoteStore
from wm.study.study import load_study
from wm.tables import write_table

MEANS = {"GoT": -0.3, "FT": 0.1, "FDM": 0.2}
NUMBERS = range(3 * PER_SUBSET)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of three systems on nine items and two checks."""
    folder = tmp_path_factory.mktemp("study")
    sets = [write_set(folder / system, system, NUMBERS) for system in MEANS]
    keys = {"predictions": sets, "triplets": str(write_bench(folder / "bench")), "out": str(folder / "study")}
    make(StudyMakeRecipe.parse(keys | {"per_subset": 3, "attention_checks": 2}, "test"))
    return folder


def recipe(made, out, **keys):
    values = {"study": str(made / "study"), "out": str(out)} | ({} if "scores" in keys else {"means": MEANS})
    return StudySimulateRecipe.parse(values | keys, "test")


def stored(made, out):
    study = load_study(made / "study")
    with VoteStore(out / "votes.sqlite", read_only=True) as store:
        return study, store.list_votes(study.study_id), store.list_participants(study.study_id)


def test_all_planned_participants_vote_on_all_items(made, tmp_path, capsys):
    truth = run(recipe(made, tmp_path / "v"))["true_means"]
    study, votes, people = stored(made, tmp_path / "v")
    assert len(people) == 14 and {person.origin for person in people} == {"simulated"}
    assert len(votes) == 14 * 11 and {vote.origin for vote in votes} == {"simulated"}
    assert {(vote.participant, vote.item_id) for vote in votes} == {
        (person.code, item.item_id) for person in people for item in study.items
    }
    # A vote on a check is right, and a vote on any other item is no check.
    assert all(vote.passed_check is (True if vote.is_check else None) for vote in votes)
    assert sum(vote.is_check for vote in votes) == 28
    assert list(truth) == ["magicbrush", "ag", "kubric"]
    for means in truth.values():
        assert means == pytest.approx(MEANS, abs=1e-6)
    text = capsys.readouterr().out
    assert "154 votes of 14 simulated participants" in text and "GoT -0.30 (" in text


def test_the_same_command_again_adds_nothing(made, tmp_path, capsys):
    record = run(recipe(made, tmp_path / "v"))
    before = stored(made, tmp_path / "v")
    assert record["counts"] == {"participants": 14, "votes": 126, "checks": 28}
    assert run(recipe(made, tmp_path / "v")) == record
    assert stored(made, tmp_path / "v") == before and "already complete" in capsys.readouterr().out
    with pytest.raises(InputError, match="another run"):
        run(recipe(made, tmp_path / "v", seed=1))
    # The study's own store is for people.
    assert not list((made / "study").glob("*.sqlite*"))


def test_a_run_killed_after_its_votes_keeps_them(made, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    def stop(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(simulate, "_print_means", stop)
        with pytest.raises(KilledError):
            run(recipe(made, tmp_path / "v"))
    before = stored(made, tmp_path / "v")
    assert run(recipe(made, tmp_path / "v"))["counts"]["votes"] == 126
    assert stored(made, tmp_path / "v") == before


def test_a_dry_run_writes_nothing(made, tmp_path, capsys):
    run(recipe(made, tmp_path / "v"), dry_run=True)
    assert not (tmp_path / "v").exists() and "FDM +0.20" in capsys.readouterr().out


def write_scores(made, folder, score_of):
    """Write a judging of all predictions, each asked about twice."""
    rows = [
        {
            "triplet_id": f"{number:024x}", "subset": "", "system": system, "run": 0, "sampling_seed": 0,
            "num_candidates": 1, "repeat": repeat, "editing_success": score, "minimal_editing": 10.0, "final": score,
            "failure": None if score is not None else "no reply", "key": "",
        }
        for number in NUMBERS for system in MEANS for repeat in range(2)
        for score in [score_of(number, system, repeat)]
    ]  # fmt: skip
    write_table(rows, folder / "scores.parquet", SCORES_SCHEMA)
    write_json(folder / "run.json", {"stage": "judge"})
    return str(folder)


def test_scores_decide_item_by_item(made, tmp_path):
    # Even triplets: GoT is far better; odd ones: FT. FDM is always the worst.
    def score_of(number, system, repeat):
        liked = "FT" if number % 2 else "GoT"
        return {"FDM": 1.0}.get(system, 9.0 if system == liked else 5.0) + (0.5 if repeat else -0.5)

    scores = write_scores(made, tmp_path / "judged", score_of)
    run(recipe(made, tmp_path / "v", scores=scores, noise=0.1, participants=3))
    _, votes, _ = stored(made, tmp_path / "v")
    counted = [vote for vote in votes if not vote.is_check]
    assert len(counted) == 27
    for vote in counted:
        liked = "FT" if int(vote.triplet_id, 16) % 2 else "GoT"
        assert (vote.best, vote.worst) == (liked, "FDM")


def test_without_a_score_nobody_votes(made, tmp_path):
    items = [item for item in load_study(made / "study").items if not item.is_check]
    lost = int(items[4].triplet_id, 16)
    scores = write_scores(
        made, tmp_path / "judged", lambda number, system, _: None if (number, system) == (lost, "FT") else 1.0
    )
    with pytest.raises(InputError, match=r"no score for 1 of the 27 images of the study, 'FT' for triplet"):
        run(recipe(made, tmp_path / "v", scores=scores))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"means": {"GoT": 0.1, "FT": -0.1}}, "expected one for each"),
        ({"means": {}}, "give means, or scores"),
        ({"scores": "judged", "means": MEANS}, "give means, or scores"),
        ({"inattentive": 15}, "inattentive = 15: the study has 14 participants"),
        ({"study": "no-such-folder"}, "no study.json there"),
    ],
)
def test_bad_settings_are_one_line(made, tmp_path, keys, message):
    with pytest.raises(InputError, match=message) as error:
        run(recipe(made, tmp_path / "v", **keys))
    assert "\n" not in str(error.value) and not (tmp_path / "v").exists()
