"""Scores of given actions over the app in this process, against the library."""

import base64

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from tests.helpers.serve_questions import ACTIONS, URLS, folders_of, library_of, score
from wm.dynamics import score_actions
from wm.images import encode_png

HALF = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((24, 25, 3), np.uint8))).decode()


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    return folders_of(tiny_base, tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def library(folders):
    return library_of(folders)


@pytest.fixture(scope="module", params=["separate", "merged"])
def http(folders, request):
    with TestClient(
        local_app(ServeRecipe(**folders, base_sharing=request.param, max_scores=12, max_pixels=600))
    ) as client:
        yield client


def test_every_target_is_scored_with_every_action(http, library):
    idm, codes = library
    reply = score(http).json()
    expected = score_actions(idm, [codes[0]] * 8, [codes[1]] * 4 + [codes[2]] * 4, ACTIONS * 2)
    assert (reply["object"], reply["model"]) == ("list", "idm")
    assert [(entry["target"], entry["action"]) for entry in reply["data"]] == [(t, a) for t in (0, 1) for a in range(4)]
    for entry, truth in zip(reply["data"], expected, strict=True):
        assert (entry["text"], entry["tokens"]) == (truth.text, truth.num_tokens)
        assert entry["logprob"] == pytest.approx(truth.logprob, abs=1e-4)
        assert entry["mean_logprob"] == entry["logprob"] / entry["tokens"]
    best = max(range(8), key=lambda row: expected[row].logprob)
    assert reply["best"] == reply["data"][best]


def test_order_changes_no_score_and_equal_ones_go_to_the_first(http):
    forward = score(http).json()["data"]
    backward = score(http, targets=URLS[:0:-1], actions=ACTIONS[::-1]).json()["data"]
    assert [entry["logprob"] for entry in backward[::-1]] == pytest.approx(
        [entry["logprob"] for entry in forward], abs=1e-4
    )
    same = score(http, targets=[URLS[2]] * 3, actions=[" down "]).json()
    assert same["best"] == same["data"][0] and same["best"]["text"] == "down"


def test_more_than_a_turn_is_the_same(folders, library):
    """Both what is encoded and what is scored is done in parts."""
    idm, codes = library
    with TestClient(local_app(ServeRecipe(**folders))) as http:
        reply = score(http, targets=(URLS * 7)[:20], actions=ACTIONS[:3]).json()
    targets = [(codes * 7)[row] for row in range(20) for _ in range(3)]
    expected = score_actions(idm, [codes[0]] * 60, targets, ACTIONS[:3] * 20)
    assert [entry["logprob"] for entry in reply["data"]] == pytest.approx([one.logprob for one in expected], abs=1e-4)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"image": 3}, "image", "image = 3"),
        ({"image": "http://localhost/a.png"}, "image", "fetches nothing"),
        ({"image": URLS[0][22:]}, "image", "expected a data URL"),
        ({"targets": []}, "targets", "at least 1 item"),
        ({"targets": URLS[0]}, "targets", "targets = 'data:"),
        ({"targets": [URLS[0], 3]}, "targets[1]", "targets[1] = 3"),
        ({"targets": [URLS[0], "data:image/png;base64,aGVsbG8="]}, "targets[1]", "targets[1] is no readable image"),
        ({"targets": [HALF, HALF]}, "targets[1]", "the images up to targets[1] have more than 1,200 pixels together"),
        ({"actions": []}, "actions", "at least 1 item"),
        ({"actions": ["put", ""]}, "actions[1]", "actions[1] is empty"),
        ({"actions": ["a\0b"]}, "actions[0]", "NUL"),
        ({"actions": ["x" * 1001]}, "actions[0]", "1,001 characters"),
        ({"actions": ["put"] * 7}, "actions", "2 targets with 7 actions are 14 scores; at most 12"),
        ({"actions": ["put <pad> on", "put"]}, None, "reserved token '<pad>'"),
        ({"actions": ["put " * 200]}, None, "the model 96 positions"),
        ({"best_of": 2}, "best_of", "unknown field 'best_of'; the fields are image, targets, actions, model"),
        ({"model": "fdm"}, "model", "describes no actions"),
    ],
)
def test_bad_scorings_are_told(http, fields, param, says):
    reply = score(http, **fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert says in error["message"] and "\n" not in error["message"]
