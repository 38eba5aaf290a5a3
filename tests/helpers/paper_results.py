"""Result folders of a small bench as the stages write them, with figures made by hand: no stage is run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.bench_files import TASKS, write_bench
from wm.evaluation.image_scoring import VALUE_SCHEMA
from wm.evaluation.judge.score_files import SCORES_SCHEMA
from wm.evaluation.predictions import prediction_row, write_predictions
from wm.images import Pixels
from wm.records import stable_id
from wm.runs import write_json
from wm.tables import write_table

IDS = [stable_id("aurora-bench", "test", f"test.json#{number}") for number in range(len(TASKS))]
"""Triplets: two of magicbrush, two of something, one of kubric."""


def write_stage(folder: Path, stage: str, recipe: Mapping[str, Any], **more: object) -> Path:
    """Write the record of a finished stage."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "recipe": dict(recipe), "inputs": {}, "counts": {}, "finished_at": folder.name, **more}
    write_json(folder / "run.json", record)
    return folder


def judged(
    system: str, finals: Sequence[float | None], *, seed: int = 0, run: int = 0, k: int = 1
) -> list[dict[str, Any]]:
    """Build the rows of a system: the final score of each triplet, None where the judge failed; editing success is one
    more, but at most 10."""
    return [
        {
            "triplet_id": IDS[number], "subset": "", "system": system, "run": run, "sampling_seed": seed,
            "num_candidates": k, "repeat": 0, "final": final, "key": "k", "minimal_editing": final,
            "editing_success": None if final is None else min(final + 1, 10.0),
            "failure": "refused" if final is None else None,
        }
        for number, final in enumerate(finals)
    ]  # fmt: skip


def write_judging(folder: Path, bench: Path, rows: Sequence[dict[str, Any]], model: str = "gpt-4o") -> Path:
    """Write the folder of a judging."""
    folder.mkdir(parents=True)
    write_table(rows, folder / "scores.parquet", SCORES_SCHEMA)
    return write_stage(folder, "judge", {"triplets": str(bench), "model": model})


def scored(system: str, l1: Sequence[float], *, seed: int = 0, decoding: str = "unknown") -> list[dict[str, Any]]:
    """Build the rows of a system's image metrics: L1 alone."""
    chosen_at = [1] if decoding == "sampled" else []
    return [
        {
            "triplet_id": triplet_id, "system": system, "run": 0, "sampling_seed": seed, "decoding": decoding,
            "candidates": [0], "chosen_at": chosen_at, "pixels_sha256": "0", "l1": value, "l1_square": value,
        }
        for triplet_id, value in zip(IDS, l1, strict=True)
    ]  # fmt: skip


def write_scoring(folder: Path, bench: Path, rows: Sequence[dict[str, Any]], actions: object = None) -> Path:
    """Write the folder of a scoring."""
    folder.mkdir(parents=True)
    write_table(rows, folder / "values" / "part-00000.parquet", VALUE_SCHEMA)
    write_json(folder / "scores.json", {"rows": [], "actions": actions})
    return write_stage(folder, "score", {"triplets": str(bench)})


def write_collected(folder: Path, bench: Path, system: str, image: Pixels) -> Path:
    """Write a prediction set of one image for every triplet."""
    rows = [prediction_row(image, triplet_id=key, system=system, view="full", origin="external") for key in IDS]
    write_predictions(rows, folder / "predictions" / "part-00000.parquet")
    return write_stage(folder, "collect", {"triplets": str(bench), "system": system})


def write_results(root: Path) -> dict[str, Path]:
    """Write a bench, and a judging and a scoring of Copy, C-FT, C-FDM, its ablation and a system of one's own."""
    bench = write_bench(root)
    rows = judged("Copy", [0, 0, 0, 0, 0])
    for seed in range(3):
        rows += judged("C-FT", [1, 3, 2, 2, 4 + seed], seed=seed)
        rows += judged("C-FDM", [2 + seed, 4, 3, 5, 6], seed=seed)
        rows += judged("C-FDM w/o LW", [1 + seed, 3, 3, 4, 7], seed=seed)
    rows += judged("mine", [9, None, 1, 1, 1])
    judging = write_judging(root / "judge", bench, rows)
    values = scored("Copy", [0.1, 0.3, 0.2, 0.2, 0.5]) + scored("mine", [0.3, 0.5, 0.1, 0.1, 0.2])
    for seed in range(3):
        shift = seed / 100
        values += scored("C-FT", [0.2 + shift, 0.4, 0.3, 0.3, 0.1 + shift], seed=seed, decoding="sampled")
    return {"bench": bench, "judge": judging, "score": write_scoring(root / "score", bench, values)}
