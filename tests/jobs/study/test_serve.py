"""``wm study serve``: what it checks before it listens, its lines, its end; and 20 kills under 14 participants."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from jobs.study import serve
from tests.helpers.study_data import SYSTEMS, write_small_study
from wm.files.mirror import mirrored_path
from wm.ports import find_free_port
from wm.study.store import VoteStore
from wm.study.study import IMAGES, STORE_FILE

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def study(tmp_path):
    return write_small_study(tmp_path / "study", num_items=2, num_participants=3)


def run(capsys, tmp_path, *arguments):
    """Exit status, standard output and standard error of the command."""
    status = serve.main([f"study={tmp_path / 'study'}", f"port={find_free_port()}", *arguments])
    output = capsys.readouterr()
    return status, output.out, output.err


def test_a_dry_run_checks_all_and_makes_nothing(capsys, tmp_path, study):
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = run(capsys, tmp_path, "--dry-run")
    assert status == 0 and sorted(tmp_path.rglob("*")) == before
    assert "2 items, 4 systems, all images of 32 x 32 px" in out and "a new store" in out
    assert re.search(r"people would open http://127\.0\.0\.1:\d+/$", out, re.MULTILINE)
    with VoteStore(tmp_path / "study" / STORE_FILE) as store:
        store.add_participant(study.study_id)
    assert "0 of 6 votes, 1 of 3 participants joined, 0 finished" in run(capsys, tmp_path, "--dry-run")[1]


def test_other_machines_come_in_by_a_key_alone(capsys, tmp_path, study):
    status, _, err = run(capsys, tmp_path, "host=0.0.0.0", "--dry-run")
    assert status == 2 and "nobody would be asked for a key" in err
    keys = tmp_path / "keys"
    status, out, _ = run(capsys, tmp_path, "host=0.0.0.0", f"keys={keys}", "--dry-run")
    assert status == 0 and out.rstrip().endswith("/#A-NEW-KEY") and not keys.exists()
    keys.write_text("a-key-of-an-invitation\n")
    _, out, _ = run(capsys, tmp_path, "host=0.0.0.0", f"keys={keys}", "--dry-run")
    assert re.search(r"open http://[^/]+:\d+/#a-key-of-an-invitation$", out, re.MULTILINE) and "0.0.0.0" not in out
    _, _, err = run(capsys, tmp_path, "host=a..b", f"keys={keys}", "--dry-run")
    assert "host = 'a..b': no address of this machine" in err and err.count("\n") == 1
    keys.write_text("short\n")
    assert run(capsys, tmp_path, f"keys={keys}")[0] == 2


def test_what_cannot_be_served_is_refused_by_name(capsys, tmp_path, study, monkeypatch):
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    for argument, reason in (
        ("study=/missing", "no study.json there"),
        ("study=s3://bucket/study", "study = 's3://bucket/study': wm study serve needs it on a local disk"),
        (f"study={mirrored_path('s3://bucket/study')}", "study = 's3://bucket/study': wm study serve needs it on"),
        ("store=s3://bucket/votes.sqlite", "store = 's3://bucket/votes.sqlite': wm study serve needs it on"),
        ("keys=gs://bucket/keys", "keys = 'gs://bucket/keys': wm study serve needs it on a local disk"),
        (f"store={tmp_path / 'study' / 'study.json'}", "file is not a database"),
        ("open_seats=-1", "open_seats"),
    ):
        status, _, err = run(capsys, tmp_path, argument)
        assert status == 2 and reason in err and err.count("\n") == 1, err
    next((tmp_path / "study" / IMAGES).iterdir()).write_bytes(b"")
    assert "cannot be read as an image" in run(capsys, tmp_path)[2]


def test_a_missing_package_is_named(capsys, tmp_path, study, monkeypatch):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    assert "needs the package uvicorn: pip install 'wm[study]'" in run(capsys, tmp_path, "--dry-run")[2]


@contextmanager
def server(folder, *arguments):
    """The command as a process that answers, and its address; it is killed at the end if it is still there."""
    port = find_free_port()
    command = [sys.executable, "-m", "jobs.study", "serve", f"study={folder}", f"port={port}", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        wait_until_up(process, f"http://127.0.0.1:{port}/")
        yield process, f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.communicate()


def wait_until_up(process, url):
    while True:
        assert process.poll() is None, process.communicate()
        with suppress(OSError, HTTPException):
            assert urlopen(f"{url}health", timeout=30).status == 200
            return
        time.sleep(0.02)


def ask(url, path, body=None, code="", key=""):
    """The reply to a request, as JSON; HTTPError where it is refused."""
    headers = {"content-type": "application/json", "x-participant": code, "authorization": f"Bearer {key}"}
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(f"{url}api/{path}", data, headers), timeout=30) as reply:
        return json.load(reply)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_served_study_ends_cleanly(tmp_path, study, number):
    keys = tmp_path / "keys"
    with server(tmp_path / "study", f"keys={keys}", f"store={tmp_path / 'own.sqlite'}") as (process, url):
        key = keys.read_text().splitlines()[-1]
        with pytest.raises(HTTPError, match="401"):
            ask(url, "study")
        progress = ask(url, "participants", {"study_id": study.study_id, "consent": True}, key=key)
        choice = {"item_id": progress["question"]["item_id"], "best": 0, "worst": 1, "seconds": 1.0}
        ask(url, "votes", {"study_id": study.study_id, **choice}, progress["code"], key)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and f"people open {url}#{key}" in out and "Traceback" not in err
    assert "stopped: 1 of 6 votes, 1 of 3 participants joined, 0 finished" in err
    # Where it was closed cleanly, the file is all there is.
    assert sorted(path.name for path in tmp_path.glob("own*")) == ["own.sqlite"]


@pytest.mark.soak
def test_two_servers_share_a_store_and_a_port_is_one_servers(tmp_path, study):
    with server(tmp_path / "study") as (_, first), server(tmp_path / "study") as (_, second):
        progress = ask(first, "participants", {"study_id": study.study_id, "consent": True})
        for url in (second, first):
            choice = {"item_id": progress["question"]["item_id"], "best": 0, "worst": 1, "seconds": 1.0}
            progress = ask(url, "votes", {"study_id": study.study_id, **choice}, progress["code"])
        assert progress["question"] is None
        port = first.rstrip("/").rpartition(":")[2]
        command = [sys.executable, "-m", "jobs.study", "serve", f"study={tmp_path / 'study'}", f"port={port}"]
        third = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
        assert third.returncode == 2 and "Address already in use" in third.stderr


class Crowd:
    """Participants who choose at random over HTTP and send a choice again until they get a reply."""

    def __init__(self, url, study):
        self.url, self.study = url, study
        self.lock = threading.Lock()
        self.acknowledged = {}
        self.num_cut = 0
        # A lost reply to a consent would leave a seat empty: all join before the first kill.
        self.joined = threading.Barrier(15)

    def patiently(self, path, body=None, code=""):
        while True:
            try:
                return ask(self.url, path, body, code)
            except (OSError, HTTPException) as error:
                assert not isinstance(error, HTTPError), error.read()
                is_refused = isinstance(getattr(error, "reason", error), ConnectionRefusedError)
                with self.lock:
                    # Not those that came while no server was there.
                    self.num_cut += not is_refused
                time.sleep(0.05)

    def take_part(self, seed):
        rng = random.Random(seed)
        progress = self.patiently("participants", {"study_id": self.study.study_id, "consent": True})
        code = progress["code"]
        self.joined.wait()
        while progress["question"]:
            best, worst = rng.sample(range(len(SYSTEMS)), 2)
            item_id = progress["question"]["item_id"]
            choice = {"study_id": self.study.study_id, "item_id": item_id, "best": best, "worst": worst, "seconds": 1.5}
            progress = self.patiently("votes", choice, code)
            with self.lock:
                self.acknowledged[code, item_id] = (best, worst)


@pytest.mark.soak
def test_no_vote_is_lost_or_doubled_by_twenty_kills(tmp_path, record_property):
    folder = tmp_path / "study"
    study = write_small_study(folder, num_items=25, num_participants=14)
    port, kills = find_free_port(), 0
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "jobs.study", "serve", f"study={folder}", f"port={port}"]

    def start():
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until_up(process, url)
        return process

    process, crowd = start(), Crowd(url, study)
    people = [threading.Thread(target=crowd.take_part, args=(seed,)) for seed in range(14)]
    for person in people:
        person.start()
    try:
        crowd.joined.wait()
        # Each 16 votes or so, in the middle of whatever it does.
        while kills < 20:
            while len(crowd.acknowledged) < 16 * (kills + 1):
                time.sleep(0.001)
            process.kill()
            process.wait()
            kills += 1
            process = start()
        for person in people:
            person.join()
    finally:
        process.kill()
        process.wait()
    with VoteStore(folder / STORE_FILE) as store:
        votes = store.list_votes(study.study_id)
        joined = store.list_participants(study.study_id)
    stored = {(v.participant, v.item_id): (v.systems.index(v.best), v.systems.index(v.worst)) for v in votes}
    # 1. Every acknowledged vote is there, as it was chosen, once; and no other.
    assert len(votes) == len(stored) == 14 * 25 and stored == crowd.acknowledged
    # 2. Values of each vote sum to 0; so do the rows of table 5.
    assert all(sum(vote.score(system) for system in SYSTEMS) == 0 for vote in votes)
    # 3. For each item every system was at every position equally often, up to one.
    assert [person.number for person in joined] == list(range(14))
    for item in study.items:
        orders = [vote.systems for vote in votes if vote.item_id == item.item_id]
        counts = Counter(pair for order in orders for pair in enumerate(order))
        assert len(counts) == 16 and max(counts.values()) - min(counts.values()) <= 1
    figures = f"{len(votes)} votes, {kills} kills, {crowd.num_cut} requests cut off"
    print(figures)
    record_property("figures", figures)
