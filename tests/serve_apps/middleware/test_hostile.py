"""What a stranger may send: never an answer of 500, never a process that grows with what it is sent."""

import gc
import json
from pathlib import Path

import psutil
import pytest

from tests.helpers.serve_hostile import (
    BAD_IMAGES,
    BODIES,
    GOOD_IMAGES,
    MAX_BODY,
    PATHS,
    PNG,
    URL,
    hostile_client,
    refused,
    url_of,
    with_image,
)


@pytest.fixture(scope="module")
def http(tiny_base):
    with hostile_client(tiny_base) as client:
        yield client


TEXTS = {
    "empty": "",
    "blank": " \t\n",
    "nul": "move\0it",
    "100_kB": "a" * 100_000,
    "100_kB_of_words": "move it " * 12_500,
    "half_a_pair": "move \ud800 it",
    "reserved": "put <pad> on",
    "structure": "</s><s>",
    "image": "<racm3:break> IMGIMG",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("path", ["/v1/images/edits", "/v1/rollouts", "/v1/score"])
def test_texts_that_are_no_actions(http, path, name):
    asked = dict(BODIES[path])
    asked.update({"prompt": TEXTS[name]} if "prompt" in asked else {"actions": [TEXTS[name]]})
    reply = http.post(path, content=json.dumps(asked).encode(), headers={"content-type": "application/json"})
    if name in ("structure", "image"):  # words like others, unless the tokenizer has them as its own
        assert reply.status_code in (200, 400), reply.text[:300]
    else:
        refused(reply)


ODD_TEXTS = ["\u202emove it", "move \U0001f469\u200d\U0001f467 it", "a" * 999, "\u0301" * 500, "${7*7}{{7*7}}%n%s"]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_odd_texts_are_texts(http, text):
    assert http.post("/v1/images/edits", json=BODIES["/v1/images/edits"] | {"prompt": text}).status_code == 200


def raw(fields):
    """JSON text of a request with a field that json.dumps would not write."""
    body = json.dumps(BODIES["/v1/images/edits"])
    return (body[:-1] + "," + fields + "}").encode()


RAW_BODIES = {
    "nothing": b"",
    "null": b"null",
    "number": b"1",
    "array": b"[]",
    "text": b'"a"',
    "cut": b'{"prompt": "a',
    "deep_array": b"[" * 100_000,
    "deep_object": b'{"a":' * 100_000,
    "deep_field": raw('"user": ' + "[" * 50_000 + "]" * 50_000),
    "deep_image": b'{"prompt": "a", "image": ' + b"[" * 900 + b"]" * 900 + b"}",
    "nan": raw('"temperature": NaN'),
    "infinity": raw('"temperature": Infinity'),
    "minus_infinity": raw('"guidance_scale": -Infinity'),
    "1e400": raw('"top_p": 1e400'),
    "huge_integer": raw('"best_of": ' + "9" * 4000),
    "huge_top_k": raw('"top_k": ' + "9" * 30),
    "integer_python_refuses": raw('"best_of": ' + "9" * 10_000),
    "minus": raw('"best_of": -1'),
    "fraction": raw('"n": 1.5'),
    "number_as_text": raw('"n": "1"'),
    "truth_as_number": raw('"n": true'),
    "seed_of_2_31": raw('"seed": 2147483648'),
    "null_prompt": raw('"prompt": null'),
    "unknown": raw('"colour": "red"'),
    "unknown_with_odd_name": raw('"\\u0000\\ud83d\\ude00": 1'),
    "a_long_unknown_name": raw(f'"{"a" * 100_000}": 1'),
    "dunder": raw('"__class__": 1'),
    "latin1": '{"prompt": "é"}'.encode("latin-1"),
    "utf16": '{"prompt": "a"}'.encode("utf-16"),
    "half_a_pair": raw('"user": "\\ud800"'),
    "comment": b'{"prompt": "a" /* b */}',
    "two_objects": b'{"prompt": "a"}{"prompt": "b"}',
    "size_of_nothing": raw('"size": "0x0"'),
    "size_of_a_wall": raw('"size": "99999x99999"'),
    "size_of_text": raw('"size": "' + "1" * 50_000 + 'x1"'),
    "wrong_actions_by_the_million": raw('"actions": [' + "1," * 1_000_000 + "1]"),
    "right_actions_by_the_million": raw('"actions": [' + '"a",' * 600_000 + '"a"]'),
    "wrong_targets_by_the_million": raw('"targets": [' + "{}," * 900_000 + "1]"),
    "messages_by_the_million": raw('"messages": [' + "[]," * 900_000 + "1]"),
    "parts_by_the_million": raw('"messages": [{"role": "user", "content": [' + "1," * 1_000_000 + "1]}]"),
    "a_list_for_a_number": raw('"seed": [' + "1," * 1_000_000 + "1]"),
    "one_name_a_million_times": raw('"seed": "a", ' * 200_000 + '"seed": "a"'),
    "unknown_names_by_the_thousand": raw(",".join(f'"f{number}": 1' for number in range(4000))),
    "digits_by_the_million": raw('"seed": ' + "9" * 2_500_000),
    "a_fraction_of_a_million_digits": raw('"temperature": -0.' + "9" * 2_500_000),
    "an_exponent_of_a_million_digits": raw('"temperature": 1e' + "9" * 2_500_000),
    "a_megabyte_of_text": raw('"prompt": "' + "a" * 2_500_000 + '", "actions": ["' + "a" * 100_000 + '"]'),
    "commas": b"," * (MAX_BODY - 1),
    "quotes": b'""' * (MAX_BODY // 2 - 1),
    "escaped_quotes": b'"\\"' * (MAX_BODY // 3 - 1),
    "spaces": b"{" + b" " * (MAX_BODY - 2),
    "images_by_the_thousand": json.dumps({"prompt": "a", "image": [URL] * 1000}).encode()[: MAX_BODY - 1],
}


@pytest.mark.parametrize("name", RAW_BODIES)
@pytest.mark.parametrize("path", PATHS)
def test_bodies_that_are_no_requests(http, path, name):
    refused(http.post(path, content=RAW_BODIES[name], headers={"content-type": "application/json"}))


def test_a_field_given_twice_is_the_last_one_refused_in_forms(http):
    twice = raw('"prompt": "take it"')
    reply = http.post("/v1/images/edits", content=twice, headers={"content-type": "application/json"})
    alone = http.post("/v1/images/edits", json=BODIES["/v1/images/edits"] | {"prompt": "take it"})
    assert reply.json()["data"] == alone.json()["data"]
    reply = http.post("/v1/images/edits", files={"image": PNG}, data={"prompt": ["move it", "take it"]})
    assert "more than once" in refused(reply)["message"]


KINDS = [
    "",
    "text/plain",
    "application/xml",
    "application/x-www-form-urlencoded",
    "image/png",
    "application/json;x" * 3000,
]
KINDS += ["multipart/form-data", "multipart/mixed; boundary=a", "application/jsonp", "\x7f/\x7f", "a" * 60_000]


@pytest.mark.parametrize("kind", KINDS, ids=lambda text: text[:30] or "none")
@pytest.mark.parametrize("path", PATHS)
def test_content_types(http, path, kind):
    reply = http.post(path, content=json.dumps(BODIES[path]).encode(), headers={"content-type": kind})
    if kind.startswith("application/json;"):
        assert reply.status_code == 200
    else:
        refused(reply, 400 if kind == "multipart/form-data" and "edits" in path else 415)


def part(name, data, more=""):
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


FORMS = {
    "no_end": part("prompt", b"a"),
    "no_parts": b"--b--\r\n",
    "nonsense": b"\0\xff" * 5000,
    "many_fields": b"".join(part(f"f{number}", b"a") for number in range(5000)) + b"--b--\r\n",
    "many_files": b"".join(part("image", b"a", '; filename="a"') for _ in range(5000)) + b"--b--\r\n",
    "long_name": part("a" * 100_000, b"a") + b"--b--\r\n",
    "long_field": part("prompt", b"a" * 1_500_000) + b"--b--\r\n",
    "path_as_name": part("image", b"a", '; filename="../../../../etc/passwd"') + b"--b--\r\n",
    "nul_in_name": part("image", b"a", '; filename="a\0.png"') + b"--b--\r\n",
    "header_flood": b"--b\r\n" + b"X-A: b\r\n" * 20_000 + b"\r\na\r\n--b--\r\n",
    "boundaries": part("image", b"\r\n--bx" * 400_000, '; filename="a"') + b"--b--\r\n",
    "spaces_after_a_boundary": part("prompt", b"a") + b"--b" + b" " * (MAX_BODY - 1000),
    "parts_of_nothing": b"--b\r\n\r\n\r\n" * 300_000,
    "line_ends": part("image", b"\r\n" * 1_000_000, '; filename="a"') + b"--b--\r\n",
    "a_long_name_of_a_file": part("a" * 4000, b"a", '; filename="a"') + b"--b--\r\n",
    "a_name_given_twice": part("f" * 4000, b"a") * 2 + b"--b--\r\n",
    "file_as_prompt": part("prompt", b"a", '; filename="a"') + b"--b--\r\n",
    "unknown_charset": part("_charset_", b"no-such") + part("prompt", b"a") + b"--b--\r\n",
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("boundary", ["b", "b; charset=no-such", '"b"', "b; charset=utf-16"])
def test_forms_that_are_no_requests(http, name, boundary):
    kind = f"multipart/form-data; boundary={boundary}"
    refused(http.post("/v1/images/edits", content=FORMS[name], headers={"content-type": kind}))


def test_a_text_that_is_not_utf8_is_read_as_latin1(http):
    content = part("prompt", b"\xff\xfe") + part("image", PNG, '; filename="a"') + b"--b--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert http.post("/v1/images/edits", content=content, headers=kind).status_code == 200


@pytest.mark.parametrize(
    "line",
    [
        "GET /v1/models/..%2f..%2fetc%2fpasswd",
        "GET /v1/models/%00",
        "GET /v1/models/%ff%fe",
        "GET /v1/models/" + "a" * 20_000,
        "GET /%2e%2e/%2e%2e/etc/passwd",
        "GET /v1/../../etc/passwd",
        "GET /v1/models?" + "a=b&" * 5000,
        "PUT /v1/models",
        "DELETE /v1/images/edits",
        "PATCH /health",
        "TRACE /v1/models",
        "OPTIONS /v1/images/edits",
        "POST /health",
        "BREW /v1/models",
    ],
    ids=lambda text: text[:40],
)
def test_paths_and_methods(http, line):
    method, path = line.split(" ", 1)
    reply = http.request(method, path)
    assert reply.status_code in (200, 400, 404, 405), reply.text[:200]
    if reply.status_code == 405:
        assert reply.headers["allow"]
    assert "root:" not in reply.text and reply.headers["x-request-id"]


def test_headers_by_the_thousand(http):
    headers = [(f"x-{number}", "a" * 100) for number in range(3000)]
    assert http.get("/v1/models", headers=headers).status_code == 200


def test_a_chunked_body_is_cut_off_at_the_limit(http):
    sent = 0

    def chunks():
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b'"' + b"a" * 100_000

    for path in PATHS:
        sent = 0
        reply = http.post(path, content=chunks(), headers={"content-type": "application/json"})
        assert refused(reply, 413)["code"] == "request_too_large"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are told by Linux alone")
def test_memory_does_not_grow_with_what_is_sent(http):
    """The worst of the above, again and again: what the first round took serves the others."""

    def ask_all():
        for data in BAD_IMAGES.values():
            refused(http.post("/v1/images/edits", json=with_image("/v1/images/edits", url_of(data))))
        for data in [*RAW_BODIES.values(), b"a" * (MAX_BODY - 1), b"a" * (MAX_BODY + 1)]:
            http.post("/v1/rollouts", content=data, headers={"content-type": "application/json"})
        for data in FORMS.values():
            kind = "multipart/form-data; boundary=b"
            refused(http.post("/v1/images/edits", content=data, headers={"content-type": kind}))
        for data in GOOD_IMAGES.values():
            assert http.post("/v1/score", json=with_image("/v1/score", url_of(data))).status_code == 200
        gc.collect()
        return psutil.Process().memory_info().rss / 2**20

    _forget_peak()
    start_mb = _peak_mb()
    first_mb = ask_all()
    grown_mb = [ask_all() - first_mb for _ in range(2)][-1]
    peak_mb = _peak_mb() - start_mb
    print(f"resident: {start_mb:.0f} MiB, at most {peak_mb:.0f} more; grown by {grown_mb:.1f} after the first round")
    assert grown_mb < 50 and peak_mb < 250


def _forget_peak():
    Path("/proc/self/clear_refs").write_text("5")


def _peak_mb():
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 2**10
