"""One server as it runs: what time limits, clients that leave and headers do to its replicas, and what it exports."""

import base64
import hashlib
import http.client
import re
import time
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import httpx2
import numpy as np
import openai
import psutil
import pytest
import ray

from jobs.shared import ray_session
from serve_apps import metrics
from serve_apps.__main__ import StartRecipe, start, stop
from serve_apps.exposure import find_proxy_host
from serve_apps.middleware.proxy import has_middlewares
from tests.helpers.serve_local import HALF_A_CORE
from wm.images import encode_png
from wm.ports import find_free_port

KEY, RARE_KEY = "wm-alice", "wm-ursula"
TIMEOUT_S = 2.0
REPORT_S = 0.5
PATIENCE_S = 60.0
"""Of what comes at once on an idle machine."""
MOST_ACTIONS = 256
URL = "data:image/png;base64," + base64.b64encode(encode_png(np.zeros((16, 16, 3), np.uint8))).decode()
LONG = {"image": URL, "actions": ["move it"] * MOST_ACTIONS, "best_of": 64, "num_beams": 8, "seed": 1}
ORDERS = {"x-request-disconnect-disabled": "?1", "x-request-timeout-seconds": "0"}
LONG_TOKENS = (1 + (MOST_ACTIONS - 1) * 8) * 64 * 4
"""What it would draw if nobody stopped it: several times what a fast machine draws within the time limit."""


@pytest.fixture(scope="module")
def ports(tiny_base, tmp_path_factory):
    """Of Ray's proxy, and of the process behind it, which listens itself too."""
    keys = tmp_path_factory.mktemp("keys") / "keys.toml"
    limits = {KEY: 1000, RARE_KEY: 1}
    keys.write_text(
        "".join(
            f'[[keys]]\nname = "{key.removeprefix("wm-")}"\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
            f"requests_per_minute = {limit}\n"
            for key, limit in limits.items()
        )
    )
    numbers = {"proxy": find_free_port(), "direct": find_free_port()}
    recipe = StartRecipe(
        fdm=str(tiny_base),
        idm=str(tiny_base),
        keys=str(keys),
        port=numbers["proxy"],
        direct_port=numbers["direct"],
        **HALF_A_CORE,
        timeout_s=TIMEOUT_S,
        max_actions=MOST_ACTIONS,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_metrics_report_interval_ms", str(int(1000 * REPORT_S)))
        ray_session.shutdown()  # one that other tests have started has read neither this nor where the keys are
        try:
            start(recipe)
            yield numbers
        finally:
            stop()


@pytest.fixture(scope="module")
def port(ports):
    return ports["proxy"]


@pytest.fixture(scope="module")
def client(port):
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as session:
        session.post("/v1/images/edits", json={"image": URL, "prompt": "move it", "seed": 1, "best_of": 4})
        yield session


def exported():
    """Values of all series of ours, summed over their labels; and each one's labels."""
    port = ray.nodes()[0]["MetricsExportPort"]
    values: dict[str, float] = {}
    labels: dict[str, set[str]] = {}
    for line in httpx2.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S).text.splitlines():
        found = re.fullmatch(r"(ray_wm_\w+)\{(.*)\} (\S+)", line)
        if found:
            name, text, value = found.groups()
            values[name] = values.get(name, 0.0) + float(value)
            labels.setdefault(name, set()).update(re.findall(r'(\w+="[^"]*")', text))
    return values, labels


def drawn_in_the_end(before):
    """Tokens drawn since, once no more are, 0 if none were; fails where the drawing goes on."""
    last, ended = -1.0, time.monotonic() + PATIENCE_S
    began = time.monotonic() + 30 * REPORT_S
    while time.monotonic() < ended:
        values, _ = exported()
        drawn = values["ray_wm_tokens_sampled_total"]
        # A busy machine may report late: what is told has ended only where no rows are told either.
        if drawn == last and drawn > before and not values.get("ray_wm_rows_decoding", 0.0):
            return drawn - before
        if drawn == before and time.monotonic() > began:
            return 0.0
        last = drawn
        time.sleep(4 * REPORT_S)
    raise AssertionError(f"tokens are still drawn: {last - before:,.0f}")


def drawn_by(ask, before):
    """Tokens that are drawn for ``ask``; it asks again where a busy machine had not begun when it was broken off."""
    for _ in range(4):
        ask()
        drawn = drawn_in_the_end(before)
        if drawn:
            return drawn
    return 0.0


def answered(ask):
    """A reply, asked for again where a busy machine needs the whole time limit before it has begun to answer."""
    for _ in range(8):
        reply = ask()
        if reply.status_code != 408:
            break
    return reply


@pytest.fixture
def before(client):
    return drawn_so_far()


def drawn_so_far():
    """Tokens drawn so far, with nothing at work."""
    last = -1.0
    while last != (now := exported()[0].get("ray_wm_tokens_sampled_total", 0.0)) or not now:
        last = now
        time.sleep(3 * REPORT_S)
    return last


def test_a_time_limit_stops_the_decoding(client, before):
    def ask():
        began_s = time.monotonic()
        reply = client.post("/v1/rollouts", json=LONG)
        assert time.monotonic() - began_s >= TIMEOUT_S
        assert (reply.status_code, reply.json()["error"]["code"]) == (408, "timeout")
        assert reply.headers["x-should-retry"] == "false"

    assert 0 < drawn_by(ask, before) < LONG_TOKENS / 2


def test_a_time_limit_ends_a_stream_and_stops_the_decoding(client, before):
    def ask():
        reply = answered(lambda: client.post("/v1/rollouts", json=LONG | {"stream": True}))
        events = re.findall(r"^event: (.*)$", reply.text, re.M)
        assert reply.status_code == 200 and events[-1] == "error" and "rollout.completed" not in events
        assert '"code": "timeout"' in reply.text.splitlines()[-2]

    assert 0 < drawn_by(ask, before) < LONG_TOKENS / 2


@pytest.mark.parametrize(
    ("order", "way"),
    [({}, "proxy"), (ORDERS, "proxy"), pytest.param(ORDERS, "direct", marks=pytest.mark.soak)],
)
def test_a_client_that_leaves_stops_the_decoding(client, ports, before, order, way):
    """Whatever it orders Ray's proxy to do, and where there is none."""
    url = f"http://127.0.0.1:{ports[way]}/v1/rollouts"
    # Word of a client that leaves just while Ray gives the call to a replica may be lost: the replica's own limit ends
    # that one. So it may happen, but not each time.
    for _ in range(3):
        timeouts_s = iter((0.7, 1.2, 1.7, 1.7))  # all below the server's own limit

        def ask(timeouts_s=timeouts_s):
            with pytest.raises(httpx2.TimeoutException):
                client.post(url, json=LONG, timeout=next(timeouts_s), headers=order)

        drawn = drawn_by(ask, before)
        assert 0 < drawn < LONG_TOKENS
        if drawn < LONG_TOKENS / 4:
            break
        before += drawn
    assert drawn < LONG_TOKENS / 4


def test_a_client_that_leaves_a_stream_stops_the_decoding(client, before):
    for _ in range(8):
        with client.stream("POST", "/v1/rollouts", json=LONG | {"stream": True}) as reply:
            if reply.status_code != 408:
                assert next(reply.iter_lines()) == "event: rollout.step"
                break
    assert 0 < drawn_in_the_end(before) < LONG_TOKENS / 4


def test_openais_client_does_not_repeat_what_timed_out(port, before):
    asked = []
    transport = httpx2.Client(timeout=60, event_hooks={"request": [asked.append]})
    found = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=2, http_client=transport)
    with pytest.raises(openai.APIStatusError, match="took more than 2 s") as caught:
        found.post("/rollouts", body=LONG, cast_to=object)
    assert caught.value.status_code == 408 and len(asked) == 1


def test_figures_reach_prometheus(client, before):
    asked = {"image": URL, "prompt": "move it", "seed": 1, "best_of": 8}
    for _ in range(8):
        drawn_so_far()
        counted = exported()[0]
        reply = client.post("/v1/images/edits", json=asked)
        if reply.status_code != 408:  # else a busy machine: what it has counted is of no use
            break
    assert reply.status_code == 200
    client.get("/v1/models/none"), client.get("/v1/models", headers={"authorization": "Bearer no"})
    # They come from three processes, each in its own time.
    expected = {
        "ray_wm_requests_total": 3,
        "ray_wm_request_seconds_count": 3,
        "ray_wm_tokens_sampled_total": 8 * 4,
        "ray_wm_candidates_count": 1,
        "ray_wm_stage_seconds_count": len(metrics.STAGES),
    }
    deadline = time.monotonic() + PATIENCE_S
    while True:
        values, labels = exported()
        more = {name: values[name] - counted.get(name, 0.0) for name in values}
        if {name: more.get(name) for name in expected} == expected or time.monotonic() > deadline:
            break
        time.sleep(REPORT_S)
    assert {name: more.get(name) for name in expected} == expected
    # Ray tells sums by the middles of buckets: 8 candidates are in that of 7 and 8.
    assert 6 <= more["ray_wm_candidates_sum"] <= 8
    share = reply.json()["data"][0]["verification"]["unchanged_share"]
    assert more["ray_wm_unchanged_share_sum"] == pytest.approx(share, abs=0.1)
    assert {'endpoint="/v1/images/edits"', 'status="404"', 'status="401"'} <= labels["ray_wm_requests_total"]
    assert {f'stage="{stage}"' for stage in metrics.STAGES} <= labels["ray_wm_stage_seconds_count"]
    assert 'deployment="FDMServer"' in labels["ray_wm_tokens_sampled_total"]
    series = {name for metric in metrics.ALL for name in metric.exported}
    never = {metrics.RATE_LIMITED, metrics.RETRIES, metrics.ACCEPTED, metrics.STREAM_ERRORS, metrics.LIMITS_ALONE}
    never |= {metrics.COMPARISONS, metrics.FAILED}
    gauges = {metrics.ROWS, metrics.WAITING, metrics.IN_PROGRESS}  # Ray forgets those that do not change
    assert set(values) <= series
    assert {name for metric in set(metrics.ALL) - never - gauges for name in metric.exported} <= set(values)


def test_a_request_id_is_in_the_answer_and_in_every_log(client):
    reply = client.get("/health")
    assert len(reply.headers.get_list("x-request-id")) == 1
    name = "my-id/é".encode("ascii", "ignore").decode() + str(time.time_ns())
    asked = {"image": URL, "prompt": "move it", "seed": 1, "best_of": 2}
    reply = answered(lambda: client.post("/v1/images/edits", json=asked, headers={"x-request-id": name}))
    assert reply.status_code == 200
    assert reply.headers.get_list("x-request-id") == [name]
    folder = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        files = {file.name for file in folder.iterdir() if file.is_file() and name in file.read_text(errors="replace")}
        if len(files) >= 3:
            break
        time.sleep(0.3)
    for deployment in ("Ingress", "FDMServer", "IDMServer"):
        assert any(deployment in file for file in files), (deployment, files)


def test_the_proxy_has_our_middlewares(port):
    assert has_middlewares("127.0.0.1", port) is True
    assert find_proxy_host() == "127.0.0.1"


def test_no_process_of_the_session_listens_beyond_loopback(client):
    """By the system's own table: Ray's ports, that of the metrics and those of the replicas among them."""
    this = psutil.Process()
    found = {}
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # one that has just ended
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = connection.laddr.ip
    assert ray.nodes()[0]["MetricsExportPort"] in found and len(found) > 8
    beyond = {port: address for port, address in found.items() if not is_loopback(address)}
    assert not beyond, beyond


def is_loopback(text):
    address = ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_metrics_and_routes_tell_no_key(port, client):
    asked = {"headers": {"authorization": f"Bearer {RARE_KEY}"}, "timeout": PATIENCE_S}
    statuses = [httpx2.get(f"http://127.0.0.1:{port}/v1/models", **asked).status_code for _ in range(3)]
    assert statuses == [200, 429, 429]
    label = f'key="{hashlib.sha256(RARE_KEY.encode()).hexdigest()[:8]}"'
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and label not in exported()[1].get("ray_wm_rate_limited_total", ()):
        time.sleep(REPORT_S)
    assert label in exported()[1]["ray_wm_rate_limited_total"]
    text = httpx2.get(f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics", timeout=PATIENCE_S).text
    assert "alice" not in text and "ursula" not in text
    routes = f"http://127.0.0.1:{port}/-/routes"
    assert httpx2.get(routes).status_code == 200
    assert httpx2.get(routes, headers={"x-forwarded-for": "10.0.0.7"}).status_code == 401
    key = {"authorization": f"Bearer {KEY}", "x-forwarded-for": "10.0.0.7"}
    assert httpx2.get(routes, headers=key).status_code == 200
    assert httpx2.get(f"http://127.0.0.1:{port}/-/healthz", headers={"x-forwarded-for": "10.0.0.7"}).text == "success"


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (("x-request-id", b"\xff\xfe"), 400),
        (("x-request-id", b"a" * 513), 400),
        (("x-request-id", b"a b"), 400),
        (("x-request-timeout-seconds", b"\xff"), 200),
        (("x-request-timeout-seconds", b"0.000001"), 200),
        (("X-Request-Timeout-Seconds", b"nan"), 200),
        (("serve_multiplexed_model_id", b"\xff"), 200),
        (("Serve-Multiplexed-Model-Id", b"other"), 200),
        (("x-session-id", b"\xff"), 200),
        (("x-other", b"\xff\xfe"), 200),
        (("cookie", b"a" * 60_000), 200),
        (("content-length", b"-1"), 400),
        (("transfer-encoding", b"gzip"), 400),
    ],
)
@pytest.mark.parametrize("way", ["proxy", "direct"])
def test_headers_are_no_orders_and_no_faults(ports, client, way, header, status):
    connection = http.client.HTTPConnection("127.0.0.1", ports[way], timeout=PATIENCE_S)
    connection.putrequest("GET", "/v1/models")
    connection.putheader("Authorization", f"Bearer {KEY}")
    connection.putheader(*header)
    connection.endheaders()
    reply = connection.getresponse()
    assert reply.status == status, reply.read()[:200]
    connection.close()
    assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("way", ["proxy", "direct"])
def test_strangers_are_asked_for_a_key(ports, way):
    with httpx2.Client(base_url=f"http://127.0.0.1:{ports[way]}", timeout=PATIENCE_S) as session:
        assert session.get("/v1/models").status_code == 401
        reply = session.post("/v1/rollouts", json=LONG)
        assert (reply.status_code, reply.headers["www-authenticate"]) == (401, 'Bearer realm="wm"')
        assert session.get("/health").status_code == 200
        forwarded = {"x-forwarded-for": "10.0.0.7"}
        assert session.get("/-/routes", headers=forwarded).status_code == 401
        assert session.get("/-/healthz", headers=forwarded).text == "success"


def test_both_ports_give_the_same_answers(ports, client):
    asked = {"image": URL, "prompt": "move it", "seed": 3, "best_of": 4}
    replies = {}
    for way, number in ports.items():
        url = f"http://127.0.0.1:{number}/v1"
        edit = client.post(f"{url}/images/edits", json=asked, headers={"x-request-id": f"mine-{way}"})
        stream = client.post(f"{url}/images/edits", json=asked | {"stream": True, "partial_images": 2})
        assert (edit.status_code, edit.headers["x-request-id"]) == (200, f"mine-{way}")
        assert edit.headers["x-ratelimit-limit-requests"] == "1000"
        models = client.get(f"{url}/models")
        assert len(models.headers.get_list("x-request-id")) == 1
        events = re.findall(r"^event: (.*)$", stream.text, re.M)
        replies[way] = (edit.json()["data"], events, models.json(), client.get(f"{url}/none").json())
    assert replies["proxy"][1][-1] == "image_edit.completed"
    assert replies["direct"] == replies["proxy"]
