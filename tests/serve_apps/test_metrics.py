"""What the server measures of itself, over the app in this process; and that the dashboard asks for what there is."""

import base64
import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from serve_apps import metrics
from serve_apps.recipe import ServeRecipe
from tests.helpers.serve_local import local_app
from wm.dynamics import speculate_observations
from wm.images import encode_png
from wm.models import load_codec, load_model

DASHBOARD = Path(__file__).resolve().parents[2] / "cluster" / "grafana" / "wm.json"
SOURCE = np.random.default_rng(5).integers(0, 256, (16, 16, 3), np.uint8)
URL = "data:image/png;base64," + base64.b64encode(encode_png(SOURCE)).decode()
EDIT = {"image": URL, "prompt": "move the red cup left", "seed": 7, "best_of": 4}
TOKENS_PER_IMAGE = 4


class Kept:
    """Every value recorded, by the metric's name and tags."""

    def __init__(self):
        self.values = defaultdict(list)

    def __call__(self, metric, value, tags):
        assert set(tags) == set(metric.tags)
        self.values[(metric.name, *tags.values())].append(value)

    def __getitem__(self, name):
        return self.values[name if isinstance(name, tuple) else (name,)]


@pytest.fixture
def kept():
    recorder = Kept()
    metrics.record_to(recorder)
    yield recorder
    metrics.record_to(None)


@pytest.fixture(scope="module")
def http(tiny_base):
    with TestClient(local_app(ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base)))) as client:
        yield client


def test_figures_of_an_answer(http, kept):
    reply = http.post("/v1/images/edits", json=EDIT | {"return_candidates": True}).json()
    verified = [entry["verification"] for entry in reply["candidates"]]
    assert kept["wm_tokens_sampled"] == [4 * TOKENS_PER_IMAGE] == [reply["usage"]["output_tokens"]]
    assert kept["wm_candidates"] == [4]
    assert kept["wm_candidates_distinct_share"] == [len(verified) / 4]
    assert kept["wm_unchanged_share"] == [verified[0]["unchanged_share"]]
    assert kept["wm_verification_margin_nats"] == pytest.approx(
        [verified[0]["mean_logprob"] - verified[1]["mean_logprob"]]
    )
    assert max(kept["wm_rows_decoding"]) == 4 and kept["wm_rows_decoding"][-1] == 0
    assert kept["wm_requests_waiting"][-1] == 0
    stages = {stage: kept["wm_stage_seconds", stage] for stage in metrics.STAGES}
    assert {stage: len(times) for stage, times in stages.items()} == dict.fromkeys(metrics.STAGES, 1)
    assert 0 <= stages["queue"][0] < stages["sample"][0]
    (whole_s,) = kept["wm_request_seconds", "/v1/images/edits"]
    one_after_the_other = set(stages) - {"queue"}
    assert sum(stages[stage][0] for stage in one_after_the_other) <= whole_s
    assert kept["wm_requests", "/v1/images/edits", "200"] == [1]
    assert kept["wm_requests_in_progress"] == [1, 0]


def test_draws_without_verification(http, kept):
    http.post("/v1/images/edits", json=EDIT | {"verify": False, "n": 4})
    assert kept["wm_candidates"] == [4] and not kept["wm_verification_margin_nats"]
    assert not kept["wm_stage_seconds", "score"]


def test_a_rollout_counts_each_step(http, kept):
    asked = {"image": URL, "actions": ["move it", "take it"], "best_of": 3, "num_beams": 2, "seed": 1}
    reply = http.post("/v1/rollouts", json=asked).json()
    drawn = sum(step["drawn"] for step in reply["steps"])
    assert sum(kept["wm_candidates"]) == drawn
    assert sum(kept["wm_tokens_sampled"]) == drawn * TOKENS_PER_IMAGE
    assert kept["wm_requests", "/v1/rollouts", "200"] == [1]
    http.post("/v1/wm/rollouts", json=asked)
    assert kept["wm_requests", "/v1/wm/rollouts", "200"] == [1]


def test_errors_are_counted_by_status_and_the_route_not_the_path(http, kept):
    http.get("/v1/models/one"), http.get("/v1/models/two")
    http.get("/nowhere/at/all")
    http.post("/v1/images/edits", json={})
    assert kept["wm_requests", "/v1/models/{model_id}", "404"] == [1, 1]
    assert kept["wm_requests", "none", "404"] == [1]
    assert kept["wm_requests", "/v1/images/edits", "400"] == [1]


def test_the_share_of_drafts_that_were_right(tiny_base, kept):
    recipe = ServeRecipe(fdm=str(tiny_base), idm=str(tiny_base), num_draft_tokens=2)
    with TestClient(local_app(recipe)) as http:
        assert http.post("/v1/images/edits", json=EDIT).status_code == 200
    model, codec = load_model(tiny_base), load_codec(tiny_base)
    source_BN = codec.encode(SOURCE[None])
    found = speculate_observations(model, source_BN, [EDIT["prompt"]], num_draft_tokens=2, num_candidates=4, seed=7)
    assert kept["wm_draft_accepted_share"] == [pytest.approx(float(found.confirmed.sum() / found.examined.sum()))]


def test_outside_ray_nothing_is_kept_and_nothing_fails():
    metrics.record_to(None)
    metrics.record(metrics.TOKENS, 3)


def test_a_stage_that_fails_is_not_counted(kept):
    with pytest.raises(ValueError, match="no"), metrics.stage("sample"):
        raise ValueError("no")
    assert not kept["wm_stage_seconds", "sample"]


def dashboard():
    return json.loads(DASHBOARD.read_text())


def test_the_dashboard_asks_for_what_there_is_and_for_all_of_it():
    asked = set()
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            asked |= set(re.findall(r"\bray_\w+", target["expr"]))
    exported = {series for metric in metrics.ALL for series in metric.exported}
    assert asked <= exported, asked - exported
    for metric in metrics.ALL:
        assert asked & set(metric.exported), f"no panel shows {metric.name}"


def test_labels_of_the_dashboard_are_the_metrics_tags():
    tags = {series: metric.tags for metric in metrics.ALL for series in metric.exported}
    rays = {"application", "replica", "deployment", "le"}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            series = set(re.findall(r"\bray_\w+", target["expr"]))
            known = rays | {tag for one in series for tag in tags[one]}
            grouped = {label for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(", ")}
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert shown <= grouped <= known, target["expr"]


def test_the_dashboard_can_be_imported():
    found = dashboard()
    assert found["id"] is None and found["uid"] and found["title"] and found["schemaVersion"] >= 36
    identities = [panel["id"] for panel in found["panels"]]
    assert len(set(identities)) == len(identities)
    cells = [
        (x, y)
        for panel in found["panels"]
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24, "panels do not overlap"
    variables = {variable["name"] for variable in found["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used <= variables
