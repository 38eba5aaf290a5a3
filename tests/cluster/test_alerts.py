"""The alerts ask for series that the code exports, by labels that they have, and lead to sections that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import ray
import yaml

from jobs.annotate import metrics as annotate_metrics
from serve_apps import metrics

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "cluster" / "prometheus" / "alerts.yaml"
RULE_TESTS = ALERTS.with_name("alerts.test.yaml")
PAGE = ROOT / "docs" / "pages" / "troubleshooting.md"
RULES = {rule["alert"]: rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]}
# Labels of Ray's own, and of the job that scrapes.
RAYS_LABELS = {"application", "deployment", "replica", "instance", "le"}


def annotation_series() -> dict[str, set[str]]:
    """Series of ``annotate`` with their labels, as its module lists them."""
    found = re.findall(r"``(ray_wm_annotate_\w+)(?:\{(\w+)\})?``", annotate_metrics.__doc__ or "")
    return {name: {"dataset"} | ({label} if label else set()) for name, label in found}


def rays_series() -> set[str]:
    """Series that Ray's own dashboards ask for."""
    folder = Path(ray.__file__).parent / "dashboard" / "modules" / "metrics" / "dashboards"
    return {name for path in folder.glob("*.py") for name in re.findall(r"\bray_\w+", path.read_text())}


OWN = {series: set(metric.tags) for metric in metrics.ALL for series in metric.exported} | annotation_series()


def series_of(text: str) -> set[str]:
    return set(re.findall(r"\bray_\w+", text))


@pytest.mark.parametrize("name", RULES)
def test_an_alert_asks_for_series_that_are_exported(name):
    rule = RULES[name]
    series = series_of(rule["expr"])
    assert series and series <= set(OWN) | rays_series()
    labels = RAYS_LABELS.union(*(OWN.get(entry, set()) for entry in series))
    grouped = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
    matched = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!=|!~|=)", rule["expr"]))
    assert grouped | matched <= labels
    # A label that was summed over is not there to be named.
    texts = " ".join(rule["annotations"].values())
    assert set(re.findall(r"\$labels\.(\w+)", texts)) <= grouped
    assert series_of(texts) <= set(OWN) | rays_series()


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_to_do(name):
    rule = RULES[name]
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"} and name.startswith("Wm")
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    # Parentheses and braces in pairs: a rule that does not parse would stop Prometheus.
    for pair in ("()", "{}", "[]"):
        assert rule["expr"].count(pair[0]) == rule["expr"].count(pair[1])
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = re.findall(r"^## (.*)", PAGE.read_text(), re.MULTILINE)
    assert page == "troubleshooting.html" and anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_page_names_every_alert_and_series_that_exist():
    text = PAGE.read_text()
    assert set(re.findall(r"\bWm[A-Z]\w+", text)) == set(RULES)
    assert series_of(text) - {"ray_actor_options"} <= set(OWN) | rays_series()


def test_every_alert_fires_in_one_state_and_not_in_another():
    document = yaml.safe_load(RULE_TESTS.read_text())
    assert document["rule_files"] == [ALERTS.name]
    states = {name: set() for name in RULES}
    for test in document["tests"]:
        for case in test["alert_rule_test"]:
            rule = RULES[case["alertname"]]
            states[case["alertname"]].add(bool(case["exp_alerts"]))
            for alert in case["exp_alerts"]:
                # What is expected is what the rule says today; the summary has figures of the state.
                assert alert["exp_annotations"] | {"summary": ""} == rule["annotations"] | {"summary": ""}
                assert alert["exp_labels"].items() >= rule["labels"].items()
            assert {series for entry in test["input_series"] for series in series_of(entry["series"])} <= {
                f"{series}{end}" for series in series_of(rule["expr"]) for end in ("", "_bucket")
            }
    assert all(fires == {True, False} for fires in states.values())


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_itself_agrees():
    command = ["promtool", "test", "rules", RULE_TESTS.name]
    done = subprocess.run(command, cwd=RULE_TESTS.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr
