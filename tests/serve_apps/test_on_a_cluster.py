"""The shipped YAML files on a cluster with a token: several ingresses under one limit, updates under load, scale to
zero and back, logs and traces across processes. ``make soak`` runs it: a cluster that starts takes a minute."""

import hashlib
import json
import threading
import time
from collections import defaultdict

import httpx2
import numpy as np
import pytest
import yaml

from tests.helpers.kills import children
from tests.helpers.serve_cluster import ROOT, serve_head
from wm.images import encode_png
from wm.ports import find_free_port

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

FILES = {"small": "world_model.yaml", "large": "world_model_7b.yaml"}
KEY, LIMIT = "wm-alice", 120
PNG = encode_png(np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8))
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def head():
    variables = {
        "RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH": "serve_apps.tracing:build_processors",
        "RAY_SERVE_TRACING_SAMPLING_RATIO": "1.0",
        "OTEL_TRACES_EXPORTER": "console",
        "WM_SERVE_TRACEPARENT": "1",
    }
    with serve_head(**variables) as started:
        yield started


class Config:
    """A shipped file with the toy models and a free port; written anew for each change."""

    def __init__(self, name, folder):
        self.path = folder / name
        self.values = yaml.safe_load((ROOT / "serve_apps" / name).read_text())
        self.args = self.values["applications"][0]["args"]
        self.args |= {"fdm": "nano:fdm", "idm": "nano:idm", "device": "cpu", "dtype": "float32"}
        self.values["http_options"]["port"] = find_free_port()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.values['http_options']['port']}"

    def write(self):
        self.path.write_text(yaml.safe_dump(self.values))
        return self.path


@pytest.fixture(scope="module")
def small(head, tmp_path_factory):
    config = Config(FILES["small"], tmp_path_factory.mktemp("small"))
    keys = config.path.with_name("keys.toml")
    keys.write_text(
        f'[[keys]]\nname = "alice"\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n'
        f"requests_per_minute = {LIMIT}\nconcurrent_requests = 64\n"
    )
    config.args |= {"keys": str(keys), "ingress": {"num_replicas": 3}, "log_format": "json"}
    head.deploy(config.write())
    return config


@pytest.fixture
def http(small):
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=small.url, timeout=120, headers=headers) as client:
        yield client


def edit(client, seed=1, **more):
    data = {"prompt": "move the red circle to the center", "seed": str(seed), "best_of": "2"}
    return client.post("/v1/images/edits", data=data, files={"image": ("a.png", PNG)}, **more)


def edit_when_allowed(client, **more):
    """The reply of an edit, asked again as long as the key's bucket is empty."""
    for _ in range(20):
        reply = edit(client, **more)
        if reply.status_code != 429:
            break
        time.sleep(int(reply.headers["retry-after"]))
    return reply


def test_without_the_token_nothing_is_deployed(head, small):
    answer = head.run("serve", "deploy", "-a", head.dashboard, str(small.path), RAY_AUTH_TOKEN="wrong")
    assert answer.returncode != 0
    assert httpx2.get(f"{small.url}/v1/models", timeout=60).status_code == 401


def test_three_ingresses_let_through_what_one_would(head, small, http):
    names = head.status()["applications"]["world_model"]["deployments"]
    assert {name: state["replica_states"] for name, state in names.items()} == {
        "Ingress": {"RUNNING": 3},
        "FDMServer": {"RUNNING": 1},
        "IDMServer": {"RUNNING": 1},
        "LimitsServer": {"RUNNING": 1},
    }
    begin_s, passed, refused = time.monotonic(), 0, []
    while len(refused) < 100:
        reply = http.get("/v1/models")
        passed += reply.status_code == 200
        refused += [reply] if reply.status_code == 429 else []
    seconds = time.monotonic() - begin_s
    # One bucket: a minute's worth, and what time fills in; three of their own would be three times as much.
    assert 0.8 * LIMIT <= passed <= LIMIT + seconds * LIMIT / 60 + 1
    assert int(refused[-1].headers["retry-after"]) >= 1 and refused[-1].headers["x-ratelimit-limit-requests"] == "120"


def spans_of(head, trace_id):
    """Spans of one trace by id, once the root is among them."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        lines = [line for path in head.logs("spans/*.jsonl") for line in path.read_text().splitlines()]
        spans = {span["context"]["span_id"]: span for span in map(json.loads, lines)}
        own = {key: span for key, span in spans.items() if span["context"]["trace_id"] == f"0x{trace_id}"}
        if any(span["parent_id"] == "0xb7ad6b7169203331" for span in own.values()):
            return own
        time.sleep(0.5)
    raise AssertionError("the trace did not come")


def path_of(spans, span):
    """Names from the root to a span."""
    parent = spans.get(span["parent_id"])
    return [*([] if parent is None else path_of(spans, parent)), span["name"]]


def test_one_trace_from_the_proxy_to_the_verifier(head, http):
    reply = edit_when_allowed(http, headers={"traceparent": TRACEPARENT, "x-request-id": "traced"})
    assert reply.status_code == 200
    spans = spans_of(head, TRACEPARENT.split("-")[1])
    paths = {" > ".join(path_of(spans, span)) for span in spans.values()}
    ways = defaultdict(list)
    for path in paths:
        ways[path.split(" > ")[-1]].append(path)
    # The verifier's span is below the sampler's, which is below the ingress's.
    (scored,) = [path for path in paths if path.endswith("replica_handle_request IDMServer score_candidates")]
    assert [name for name in scored.split(" > ") if name.startswith("replica_handle_request")] == [
        "replica_handle_request Ingress __call__",
        "replica_handle_request FDMServer predict",
        "replica_handle_request IDMServer score_candidates",
    ]
    for stage, server in {
        "prepare": "Ingress",
        "encode": "FDMServer",
        "sample": "FDMServer",
        "score": "FDMServer",
    }.items():
        assert any(path.split(" > ")[-2].startswith(f"replica_handle_request {server}") for path in ways[stage]), stage


def test_lines_of_all_replicas_are_json_with_the_request_id(head, http):
    edit_when_allowed(http, headers={"x-request-id": "one-of-mine"})
    deadline = time.monotonic() + 60
    while True:
        lines = [line for path in head.logs("replica_*.log") for line in path.read_text().splitlines()]
        own = [entry for entry in map(json.loads, lines) if entry.get("request_id") == "one-of-mine"]
        names = {f"world_model_{name}" for name in ("Ingress", "FDMServer", "IDMServer", "LimitsServer")}
        if names <= {entry["deployment"] for entry in own}:
            break
        assert time.monotonic() < deadline, own
        time.sleep(0.5)
    assert all(entry["levelname"] == "INFO" and entry["application"] == "world_model" for entry in own)


class Load:
    """Clients that ask without an end and repeat nothing."""

    def __init__(self, config, clients=4):
        self._config, self._over = config, threading.Event()
        self.answers, self.failures, self.count, self.slowest_s = {}, [], 0, 0.0
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(clients)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=300)
            assert not thread.is_alive()

    def _ask(self, seed):
        with httpx2.Client(base_url=self._config.url, timeout=290) as client:
            while not self._over.is_set():
                begin_s = time.monotonic()
                reply = edit(client, seed)
                self.slowest_s = max(self.slowest_s, time.monotonic() - begin_s)
                if reply.status_code != 200:
                    self.failures.append((reply.status_code, reply.text[:300]))
                else:
                    self.count += 1
                    image = reply.json()["data"][0]["b64_json"]
                    if self.answers.setdefault(seed, image) != image:
                        self.failures.append(("two answers", seed))
                self._over.wait(0.2)


@pytest.fixture(scope="module")
def large(head, small, tmp_path_factory):
    """The second file takes the first one's place, as an operator would have it: same Serve, same port."""
    config = Config(FILES["large"], tmp_path_factory.mktemp("large"))
    config.values["http_options"] = small.values["http_options"]
    config.args["ingress"] = {"num_replicas": 2}
    for name in ("fdm_server", "idm_server"):
        config.args[name]["ray_actor_options"] = {"num_gpus": 0.25, "num_cpus": 0.5}
    head.deploy(config.write())
    return config


def test_an_update_under_load_fails_no_request(head, large):
    before = {child.pid for child in children("ServeReplica", of=head.process)}
    with Load(large) as load:
        # Every deployment of the application gets other arguments: all replicas are replaced.
        large.args["num_candidates"] = 4
        head.deploy(large.write())
        deadline = time.monotonic() + 300
        while before & {child.pid for child in children("ServeReplica", of=head.process)}:
            assert time.monotonic() < deadline, "replicas of before are still there"
            time.sleep(1.0)
        count = load.count
        while load.count < count + 8:
            assert time.monotonic() < deadline and not load.failures, load.failures
            time.sleep(0.5)
    print(f"update: {load.count} answers, slowest {load.slowest_s:.1f} s")
    assert load.failures == [] and load.count >= 16


def replicas_of(head, name):
    return head.status()["applications"]["world_model"]["deployments"][name]["replica_states"].get("RUNNING", 0)


def wait_until_asleep(head):
    deadline = time.monotonic() + 240
    while replicas_of(head, "FDMServer") or replicas_of(head, "IDMServer"):
        assert time.monotonic() < deadline, head.status()
        time.sleep(2.0)


def test_scale_to_zero_and_back(head, large):
    # Long enough that a client which comes again when it was told to finds the replica awake.
    quick = {"min_replicas": 0, "max_replicas": 2, "downscale_to_zero_delay_s": 20, "downscale_delay_s": 20}
    quick |= {"upscale_delay_s": 0, "metrics_interval_s": 1, "look_back_period_s": 3}
    for name in ("fdm_server", "idm_server"):
        large.args[name]["autoscaling_config"] = quick
    head.deploy(large.write())
    with httpx2.Client(base_url=large.url, timeout=290) as client:
        assert edit(client).status_code == 200
        wait_until_asleep(head)
        # Whoever asks for health wakes nobody.
        assert client.get("/health").json() == {"status": "ok", "asleep": ["fdm", "idm"]}
        begin_s = time.monotonic()
        reply = edit(client)
        seconds = time.monotonic() - begin_s
        assert reply.status_code == 200
        waited_s = float(reply.headers["x-wm-replica-wait-seconds"])
        assert 0.1 < waited_s <= seconds
        print(f"woken: {waited_s:.1f} s of {seconds:.1f} s")
        assert "x-wm-replica-wait-seconds" not in edit(client).headers
        # With less patience the client is told when to come again, and finds the model then.
        large.args["replica_wait_s"] = 0.1
        head.deploy(large.write())
        edit(client)
        wait_until_asleep(head)
        reply = edit(client)
        while reply.status_code == 200:  # it was not yet asleep
            wait_until_asleep(head)
            reply = edit(client)
        error = reply.json()["error"]
        assert (reply.status_code, error["code"]) == (503, "model_starting") and "no replica yet" in error["message"]
        deadline = time.monotonic() + 240
        while reply.status_code != 200:
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "model_starting"), reply.text
            assert time.monotonic() < deadline, reply.text
            time.sleep(int(reply.headers["retry-after"]))
            reply = edit(client)
