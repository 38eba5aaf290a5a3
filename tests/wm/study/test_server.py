"""The server of a study: what it answers, what it refuses and how, and that nothing it sends names a system."""

import io
import json
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from tests.helpers.study_data import SYSTEMS, write_small_study
from wm.evaluation.votes.records import Vote
from wm.study.access import MAX_MISSES
from wm.study.guards import MAX_BODY_BYTES
from wm.study.order import order_items, order_systems
from wm.study.server import build_app
from wm.study.session import StudySession
from wm.study.store import RefusedError, VoteStore
from wm.study.study import IMAGES, STORE_FILE

KEY = "key-of-an-invitation-0123456789"
STUDY = {"study_id": "study-of-tests"}


class Person:
    """A participant who speaks HTTP."""

    def __init__(self, client):
        self.client = client
        self.progress = client.post("/api/participants", json=STUDY | {"consent": True}).json()
        self.headers = {"x-participant": self.progress["code"]}

    def vote(self, **changes):
        choice = STUDY | {"item_id": self.progress["question"]["item_id"], "best": 0, "worst": 1, "seconds": 2.5}
        reply = self.client.post("/api/votes", json=choice | changes, headers=self.headers)
        if reply.is_success:
            self.progress = reply.json()
        return reply


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return write_small_study(folder, num_items=4, num_participants=5), folder


@pytest.fixture
def open_client(made, tmp_path):
    """Clients of servers of the study over one new store."""
    study, folder = made
    with VoteStore(tmp_path / STORE_FILE) as store:

        def build(**options):
            seats = options.pop("open_seats", 0)
            app = build_app(StudySession(study, folder, store, open_seats=seats), **options)
            client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
            client.store = store
            return client

        yield build


@pytest.fixture
def client(open_client):
    return open_client()


def refusal(reply, status, code):
    """The sentence of a refusal, which must be one."""
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (status, code), error
    assert len(re.findall(r"[.!?](?: |$)", error["message"])) == 1 and error["message"][-1] == "."
    return error["message"]


def test_a_person_goes_through_the_study(client, made):
    study, _ = made
    person = Person(client)
    assert (person.progress["done"], person.progress["total"]) == (0, 4)
    questions = []
    while person.progress["question"]:
        questions.append(person.progress["question"])
        upcoming = person.progress["upcoming"]
        assert person.vote(best=2, worst=0).status_code == 200
        assert person.progress["question"] == upcoming
    assert (person.progress["done"], person.progress["upcoming"]) == (4, None)
    items = order_items(study, 0)
    assert [question["item_id"] for question in questions] == [item.item_id for item in items]
    assert [question["action"] for question in questions] == [item.action for item in items]
    votes = client.store.list_votes(study.study_id)
    assert [vote.systems for vote in votes] == [tuple(order_systems(study, item, 0)) for item in items]
    assert all((vote.best, vote.worst) == (vote.systems[2], vote.systems[0]) for vote in votes)
    assert {(vote.participant, vote.seconds, vote.origin) for vote in votes} == {(person.progress["code"], 2.5, "page")}


def test_images_are_those_of_the_persons_order(client, made):
    study, folder = made
    for number in range(2):
        question = Person(client).progress["question"]
        item = study.item(question["item_id"])
        names = [item.source, *(item.candidates[name] for name in order_systems(study, item, number))]
        for address, name in zip([question["source"], *question["candidates"]], names, strict=True):
            reply = client.get(f"/{address}")
            assert reply.content == (folder / IMAGES / name).read_bytes()
            assert reply.headers["content-type"] == "image/png"


def test_a_person_comes_back_with_the_code(client, open_client):
    person = Person(client)
    person.vote()
    typed = person.progress["code"].lower().replace("-", " ")
    # Another server of the same store: after a restart, or on another device.
    for reply in (
        open_client().post("/api/return", json={"code": typed}),
        open_client().get("/api/progress", headers=person.headers),
    ):
        assert reply.json() == person.progress
    assert open_client().get(f"/{person.progress['question']['source']}").status_code == 200


def test_the_same_choice_twice_is_stored_once(client):
    person = Person(client)
    first = person.progress["question"]["item_id"]
    assert person.vote().json() == person.vote(item_id=first).json()
    assert "first choice counts" in refusal(person.vote(item_id=first, best=3), 409, "answered")
    assert len(client.store.list_votes(STUDY["study_id"])) == 1 and person.progress["done"] == 1


def test_bad_votes_are_refused_and_nothing_is_lost(client):
    person = Person(client)
    assert person.vote().status_code == 200
    before = client.store.list_votes(STUDY["study_id"])
    later = person.progress["upcoming"]["item_id"]
    refusal(person.vote(worst=0), 409, "refused")
    refusal(person.vote(best=4), 409, "refused")
    assert "another study" in refusal(person.vote(study_id="older"), 409, "other_study")
    for item_id in (later, "item999", ""):
        assert "out of date" in refusal(person.vote(item_id=item_id), 409, "stale")
    for wrong in (
        {"best": -1},
        {"best": "0"},
        {"best": True},
        {"best": 0.0},
        {"seconds": -1},
        {"seconds": "1"},
        {"x": 1},
    ):
        assert next(iter(wrong)) in refusal(person.vote(**wrong), 400, "malformed")
    person.headers = {"x-participant": "BBBB-BBBB-BBBB"}
    refusal(person.vote(), 404, "unknown")
    person.headers = {}
    refusal(person.vote(), 404, "unknown")
    assert client.store.list_votes(STUDY["study_id"]) == before


@pytest.mark.parametrize(
    "body", [b"", b"[", b"null", b"[]", b'"text"', b"\xff\xfe", b"[" * 9000, b'{"best": 1e999}', b"1" * 9000, b"{}"]
)
def test_hostile_bodies_are_refused(client, body):
    person = Person(client)
    headers = person.headers | {"content-type": "application/json"}
    for path in ("votes", "participants", "return", "withdrawals"):
        message = refusal(client.post(f"/api/{path}", content=body, headers=headers), 400, "malformed")
        assert len(message) < 120


def test_other_types_of_bodies_are_refused(client):
    body = json.dumps(STUDY | {"consent": True})
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        refusal(client.post("/api/participants", content=body, headers={"content-type": kind}), 400, "malformed")
    assert "agreed" in refusal(client.post("/api/participants", json=STUDY | {"consent": False}), 400, "malformed")


def test_a_megabyte_of_text_is_refused(client):
    person = Person(client)
    text = "x" * 2**20
    assert "larger than" in refusal(person.vote(item_id=text), 413, "too_large")
    headers = person.headers | {"content-type": "application/json"}
    for body in ((text[:4096].encode() for _ in range(300)), iter([b" " * MAX_BODY_BYTES, b" "])):
        refusal(client.post("/api/votes", content=body, headers=headers), 413, "too_large")
    refusal(client.post("/api/return", json={"code": "x" * 5000}), 400, "malformed")
    assert person.vote().status_code == 200


def test_a_full_disk_is_reported_and_loses_nothing(client):
    person = Person(client)
    assert person.vote().status_code == 200
    connection = client.store._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    # What is free in the file's last pages is used up first.
    short = Vote("other", client.store.add_participant("other").code, "", "", "", ("a", "b"), "a", "b", 1.0, "now")
    with pytest.raises(RefusedError, match="disk is full"):
        for number in range(1000):
            client.store.add_vote(replace(short, item_id=str(number)))
    reply = person.vote()
    assert "disk is full" in refusal(reply, 503, "unavailable") and reply.headers["retry-after"] == "5"
    assert len(client.store.list_votes(STUDY["study_id"])) == 1
    connection.execute("PRAGMA max_page_count = 1000000")
    assert person.vote().status_code == 200


def test_seats_end_with_those_planned_and_open_ones(client, open_client):
    for _ in range(5):
        Person(client)
    reply = client.post("/api/participants", json=STUDY | {"consent": True})
    assert "all the participants" in refusal(reply, 403, "full")
    assert Person(open_client(open_seats=1)).progress["done"] == 0
    refusal(client.post("/api/participants", json={"study_id": "older", "consent": True}), 409, "other_study")


def test_a_person_withdraws(client):
    person = Person(client)
    person.vote()
    refusal(client.post("/api/withdrawals", json={"study_id": "older"}, headers=person.headers), 409, "other_study")
    assert client.post("/api/withdrawals", json=STUDY, headers=person.headers).json() == {"withdrawn": True}
    refusal(client.get("/api/progress", headers=person.headers), 404, "unknown")
    assert client.store.list_votes(STUDY["study_id"]) == []


def test_guessing_codes_ends_soon(client):
    person = Person(client)
    for _ in range(MAX_MISSES):
        refusal(client.post("/api/return", json={"code": "BBBB-BBBB-BBBB"}), 404, "unknown")
    # A right one must not show either.
    for code in ("BBBB-BBBB-BBBC", person.progress["code"]):
        reply = client.post("/api/return", json={"code": code})
        assert "Too many" in refusal(reply, 429, "too_many") and reply.headers["retry-after"] == "60"


def test_with_keys_nobody_comes_in_without_one(open_client):
    client = open_client(keys=(KEY, "another-key-of-twenty-two-letters"), is_local=False)
    wrong = [{}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}, {"authorization": "Bearer ü"}]
    for headers in wrong:
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        for path in ("study", "progress"):
            assert "invitation" in refusal(client.get(f"/api/{path}", headers=raw), 401, "key")
        refusal(client.post("/api/participants", json=STUDY | {"consent": True}, headers=raw), 401, "key")
    assert client.get("/").status_code == client.get("/health").status_code == 200
    client.headers["authorization"] = f"bearer {KEY}"
    person = Person(client)
    assert person.vote().status_code == 200
    # An <img> sends no key: nobody else knows the address.
    del client.headers["authorization"]
    assert client.get(f"/{person.progress['question']['source']}").status_code == 200


def test_wrong_keys_shut_out_nobody_who_has_a_right_one(open_client):
    # Behind a tunnel all have one address: a stranger who is wrong all the time must not stop the study.
    client = open_client(keys=(KEY,), is_local=False)
    wrong = {"authorization": f"Bearer {KEY}x"}
    for _ in range(MAX_MISSES):
        refusal(client.get("/api/study", headers=wrong), 401, "key")
    refusal(client.get("/api/study", headers=wrong), 429, "too_many")
    client.headers["authorization"] = f"Bearer {KEY}"
    assert Person(client).vote().status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "[", "10.0.0.1:8010"])
def test_on_loopback_other_host_names_get_no_answer(client, open_client, host):
    refusal(client.get("/api/study", headers={"host": host}), 421, "host")
    assert open_client(is_local=False).get("/api/study", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["localhost:8010", "127.0.0.1", "[::1]:8010"])
def test_names_of_this_machine_get_an_answer(client, host):
    assert client.get("/api/study", headers={"host": host}).status_code == 200


def test_unknown_addresses_are_refused(client):
    person = Person(client)
    tag = person.progress["question"]["source"].split("/")[1]
    other = Person(client).progress["question"]["source"].rpartition("/")[2]
    for path in (
        "nothing",
        "web/study.json",
        "web/..%2fstudy.json",
        f"images/{tag}/0000f.png",
        f"images/{tag}/{other}",
    ):
        refusal(client.get(f"/{path}"), 404, "unknown")
    assert client.put("/api/votes").status_code == 405


def test_a_mistake_of_the_server_says_nothing_about_it(client, monkeypatch):
    person = Person(client)
    monkeypatch.setattr(client.store, "list_votes", lambda *_: 1 / 0)
    reply = client.get("/api/progress", headers=person.headers)
    assert "please try again" in refusal(reply, 500, "failed") and "division" not in reply.text
    assert "Content-Security-Policy" in reply.headers


def test_answers_carry_headers_that_keep_the_page_to_itself(client):
    for path in ("/", "/web/main.js", "/api/study", "/nothing"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-store" and "set-cookie" not in headers


def test_the_page_has_no_script_or_style_of_its_own(client):
    page = client.get("/").text
    assert re.findall(r"<script\b[^>]*>(.*?)</script>", page, re.DOTALL) == [""]
    assert not re.search(r"<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org/2000/svg)", page)
    for name in re.findall(r'(?:href|src)="(web/[^"]+)"', page):
        assert client.get(f"/{name}").status_code == 200


def test_nothing_sent_names_a_system_or_compares_people(client, made):
    """Addresses, headers and sizes of two people have nothing in common but what each of them sees."""
    study, _ = made
    seen = []
    for _ in range(2):
        person, addresses, lengths = Person(client), [], []
        while person.progress["question"]:
            text = json.dumps(person.progress)
            assert not any(name in text for name in (*SYSTEMS, "t0", '"ag"', "f.png"))
            question = person.progress["question"]
            for address in [question["source"], *question["candidates"]]:
                reply = client.get(f"/{address}")
                assert not {"etag", "last-modified", "content-disposition"} & set(reply.headers)
                addresses.append(address)
                lengths.append(tuple(sorted(reply.headers.keys())))
            person.vote()
        seen.append(set(addresses))
        assert len(addresses) == len(set(addresses)) == 5 * len(study.items) and len(set(lengths)) == 1
        tags = {address.split("/")[1] for address in addresses}
        assert len(tags) == 1 and all(re.fullmatch(r"images/[0-9a-f]{32}/[0-9a-f]{32}", one) for one in addresses)
    parts = [{part for address in addresses for part in address.split("/")[1:]} for addresses in seen]
    assert not parts[0] & parts[1]
    sheet = client.get("/api/study").text
    assert not any(name in sheet for name in SYSTEMS)


def test_systems_change_places_from_person_to_person(client, made):
    study, folder = made
    red = {}
    for number in range(4):
        question = Person(client).progress["question"]
        for position, address in enumerate(question["candidates"]):
            pixels = np.asarray(Image.open(io.BytesIO(client.get(f"/{address}").content)))
            item = next(item for item in study.items if item.item_id == question["item_id"])
            base = np.asarray(Image.open(folder / IMAGES / item.source))[0, 0, 0]
            red[number, position] = SYSTEMS[(int(pixels[0, 0, 0]) - int(base)) // 20 - 1]
    orders = [[red[number, position] for position in range(4)] for number in range(4)]
    assert all(sorted(order) == sorted(SYSTEMS) for order in orders)
    assert any(first != second for first, second in pairwise(orders))
