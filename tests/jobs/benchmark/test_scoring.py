"""The measurement of scoring: its data are scored as they are, growth is a line, and the record has all parts."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import score
from jobs.benchmark import job as benchmark
from jobs.benchmark import scoring
from jobs.benchmark.scoring_data import SUBSETS, made_image, write_bench, write_candidates, write_encoders
from jobs.score import ScoreRecipe
from wm.errors import InputError


def test_lines_are_extrapolated() -> None:
    # 10 s and 100 MiB at 0 images, 2 s and 3 MiB for each thousand.
    rows = [
        {"images": float(n), "wall_s": 10 + n / 500, "cpu_s": 1.0, "tree_mib": 100 + 0.003 * n, "driver_mib": 50.0}
        for n in (1000, 4000, 16000)
    ]
    far = scoring.extrapolate(rows)
    assert (far["wall_s"], far["wall_s_per_1000_images"]) == (210.0, 2.0)
    assert (far["tree_mib"], far["driver_mib"], far["driver_mib_per_1000_images"]) == (400.0, 50.0, 0.0)


def test_the_made_bench_is_scored(tmp_path: Path) -> None:
    bench = write_bench(tmp_path / "bench", 6, 16)
    candidates = write_candidates(tmp_path / "set", 6, 2, 16)
    models = {name: str(path) for name, path in write_encoders(tmp_path / "models", "tiny").items()}
    values = {"triplets": str(bench), "predictions": [str(candidates)], "out": str(tmp_path / "out"), **models}
    assert score.run(ScoreRecipe.parse(values, "test"))["counts"]["images"] == 6 * 2 + 6
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["subsets"] == [*SUBSETS] and set(scores["rows"][0]["metrics"]) == {
        "l1",
        "l1_square",
        "clip_i",
        "dino",
    }
    # Smooth, and no two alike.
    first, second = made_image(1, 64), made_image(2, 64)
    assert np.abs(np.diff(first.astype(int), axis=1)).mean() < 20 < np.abs(first.astype(int) - second).mean()


def test_the_record_has_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[list[str]] = []

    def run_score(keys: list[str]) -> dict[str, float]:
        runs.append(keys)
        return {"wall_s": float(len(runs)), "cpu_s": 2.0, "tree_mib": 5.0, "driver_mib": 10.0 * len(runs)}

    monkeypatch.setattr(scoring, "run_score", run_score)
    out = tmp_path / "score.json"
    assert benchmark.main(["score", f"out={out}", "quick=true", "--dry-run"]) == 0 and not runs
    assert benchmark.main(["score", f"out={out}", "quick=true"]) == 0
    record = json.loads(out.read_text())
    # The bench twice with one cache, then growth without Ray.
    assert [word for word in runs[0] if "cache=" in word] == [word for word in runs[1] if "cache=" in word]
    assert [row["images"] for row in record["growth"]["0"]] == [8.0, 16.0] and len(runs) == 4
    assert record["ratios"]["driver_memory_growth_0_workers"] == pytest.approx(40 / 30, abs=1e-4)
    assert record["bench"]["images"] == 4 * 3 and record["ratios"]["first_over_stored_features"] == 0.5
    assert record["at_100000_images"]["0"]["driver_mib_per_1000_images"] == 1250.0


def test_a_run_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_POLL_S", 0.01)
    monkeypatch.setattr(scoring, "_COMMAND", ("sh", "-c", "echo error: no bench >&2; exit 2", "score"))
    with pytest.raises(InputError, match="score triplets=none ended with status 2: error: no bench"):
        scoring.run_score(["triplets=none"])
