"""The serving benchmark: its smallest run over a real server, its parts. Speed is not asserted."""

import json
import math

import pytest

from jobs.benchmark.job import main
from jobs.benchmark.serving_load import Tally, percentiles, server_timing


@pytest.mark.timeout(600)
def test_the_smallest_run_writes_every_ratio_and_equal_answers(tmp_path, capsys):
    out = tmp_path / "serve.json"
    assert main(["serve", f"out={out}", "quick=true", "replicas=[1]", "cpus_per_replica=0.5"]) == 0
    record = json.loads(out.read_text())
    names = {
        "http_overhead",
        "direct_overhead",
        "best_of_8_over_1",
        "first_preview_share",
        "batching_gain",
        "direct_batching_gain",
        "wide_first_preview_share",
        "wide_http_overhead",
    }
    assert set(record["ratios"]) >= names
    assert all(math.isfinite(value) and value > 0 for value in record["ratios"].values())
    assert record["figures"]["identical_share"] == 1.0
    load = record["figures"]["replicas_1"]
    assert load["closed_loop_statuses"] == {"200": 2 * (4 + 16)}
    assert [set(entry["statuses"]) for entry in load["open_loop"]] == [{"200"}]
    assert 0 < load["open_loop"][0]["latency_s"]["p50"] <= load["open_loop"][0]["latency_s"]["max"]
    assert "batching_gain" in capsys.readouterr().out


def test_bad_input_is_told_in_one_line(tmp_path, capsys):
    for arguments, told in (
        (["out=x.txt"], "expected the name of a .json file"),
        (["out=x.json", "fdm=a"], "fdm and idm: give both or neither"),
        (["out=x.json", "fdm=a", "idm=b"], "fdm = 'a': no such model folder"),
        (["out=x.json", "replicas=[0]"], "replicas = [0]: expected counts of at least 1"),
    ):
        assert main(["serve", *arguments]) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_percentiles_and_server_timing():
    assert percentiles([]) == {}
    assert percentiles([float(value) for value in range(101)]) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert server_timing("") == {}
    assert server_timing("prepare;dur=1.5, draw;desc=x;dur=20") == {"prepare": 0.0015, "draw": 0.02}


def test_a_tally_counts_what_is_no_answer():
    tally = Tally()

    class Reply:
        status_code, headers = 503, {}

    tally.add(Reply(), 1.0)
    Reply.status_code, Reply.headers = 200, {"server-timing": "draw;dur=10"}
    tally.add(Reply(), 0.5)
    assert tally.figures(2.0) == {
        "answered_per_s": 0.5,
        "statuses": {"503": 1, "200": 1},
        "latency_s": {"p50": 0.5, "p90": 0.5, "p99": 0.5, "max": 0.5},
        "stages_s": {"draw": {"p50": 0.01, "p90": 0.01, "p99": 0.01, "max": 0.01}},
    }
