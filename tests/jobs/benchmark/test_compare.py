"""The comparison of benchmark records: verdicts, tolerances, and what it refuses. Records are written by hand."""

import json

import pytest

from jobs.benchmark import job as benchmark
from jobs.benchmark.compare import MEASURED, compare_records
from jobs.benchmark.guards import GUARDS, Guard, tolerance

RATIOS = {"hf_step_over_ours_fdm": 2.0, "hf_memory_over_ours": 4.0, "loader_over_step": 100.0}


def spread(median: float, half_range: float, count: int = 4) -> dict[str, float]:
    return {
        "min": median - 2 * half_range, "q25": median - half_range, "median": median, "q75": median + half_range,
        "max": median + 2 * half_range, "count": count,
    }  # fmt: skip


def record(ratios=RATIOS, *, name: str = "training", spreads=None, **more):
    return {"benchmark": name, "date": "2026-11-28", "ratios": dict(ratios), "spread": spreads or {}, **more}


def verdicts(new, reference) -> dict[str, str]:
    return {row.ratio: row.verdict for row in compare_records(new, reference)}


def test_verdicts_follow_the_direction():
    """A tenth is always allowed; of loss and gain the guard's direction says which is which."""
    changed = {"hf_step_over_ours_fdm": 1.7, "hf_memory_over_ours": 4.3, "loader_over_step": 130.0}
    assert verdicts(record(changed), record()) == {
        "hf_step_over_ours_fdm": "worse", "hf_memory_over_ours": "same", "loader_over_step": "better",
    }  # fmt: skip
    lower = record({"n8_over_n1": 1.8}, name="sampling"), record({"n8_over_n1": 1.5}, name="sampling")
    assert verdicts(*lower) == {"n8_over_n1": "worse"} and verdicts(*lower[::-1]) == {"n8_over_n1": "better"}


def test_noise_beyond_the_ratio_itself_hides_no_collapse():
    """Three standard errors of 147 %: .9 of 1.5 may be chance, a third is not. NaN is no figure at all."""
    noisy = {"scale_out_2_cores": spread(1.5, 0.56)}
    for after, verdict in ((0.9, "same"), (0.5, "worse"), (float("nan"), "worse"), (4.0, "better")):
        pair = [record({"scale_out_2_cores": value}, name="annotate", spreads=noisy) for value in (after, 1.5)]
        (row,) = compare_records(*pair)
        assert row.allowed == pytest.approx(3 * 0.93 * 1.12 / 2 / 1.5 * 2**0.5) and row.verdict == verdict


def test_a_ratio_that_is_gone_is_absent():
    fewer = {"hf_memory_over_ours": 4.0}
    assert verdicts(record(fewer), record())["hf_step_over_ours_fdm"] == "absent"
    assert verdicts(record(), record(fewer))["hf_step_over_ours_fdm"] == "new"


def test_tolerance_is_three_standard_errors():
    """By hand: each of two works in two records has a relative error of .93 x 4 / 2 / 20 = .093."""
    spreads = [{"hf_fdm": spread(20.0, 2.0), "ours_fdm": spread(20.0, 2.0)}] * 2
    guard = Guard("higher", ("hf_fdm", "ours_fdm"))
    assert tolerance(guard, "any", spreads) == pytest.approx(3 * 0.093 * 2)
    assert tolerance(guard, "any", [{}, {"hf_fdm": {"first": 1.0}}]) == 0.1
    # A spread under the ratio's own name counts where no works are named.
    assert tolerance(Guard("higher"), "own", [{"own": spread(10.0, 2.0)}]) == pytest.approx(3 * 0.186)


def test_noise_in_the_record_widens_the_verdict():
    noisy = {"hf_fdm": spread(20.0, 2.0), "ours_fdm": spread(10.0, 1.0)}
    slower = record({"hf_step_over_ours_fdm": 1.5}, spreads=noisy)
    assert verdicts(slower, record(spreads=noisy))["hf_step_over_ours_fdm"] == "same"
    assert verdicts(slower, record())["hf_step_over_ours_fdm"] == "same"
    quiet = {"hf_fdm": spread(20.0, 0.1), "ours_fdm": spread(10.0, 0.1)}
    assert verdicts(slower | {"spread": quiet}, record(spreads=quiet))["hf_step_over_ours_fdm"] == "worse"


def test_the_command_ends_with_status_one(tmp_path, capsys):
    new, reference, out = tmp_path / "new.json", tmp_path / "old.json", tmp_path / "out.json"
    reference.write_text(json.dumps(record()))
    new.write_text(json.dumps(record() | {"machine": {"cpu": "other"}}))
    words = ["compare", f"new=[{json.dumps(str(new))}]", f"reference={reference}"]
    assert benchmark.main([*words, f"out={out}"]) == 0
    assert "ratios of two machines differ too" in capsys.readouterr().out
    rows = json.loads(out.read_text())[str(new)]
    assert [row["verdict"] for row in rows] == ["same"] * 3
    new.write_text(json.dumps(record({"hf_memory_over_ours": 2.0})))
    with pytest.raises(SystemExit) as stop:
        benchmark.main(words)
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert f"hf_memory_over_ours ({new})" in said.err and "WORSE" in said.out and "ABSENT" in said.out


def test_committed_records_equal_themselves():
    """And every ratio that is guarded is one that its benchmark writes, so that no guard watches nothing."""
    files = [file for file in MEASURED.glob("*.json") if json.loads(file.read_text())["benchmark"] in GUARDS]
    ratios: dict[str, set[str]] = {}
    for file in files:
        content = json.loads(file.read_text())
        assert {row.verdict for row in compare_records(content, content)} == {"same"}
        ratios.setdefault(content["benchmark"], set()).update(content["ratios"])
        for guard in GUARDS[content["benchmark"]].values():
            if guard.works:
                assert set(guard.works) <= set(content["spread"]), (file.name, guard)
    assert len(files) >= 7
    for name, written in ratios.items():
        assert set(GUARDS[name]) <= written, name


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("no json", "is no JSON"),
        (json.dumps([1]), "is no record of wm benchmark"),
        (json.dumps(record(name="demo")), "is of benchmark 'demo'; those compared are sampling, training"),
        (json.dumps(record(name="serve")), "is of benchmark serve, its reference of training"),
        (json.dumps(record() | {"settings": {"quick": True}}), "quick=true, which measures nothing"),
        (None, "no such file; expected a record of wm benchmark"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path, capsys, content, said):
    new, reference = tmp_path / "new.json", tmp_path / "old.json"
    reference.write_text(json.dumps(record()))
    if content is not None:
        new.write_text(content)
    assert benchmark.main(["compare", f"new=[{json.dumps(str(new))}]", f"reference={reference}"]) == 2
    assert said in capsys.readouterr().err
