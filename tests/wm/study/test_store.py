"""The store of votes: what it keeps, what it refuses, and what several threads and processes of it keep."""

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.study import database
from wm.study.codes import LETTERS, make_code, normalise_code
from wm.study.store import RefusedError, VoteStore

STUDY = "study-a"
SYSTEMS = ("C-FDM", "GoT", "SE", "C-FT")


def vote(participant, item="item-1", **changes):
    plain = Vote(STUDY, participant, item, "triplet-1", "ag", SYSTEMS, "GoT", "SE", 7.25, "2026-01-02T03:04:05+00:00")
    return replace(plain, **changes)


@pytest.fixture
def store(tmp_path):
    with VoteStore(tmp_path / "votes.sqlite") as opened:
        yield opened


def test_a_vote_comes_back_as_it_was(store):
    person = store.add_participant(STUDY)
    votes = [
        vote(person.code),
        vote(person.code, "item-2", is_check=True, passed_check=False),
        vote(person.code, "item-3", is_check=True, passed_check=True, origin="simulated"),
        vote(person.code, "item-4", systems=("ä", "b"), best=None, worst=None, origin="playground"),
    ]
    assert [store.add_vote(one) for one in votes] == ["stored"] * 4
    with VoteStore(store.path, read_only=True) as other:
        assert other.list_votes(STUDY) == votes
        assert other.list_participants(STUDY) == [person]
        assert other.count_votes(STUDY) == {person.code: 4}
        assert other.secret == store.secret and len(store.secret) == 32
        assert (other.list_votes("study-b"), other.list_studies()) == ([], [STUDY])


def test_a_vote_gets_the_time_of_its_storing(store):
    person = store.add_participant(STUDY)
    store.add_vote(vote(person.code, stored_at=""))
    assert store.list_votes(STUDY)[0].stored_at >= person.consented_at


def test_participants_are_numbered_in_each_study(store):
    people = [store.add_participant(STUDY) for _ in range(3)]
    assert [person.number for person in people] == [0, 1, 2]
    assert store.add_participant("study-b").number == 0
    assert store.find_participant(STUDY, people[1].code) == people[1]
    with pytest.raises(RefusedError, match="all the participants it needs"):
        store.add_participant(STUDY, limit=3)
    with pytest.raises(RefusedError, match="Nobody takes part"):
        store.find_participant("study-b", people[0].code)
    assert store.list_participants(STUDY) == people


def test_who_has_withdrawn_is_left_out_for_good(store):
    first, second = (store.add_participant(STUDY) for _ in range(2))
    for person in (first, second):
        store.add_vote(vote(person.code))
    store.withdraw(STUDY, first.code)
    assert store.list_participants(STUDY) == [second] and store.list_votes(STUDY) == [vote(second.code)]
    assert (store.count_votes(STUDY), store.count_withdrawn(STUDY)) == ({second.code: 1}, 1)
    for refused in (
        lambda: store.find_participant(STUDY, first.code),
        lambda: store.withdraw(STUDY, first.code),
        lambda: store.add_vote(vote(first.code, "item-2")),
        lambda: store.add_votes([vote("new"), vote(first.code, "item-2")]),
    ):
        with pytest.raises(RefusedError):
            refused()
    # The seat is free again, the number is not.
    assert store.add_participant(STUDY, limit=2).number == 2
    assert len(store.list_participants(STUDY)) == 2


def test_the_same_choice_is_stored_once_and_another_refused(store):
    person = store.add_participant(STUDY)
    assert store.add_vote(vote(person.code)) == "stored"
    assert store.add_vote(vote(person.code, seconds=9.0)) == "stored before"
    with pytest.raises(RefusedError, match="first choice counts"):
        store.add_vote(vote(person.code, best="C-FT"))
    assert store.list_votes(STUDY) == [vote(person.code)]


@pytest.mark.parametrize(
    "changes",
    [
        {"worst": "GoT"},
        {"best": None},
        {"best": None, "worst": None},
        {"best": "DALL-E"},
        {"systems": ("GoT", "GoT", "SE")},
        {"seconds": -1.0},
        {"seconds": float("nan")},
        {"participant": "BBBB-BBBB-BBBB"},
        {"study_id": "study-b"},
    ],
)
def test_what_is_no_choice_is_refused_in_one_sentence(store, changes):
    person = store.add_participant(STUDY)
    with pytest.raises(RefusedError) as refusal:
        store.add_vote(replace(vote(person.code), **changes))
    assert str(refusal.value).count(".") == 1 and "\n" not in str(refusal.value)
    assert store.list_votes(STUDY) == []


def test_many_votes_are_stored_together_or_not_at_all(store):
    votes = [vote(code, item, origin="imported") for code in ("anna", "ben") for item in ("item-1", "item-2")]
    assert store.add_votes(votes[:3]) == 3
    assert store.add_votes(votes) == 1
    assert [person.code for person in store.list_participants(STUDY)] == ["anna", "ben"]
    assert {person.origin for person in store.list_participants(STUDY)} == {"imported"}
    with pytest.raises(RefusedError, match="first choice counts"):
        store.add_votes([vote("carl"), vote("anna", best="C-FT")])
    assert store.list_votes(STUDY) == [*votes[:3], votes[3]] and len(store.list_participants(STUDY)) == 2


def test_nothing_stored_is_changed_or_removed(store):
    person = store.add_participant(STUDY)
    store.add_vote(vote(person.code))
    store.add_playground_item(STUDY, {"action": "push"})
    store.withdraw(STUDY, store.add_participant(STUDY).code)
    other = sqlite3.connect(store.path)
    tables = {"settings": "value", "participants": "code", "votes": "best", "playground_items": "context"}
    tables |= {"withdrawals": "code"}
    for name, column in tables.items():
        for statement in (f"UPDATE {name} SET {column} = 'x'", f"DELETE FROM {name}"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                other.execute(statement)
            other.rollback()
    other.close()
    assert store.list_votes(STUDY) == [vote(person.code)]


def test_a_playgrounds_comparison_comes_back(store):
    context = {"action": "move ←", "models": ["b", "a"], "seeds": [0, 1], "source_sha256": "ab" * 32}
    item = store.add_playground_item("playground", context)
    other = store.add_playground_item("playground", {})
    assert store.list_playground_items("playground") == [item, other]
    assert store.find_playground_item("playground", item.item_id).context == context
    with pytest.raises(RefusedError, match="not known"):
        store.find_playground_item(STUDY, item.item_id)


def test_each_commit_is_flushed_to_the_disk(store):
    settings = [store._connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert settings == ["wal", 2]


def test_a_full_disk_loses_nothing_that_was_stored(store):
    person = store.add_participant(STUDY)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    stored = []
    with pytest.raises(RefusedError, match="disk is full"):
        for number in range(1000):
            store.add_vote(vote(person.code, f"item-{number}"))
            stored.append(f"item-{number}")
    with pytest.raises(RefusedError, match="disk is full"):
        store.add_playground_item(STUDY, {"action": "x" * 100_000})
    assert stored and [one.item_id for one in store.list_votes(STUDY)] == stored
    store._connection.execute("PRAGMA max_page_count = 100000")
    assert store.add_vote(vote(person.code, f"item-{len(stored)}")) == "stored"


def test_a_store_that_another_process_holds_is_busy(store):
    person = store.add_participant(STUDY)
    store._connection.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RefusedError, match="busy"):
        store.add_vote(vote(person.code))
    other.close()
    assert store.add_vote(vote(person.code)) == "stored"


def test_threads_and_processes_store_at_the_same_time(store):
    code = (
        "import sys\nfrom wm.study.store import VoteStore\nfrom wm.evaluation.votes.records import Vote\n"
        "with VoteStore(sys.argv[1]) as store:\n"
        "    code = store.add_participant('study-a').code\n"
        "    for number in range(40):\n"
        "        store.add_vote(Vote('study-a', code, f'item-{number}', '', '', ('a', 'b'), 'b', 'a', 1.0, ''))\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(store.path)]) for _ in range(2)]

    def take_part(_):
        person = store.add_participant(STUDY)
        for number in range(20):
            store.add_vote(vote(person.code, f"item-{number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take_part, range(4)))
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(store.count_votes(STUDY).values()) == [20] * 4 + [40] * 2
    assert [person.number for person in store.list_participants(STUDY)] == list(range(6))


def test_another_kind_of_file_is_refused_and_left_alone(tmp_path):
    text, foreign, newer = tmp_path / "a.txt", tmp_path / "b.sqlite", tmp_path / "c.sqlite"
    text.write_text("not a database, but long enough to be looked at" * 40)
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (x)")
    VoteStore(newer).close()
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version = 7")
    for path, reason in (
        (text, "not a database"),
        (foreign, "another program"),
        (newer, "format 7 of another version"),
    ):
        content = path.read_bytes()
        for read_only in (False, True):
            with pytest.raises(InputError, match=reason):
                VoteStore(path, read_only=read_only)
        assert path.read_bytes() == content


def test_a_place_that_cannot_hold_a_store_is_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="a folder"):
        VoteStore(tmp_path)
    with pytest.raises(InputError, match="no such file"):
        VoteStore(tmp_path / "votes.sqlite", read_only=True)
    with pytest.raises(InputError, match="folder does not exist"):
        VoteStore(tmp_path / "missing" / "votes.sqlite")
    monkeypatch.setattr(database, "file_system", lambda folder: "nfs4")
    with pytest.raises(InputError, match=r"network share \(nfs4\)"):
        VoteStore(tmp_path / "votes.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_copy_without_its_log_says_what_it_lacks(tmp_path):
    with VoteStore(tmp_path / "votes.sqlite") as store:
        store.add_participant("study")
        (tmp_path / "copy.sqlite").write_bytes((tmp_path / "votes.sqlite").read_bytes())
        with pytest.raises(InputError, match=r"nothing in it; .* may be in the -wal file beside the original"):
            VoteStore(tmp_path / "copy.sqlite", read_only=True)


def test_a_link_to_a_network_share_is_refused(tmp_path, monkeypatch):
    share = tmp_path / "share"
    share.mkdir()
    (tmp_path / "votes.sqlite").symlink_to(share / "votes.sqlite")
    monkeypatch.setattr(database, "file_system", lambda folder: "nfs4" if folder == share.resolve() else "ext4")
    with pytest.raises(InputError, match=r"network share \(nfs4\)"):
        VoteStore(tmp_path / "votes.sqlite")
    assert list(share.iterdir()) == []


def test_the_file_system_is_found_by_its_device(tmp_path):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        f"22 27 0:9999 / /proc rw - proc proc rw\n36 27 {number} / /home rw,noatime shared:1 - nfs4 host:/home rw\n"
    )
    assert database.file_system(tmp_path, mounts) == "nfs4"
    assert database.file_system(tmp_path, tmp_path / "missing") == ""


def test_a_store_in_a_protected_folder_can_be_read(tmp_path):
    with VoteStore(tmp_path / "votes.sqlite") as store:
        store.add_vote(vote(store.add_participant(STUDY).code))
    tmp_path.chmod(0o500)
    try:
        with VoteStore(tmp_path / "votes.sqlite", read_only=True) as store:
            assert len(store.list_votes(STUDY)) == 1
            with pytest.raises(RefusedError, match="cannot write"):
                store.add_participant(STUDY)
    finally:
        tmp_path.chmod(0o700)


def test_codes_have_no_look_alikes_and_are_read_as_typed():
    codes = {make_code() for _ in range(200)}
    assert len(codes) == 200 and {len(code) for code in codes} == {14}
    assert set("".join(codes)) == {*LETTERS, "-"} and not set("AEIOULQSG015") & set(LETTERS)
    code = "BCDF-HJKM-NPRT"
    for text in (code, code.lower(), " bcdfhjkm nprt ", "BCDF HJKM.NPRT"):
        assert normalise_code(text) == code
    for text in ("", "anna", "BCDF-HJKM-NPRA", "BCDF-HJKM-NPR", "B" * 13):
        assert normalise_code(text) == text
