"""Requests made up from the OpenAPI schema, right ones and wrong ones: no answer is a fault of the server, and each is
one that the schema tells. ``make soak`` asks 2,000."""

import base64
from collections import Counter

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from schemathesis.specs.openapi import checks as openapi_checks

from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from wm.images import encode_png

CASES = [200, pytest.param(2000, marks=pytest.mark.soak)]
"""In all, of both kinds; fewer where an endpoint has nothing to vary."""
PNG = encode_png(np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8))
URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
WORK = ["/v1/images/edits", "/v1/chat/completions", "/v1/wm/score", "/v1/wm/rollouts"]
ALSO = ["/v1/score", "/v1/rollouts"]
"""Older names of the two above."""
READ = ["/v1/models", "/v1/models/{model_id}", "/v1/examples", "/v1/examples/{example_id}", "/health"]


@pytest.fixture(scope="module")
def app(tiny_base):
    limits = {"max_best_of": 4, "num_candidates": 2, "max_actions": 3, "max_body_bytes": 200_000}
    return local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), **limits))


@pytest.fixture(scope="module")
def schema(app):
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def with_pictures(value):
    """The same, with pictures where there is room for one: what is behind their check is reached too."""
    if isinstance(value, list):
        return [with_pictures(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: with_pictures(item) for key, item in value.items()}
    for key in ("image", "url", "image_url"):
        if isinstance(found.get(key), str):
            found[key] = URL
        elif isinstance(found.get(key), bytes):
            found[key] = PNG
    if isinstance(found.get("targets"), list):
        found["targets"] = [URL if isinstance(item, str) else item for item in found["targets"]]
    if isinstance(found.get("messages"), list):
        found["messages"] = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}] * 2}]
    return found


RIGHT, WRONG = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize(
    ("path", "mode"),
    # No request that only reads is wrong by the schema.
    [(path, mode) for path in WORK for mode in (RIGHT, WRONG)] + [(path, RIGHT) for path in READ],
)
def test_no_request_is_a_fault_of_the_server(schema, path, mode, cases, record_property):
    operation = schema[path]["post" if path in WORK else "get"]
    statuses: Counter[int] = Counter()
    examples = max(1, cases // (2 * len(WORK)) - 1) if path in WORK else max(1, min(cases // 40, 20))

    @seed(0)
    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=HealthCheck
    )
    @given(case=operation.as_strategy(generation_mode=mode), pictures=st.booleans())
    def ask(case, pictures):
        if pictures:
            case.body = with_pictures(case.body)
        reply = case.call()
        statuses[reply.status_code] += 1
        case.validate_response(reply, checks=CHECKS)

    ask()
    record_property("statuses", dict(statuses))
    print(path, mode.value, dict(statuses))
    assert 500 not in statuses and sum(statuses.values()) >= 1


def test_the_schema_tells_every_error_in_one_form(app):
    found = app.openapi()
    assert set(found["components"]["schemas"]["Error"]["properties"]) == {"error"}
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            told = set(operation["responses"])
            if path.startswith("/v1/"):
                assert {"200", "400", "401", "403", "404", "408", "429", "503"} <= told, path
                assert ({"413", "415"} <= told) == (method == "post")
            assert "422" not in told
            for status in told - {"200"}:
                kind = operation["responses"][status]["content"]["application/json"]
                assert kind["schema"] == {"$ref": "#/components/schemas/Error"}
    streams = [
        path
        for path, methods in found["paths"].items()
        for operation in methods.values()
        if "text/event-stream" in operation["responses"]["200"]["content"]
    ]
    assert streams == ["/v1/images/edits", "/v1/chat/completions", "/v1/rollouts", "/v1/wm/rollouts"]
    assert set(found["paths"]) == set(WORK + ALSO + READ), "every endpoint is asked above"
