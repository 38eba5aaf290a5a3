"""Comparisons of a playground in the store of votes: what is stored of a choice, and which choices are refused."""

import pytest

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.study.playground import MAX_AGE_S, STUDY_ID, Comparison, Comparisons
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
