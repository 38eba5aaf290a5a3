"""Which votes count, and how those that do not are named."""

from dataclasses import replace

import pytest

from tests.helpers.study_votes import make_study, vote_all, vote_on
from wm.errors import InputError
from wm.evaluation.votes.selection import select_votes
from wm.evaluation.votes.tables import read_votes, write_votes

STUDY = make_study(num_checks=1)
IDS = [item.item_id for item in STUDY.items if not item.is_check]
CHECK = STUDY.items[-1]


def spoilt_votes():
    """Three people: one complete, one who failed the check, one who left after two items; a fourth only joined."""
    votes = vote_all(STUDY, 3, (0, 0, 0, 1))
    votes = [vote for vote in votes if vote.participant != "code2" or vote.item_id in IDS[:2]]
    failed = vote_on(STUDY, CHECK, 1, CHECK.worst, CHECK.best)
    return [failed if vote.is_check and vote.participant == "code1" else vote for vote in votes]


JOINED = {"code3": "page", "code0": "page", "code1": "page", "code2": "page", "robot": "simulated"}


def test_checks_never_count_and_everybody_is_described():
    counted = select_votes(spoilt_votes(), IDS, JOINED, fast_s=20.5)
    assert len(counted.votes) == 12 and not any(vote.is_check for vote in counted.votes) and counted.left_out == {}
    # In the order of joining, not by codes.
    assert [person.name for person in counted.participants] == ["P1", "P2", "P3", "P4"]
    assert [person.num_votes for person in counted.participants] == [0, 5, 5, 2]
    assert [person.failed_checks for person in counted.participants] == [0, 0, 1, 0]
    assert [person.num_checks for person in counted.participants] == [0, 1, 1, 0]
    assert [person.fast_votes for person in counted.participants] == [0, 5, 0, 0]
    assert {vote.participant for vote in counted.votes} == {"P2", "P3", "P4"}


@pytest.mark.parametrize(
    ("rules", "num_votes", "left_out"),
    [
        ({"failed_checks": "leave_out"}, 7, {"failed an attention check": 5}),
        ({"incomplete": "leave_out"}, 10, {"incomplete": 2}),
        (
            {"failed_checks": "leave_out", "incomplete": "leave_out"},
            5,
            {"failed an attention check": 5, "incomplete": 2},
        ),
    ],
)
def test_left_out_votes_are_counted_by_reason(rules, num_votes, left_out):
    counted = select_votes(spoilt_votes(), IDS, **rules)
    assert len(counted.votes) == num_votes and counted.left_out == left_out


def test_people_and_simulated_votes_are_never_mixed():
    simulated = [replace(vote, origin="simulated", participant="robot") for vote in spoilt_votes()[:5]]
    both = [*spoilt_votes(), *simulated]
    with pytest.raises(InputError, match=r"people 14, simulated 5.*kind=people or kind=simulated"):
        select_votes(both, IDS, JOINED)
    assert len(select_votes(both, IDS, JOINED, kind="people").participants) == 4
    counted = select_votes(both, IDS, JOINED, kind="simulated")
    assert counted.kind == "simulated" and len(counted.votes) == 5 and len(counted.participants) == 1
    with pytest.raises(InputError, match="no such vote"):
        select_votes(simulated, IDS, kind="people")
    with pytest.raises(InputError, match="no vote yet"):
        select_votes([], IDS)


def test_what_leaves_no_vote_says_so():
    with pytest.raises(InputError, match="no vote is left to count: 2 incomplete"):
        select_votes(spoilt_votes()[-2:], IDS, incomplete="leave_out")
    with pytest.raises(InputError, match="item 'other', which the study does not have"):
        select_votes([replace(spoilt_votes()[0], item_id="other")], IDS)


def test_votes_are_kept_as_a_table(tmp_path):
    votes = [*spoilt_votes(), replace(spoilt_votes()[0], systems=("a", "b"), best=None, worst=None)]
    assert write_votes(votes, tmp_path / "votes.parquet") == len(votes)
    assert read_votes(tmp_path / "votes.parquet") == votes
