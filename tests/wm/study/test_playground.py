"""Comparisons of a playground in the store of votes: what is stored of a choice, and which choices are refused."""

import pytest

from wm.errors import InputError
from wm.evaluation.votes.arrays import VotedItem
from wm.evaluation.votes.records import Vote
from wm.evaluation.votes.report import StudyFacts, build_figures
from wm.evaluation.votes.selection import select_votes
from wm.study.playground import MAX_AGE_S, STUDY_ID, Comparison, Comparisons, load_playground
from wm.study.store import RefusedError, VoteStore


class Clock:
    now_s = 1000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    with VoteStore(tmp_path / "votes.sqlite") as opened:
        yield opened


@pytest.fixture
def comparisons(store, clock):
    return Comparisons(store, clock=clock)


def show(comparisons, code, systems=("fdm", "baseline")):
    folders = {"fdm": "/models/a", "baseline": "/models/b"}
    return comparisons.add(Comparison(code, systems, folders, "move the cup", "0" * 64, 7, 8))


@pytest.mark.parametrize(
    ("choice", "order"),
    [("left", ("baseline", "fdm")), ("right", ("fdm", "baseline")), ("no_difference", (None, None))],
)
def test_a_choice_is_a_vote_on_the_model_that_was_there(comparisons, store, clock, choice, order):
    best, worst = order
    code = comparisons.join(None)
    shown = show(comparisons, code, ("baseline", "fdm"))
    clock.now_s += 4.25
    assert comparisons.choose(shown.item_id, choice) == shown
    (vote,) = store.list_votes(STUDY_ID)
    expected = Vote(STUDY_ID, code, shown.item_id, "", "", ("baseline", "fdm"), best, worst, 4.25, vote.stored_at)
    assert vote == expected.__class__(**{**vars(expected), "origin": "playground"})
    assert (vote.score("fdm"), vote.score("baseline")) == {"fdm": (1, -1), "baseline": (-1, 1), None: (0, 0)}[best]
    assert comparisons.count() == 1


def test_the_first_choice_counts(comparisons, store, clock):
    shown = show(comparisons, comparisons.join(None))
    comparisons.choose(shown.item_id, "left")
    assert comparisons.choose(shown.item_id, "left") == shown
    for other in ("right", "no_difference"):
        with pytest.raises(RefusedError, match="the first choice counts") as refusal:
            comparisons.choose(shown.item_id, other)
        assert refusal.value.code == "answered"
    # Whoever asks again much later gets the same answer; a first choice then is too late.
    late = show(comparisons, comparisons.join(None))
    clock.now_s += MAX_AGE_S + 1
    assert comparisons.choose(shown.item_id, "left") == shown
    with pytest.raises(RefusedError, match="more than a day ago") as refusal:
        comparisons.choose(late.item_id, "left")
    assert refusal.value.code == "expired"
    assert [vote.best for vote in store.list_votes(STUDY_ID)] == ["fdm"]


def test_a_choice_finds_what_another_process_showed(comparisons, store, clock):
    code = comparisons.join(None)
    shown = show(comparisons, code)
    with VoteStore(store.path) as other:
        again = Comparisons(other, clock=clock)
        assert again.join(code.lower().replace("-", " ")) == code
        assert again.choose(shown.item_id, "right").systems == ("fdm", "baseline")
    assert store.list_votes(STUDY_ID)[0].best == "baseline"


def test_strangers_are_refused(comparisons, store):
    with pytest.raises(RefusedError, match="Nobody takes part"):
        comparisons.join("BCDF-HJKM-NPRT")
    for name in ("", "nothing", "x" * 100_000, "'; DROP TABLE votes; --"):
        with pytest.raises(RefusedError, match="is not known here") as refusal:
            comparisons.choose(name, "left")
        assert refusal.value.code == "unknown"
    assert store.list_votes(STUDY_ID) == [] and comparisons.count() == 0


def test_other_weights_under_the_same_name_are_refused(comparisons):
    show(comparisons, comparisons.join(None))
    comparisons.check_folders({"fdm": "/models/a", "baseline": "/models/b"}.get)
    comparisons.check_folders({"fdm": "/models/a", "base:new": "/models/c"}.get)
    with pytest.raises(
        InputError, match="holds choices about fdm = /models/a, and fdm is /models/c here: give another"
    ):
        comparisons.check_folders({"fdm": "/models/c"}.get)


def test_choices_become_a_matrix_of_win_rates(comparisons, store, tmp_path):
    """Three models, eight choices of two people: against shares counted by hand."""
    people = [comparisons.join(None) for _ in range(2)]
    choices = [("a", "b", "left"), ("b", "a", "right"), ("a", "b", "right"), ("b", "a", "no_difference")]
    choices += [("a", "c", "left"), ("c", "a", "right"), ("b", "c", "no_difference"), ("c", "b", "left")]
    for number, (left, right, choice) in enumerate(choices):
        comparisons.choose(show(comparisons, people[number % 2], (left, right)).item_id, choice)
    show(comparisons, people[0])  # nobody chose: no item of the report
    study = load_playground(store.path)
    assert (study.systems, len(study.items)) == (("a", "b", "c"), 8)
    joined = {person.code: person.origin for person in store.list_participants(STUDY_ID)}
    counted = select_votes(store.list_votes(STUDY_ID), [item.item_id for item in study.items], joined, shows_all=False)
    assert [(person.num_votes, person.is_complete) for person in counted.participants] == [(4, True), (4, True)]
    items = tuple(VotedItem(item.item_id, item.triplet_id, item.subset) for item in study.items)
    facts = StudyFacts(study.study_id, study.title, study.systems, items)
    figures = build_figures(facts, counted, reference="a", num_resamples=10)
    wins, ties = figures["wins_by_vote"]["wins"], figures["wins_by_vote"]["ties"]
    assert [wins[row][column] for row, column in ("ab", "ba", "ac", "ca", "bc", "cb")] == [
        0.5,
        0.25,
        1.0,
        0.0,
        0.0,
        0.5,
    ]
    assert (ties["a"]["b"], ties["a"]["c"], ties["b"]["c"], wins["a"]["a"]) == (0.25, 0.0, 0.5, None)
    means = {name: figure["mean"] for name, figure in figures["table"]["playground"].items()}
    assert means == {"a": pytest.approx(3 / 6), "b": pytest.approx(-2 / 6), "c": pytest.approx(-1 / 4)}


def test_a_store_without_choices_is_no_playground(store, tmp_path):
    with pytest.raises(InputError, match="no such file; wm serve comparisons=FILE makes one"):
        load_playground(tmp_path / "none.sqlite")
    with pytest.raises(InputError, match="holds no vote of a playground"):
        load_playground(store.path)
