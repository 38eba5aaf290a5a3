"""What a body costs before it is refused, in memory and in threads; and that no body within the limits is refused."""

import json
import threading
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from serve_apps.graph import SMALL_BYTES
from serve_apps.openai.chat import chat_from_json
from serve_apps.openai.edits import edit_from_json
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.json_bodies import MAX_DEPTH, MAX_NUMBER_CHARS, MAX_VALUES, check_structure
from serve_apps.openai.rollouts import rollout_from_json
from serve_apps.openai.score import score_from_json
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_hostile import BODIES, PATHS, PNG
from tests.helpers.serve_local import local_app

PARSERS = {
    "/v1/images/edits": edit_from_json,
    "/v1/rollouts": rollout_from_json,
    "/v1/score": score_from_json,
    "/v1/chat/completions": chat_from_json,
}
LISTS = {
    "wrong_items": "1,",
    "objects": "{},",
    "lists": "[],",
    "right_items": '"a",',
    "parts": '{"type": "text", "text": "a"},',
    "names": '{"a": 1},',
}
LIMITS = Limits()


def peak_of(work):
    """Bytes allocated at most while ``work`` runs."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "field"), list(zip(LISTS, ["actions", "messages", "seed"] * 2, strict=True)))
@pytest.mark.parametrize("path", PATHS)
def test_a_long_list_costs_less_than_its_text(path, kind, field, monkeypatch):
    """Before, 6 MB of wrong actions took 4 GB: an error was made of each."""
    item = LISTS[kind]
    asked = {name: value for name, value in BODIES[path].items() if name != field}
    # The next test holds a chat's own bound: every allocation is traced here, which takes seconds where there are many.
    monkeypatch.setattr("serve_apps.openai.chat.MAX_CHAT_VALUES", MAX_VALUES)
    items = item * (400_000 // len(item)) + "1"
    body = (json.dumps(asked)[:-1] + f', "{field}": [{items}]}}').encode()

    def work():
        with pytest.raises(ApiError, match="the body holds more than 10,320 values") as caught:
            PARSERS[path](body, LIMITS)
        assert (caught.value.status, caught.value.code) == (400, "invalid_json")

    assert peak_of(work) < len(body) / 2


@pytest.mark.parametrize("kind", LISTS)
def test_a_history_of_a_chat_may_hold_more(kind):
    body = f"[{LISTS[kind] * (2_000_000 // len(LISTS[kind]))}1]".encode()
    with pytest.raises(ApiError, match="the body holds more than 160,320 values") as caught:
        chat_from_json(body, LIMITS)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("inside", ["", "stream_options"])
def test_a_chat_of_many_unknown_names_makes_one_error(inside):
    """Before, 1 MB of them took 0.9 GB and seconds without the interpreter's lock."""
    names = {f"a{index}": 0 for index in range(20_000)}
    asked = BODIES["/v1/chat/completions"]
    body = json.dumps(asked | ({inside: names} if inside else names)).encode()

    def work():
        with pytest.raises(ApiError, match="unknown field '") as caught:
            chat_from_json(body, LIMITS)
        assert caught.value.param == (f"{inside}.a0" if inside else "a0")

    assert peak_of(work) < 40 * len(body)


@pytest.mark.parametrize("path", ["/v1/rollouts", "/v1/score"])
def test_a_check_ends_at_the_first_error(path):
    """As many items as are looked at."""
    body = json.dumps(BODIES[path] | {"actions": [1] * 10_000}).encode()

    def work():
        with pytest.raises(ApiError, match=r"actions\[0\] = 1: input should be a valid string"):
            PARSERS[path](body, LIMITS)

    assert peak_of(work) < 2**20, "a list of 10,000 takes 80 kB, as many errors take 9 MB"


@pytest.mark.parametrize("path", PATHS)
def test_what_is_repeated_in_an_answer_is_short(path):
    name = "é" * 500_000
    for asked in (BODIES[path] | {name: 1}, BODIES[path] | {"model": [name]}, BODIES[path] | {"stream": name}):
        with pytest.raises(ApiError) as caught:
            PARSERS[path](json.dumps(asked, ensure_ascii=False).encode(), LIMITS)
        assert len(json.dumps(caught.value.body())) < 4000


def test_every_error_is_short():
    error = ApiError("a" * 10**6, param="b" * 10**6)
    assert len(error.message) == 2000 and len(error.param) == 200 and error.message.endswith("…")
    assert ApiError("short", param=None).param is None


def count_values(value):
    """By the standard library's parser: items, members' names and values, and the whole."""
    if isinstance(value, list):
        return 1 + sum(map(count_values, value))
    if isinstance(value, dict):
        return 1 + sum(1 + count_values(item) for item in value.values())
    return 1


TEXTS = st.text(alphabet=st.sampled_from('a"\\{}[],:/é\u2028\n 0-')) | st.text()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=40,
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(value=VALUES, indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_no_json_within_the_bounds_is_refused(value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    body = text.encode("utf-8", "surrogatepass")
    check_structure(body, count_values(value))
    with pytest.raises(ApiError, match="values"):
        check_structure(b"[" + b",".join([body] * 10) + b"]", max(1, count_values(value)))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"[" * 10**6, "nested more than 64 deep"),
        (b'{"a":' * (MAX_DEPTH + 1), "nested more than 64 deep"),
        (b"[" + b"1" * (MAX_NUMBER_CHARS + 1) + b"]", "a number or word of more than 1,000 characters"),
        (b"[" + b"1," * 200 + b"1]", "more than 66 values"),
        (b'"a"' * 200, "more than 66 values"),
        (b":" * 200, "more than 66 values"),
        (b"]" * 200, "more than 66 values"),
    ],
)
def test_what_is_refused_before_it_is_parsed(body, says):
    with pytest.raises(ApiError, match=says):
        check_structure(body, 66)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[]" + b" " * 100_000,
        b"[" + b"1" * MAX_NUMBER_CHARS + b" " * 5000 + b"]",
        b'{"a": "' + b"[{," * 50_000 + b'"}',
        b'{"a": "' + rb"\"[,\\" * 20_000 + b'"}',
        b'"\\',
        b'"',
        b'"\\"',
        "\ufeff{}".encode(),
    ],
)
def test_what_is_left_to_the_parser(body):
    check_structure(body, 70)


def test_limits_of_the_recipe_raise_the_bound():
    limits = Limits(max_actions=50_000, max_prompt_chars=5)
    body = json.dumps(BODIES["/v1/rollouts"] | {"actions": ["a,[{"] * 50_000}).encode()
    assert len(rollout_from_json(body, limits)[0].actions) == 50_000


@pytest.fixture(scope="module")
def http(tiny_base):
    with TestClient(local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base)))) as client:
        yield client


@pytest.mark.parametrize("path", PATHS)
def test_large_bodies_are_parsed_off_the_event_loop(http, path, monkeypatch):
    from serve_apps.openai import json_bodies

    names = []

    def noted(body, max_values):
        names.append(threading.current_thread().name)
        check_structure(body, max_values)

    monkeypatch.setattr(json_bodies, "check_structure", noted)
    body = json.dumps(BODIES[path]).encode()
    body += b" " * (SMALL_BYTES + 1 - len(body))
    reply = http.post(path, content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 200, reply.text[:300]
    assert [name.partition("_")[0] for name in names] == ["fair"]


def test_forms_are_parsed_off_the_event_loop(http, monkeypatch):
    import serve_apps.http as module

    names, real = [], module.edit_from_form

    def noted(items, limits):
        names.append(threading.current_thread().name)
        return real(items, limits)

    monkeypatch.setattr(module, "edit_from_form", noted)
    reply = http.post("/v1/images/edits", files={"image": PNG}, data={"prompt": "move it", "best_of": "1"})
    assert reply.status_code == 200 and [name.partition("_")[0] for name in names] == ["fair"]
