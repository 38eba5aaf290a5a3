"""The page of benchmarks says what the measured files say, and which there are not."""

import json

from docs.generate.benchmarks import FILES, MEASURED, build_benchmarks

DEMO = {
    "date": "2026-11-28T10:00:00Z",
    "command": 'python -m jobs.benchmark demo out=demo.json overrides=["seeds=[1]"]',
    "machine": {"cpu": "A CPU", "cores": 2, "memory_gb": 4.0},
    "versions": {"torch": "2.13.0", "numpy": "2"},
    "wall_s": 300.5,
    "peak_memory_bytes": 3 * 2**30,
    "stages": {"base": 1.25, "idm": 100},
    "ratios": {"stages by wall": 1.5, "new_ratio": 2.0, "flag": True},
}


def test_a_file_gives_machine_command_and_figures(tmp_path):
    (tmp_path / "demo.json").write_text(json.dumps(DEMO))
    (tmp_path / "other.json").write_text(json.dumps({"rates": {"clips_per_s": {"1": 20.5}}}))
    text = build_benchmarks(tmp_path)
    assert text.startswith("## The demo, stage by stage\n\n2026-11-28, A CPU, 2 cores, 4.0 GB, torch 2.13.0.\n")
    assert "$ wm benchmark demo out=demo.json overrides='[\"seeds=[1]\"]'" in text
    assert "| complete run, s | 300.5 |" in text and "GiB | 3 |" in text
    assert "| base | 1.25 |" in text and "| idm | 100 |" in text
    assert "above 1, some ran side by side | 1.5 |" in text
    assert "    | `new_ratio` | 2 |" in text and "flag" not in text
    assert "## other" in text and "| clips_per_s.1 | 20.5 |" in text


def test_what_was_not_measured_is_said(tmp_path):
    text = build_benchmarks(tmp_path)
    assert text.count("Not measured yet") == len(FILES)
    assert "`jobs/measured/gpu.json` does not exist" in text


def test_every_measured_file_is_on_the_page():
    text = build_benchmarks()
    for path in MEASURED.glob("*.json"):
        assert json.loads(path.read_text())["date"][:10] in text, path.name
        assert f"## {FILES[path.stem]}" in text
