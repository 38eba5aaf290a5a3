"""The prediction set that an evaluation writes: every image, as often as it counts in the tables."""

import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from tests.helpers.bench_files import write_bench
from tests.helpers.evaluate_data import ITEMS, noise_pair, recipe_of
from wm.evaluation.predictions import PREDICTION_SCHEMA, list_predictions, pixels_digest
from wm.images import decode_image
from wm.tables import read_table

QUICK = {"probe": False, "examples": 0}


@pytest.fixture(scope="module")
def evaluated(tiny_base, triplets, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions") / "out"
    more = {"search": {"max_unchanged": 0.4}, **QUICK}
    return out, evaluate.run(recipe_of(tiny_base, triplets, out, **more))


def values_by_choice(out: Path) -> dict[tuple[str, str, int], list[float]]:
    """The L1 distance of each image, as often as it counts at each label, choice and K."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for row in read_table(out / "predictions", PREDICTION_SCHEMA).to_pylist():
        pixels = decode_image(row["image"]["bytes"], "image")
        assert row["pixels_sha256"] == pixels_digest(pixels)
        assert (row["height_px"], row["width_px"], row["view"], row["origin"]) == (16, 16, "square", "wm")
        target = noise_pair(int(row["triplet_id"][1:]))[1]
        gap = float(np.abs(target.astype(float) - pixels).mean() / 255)
        keys = [("idm", k) for k in row["chosen_at"]] if row["decoding"] == "sampled" else [("greedy", 1)]
        for choice, k in keys:
            values.setdefault((row["system"], choice, k), []).append(gap)
    return values


def test_the_tables_follow_from_the_images(evaluated):
    out, record = evaluated
    tables, values = json.loads((out / "tables.json").read_text()), values_by_choice(out)
    rows = {(row["label"], row["choice"], row["k"]): row["metrics"]["l1"]["mean"] for row in tables["fdm"]}
    for key, gaps in values.items():
        assert np.mean(gaps) == pytest.approx(rows[key], abs=1e-12), key
    copy = tables["fdm"][0]
    assert copy["macro"]["l1"] == pytest.approx(np.mean([means["l1"] for means in copy["by_subset"].values()]))
    assert {key for key in rows if key[1] in ("idm", "greedy")} == set(values)
    facts = list_predictions(out)
    assert record["counts"]["predictions"] == len(facts)
    # Every candidate is in one row, an image in no two rows of the same candidates.
    for name, run in (("C-FT", 0), ("C-FT", 1), ("C-ZS", 0)):
        for seed in (0, 1):
            key = (name, run, seed, "sampled")
            own = [row for row in facts if (row["system"], row["run"], row["sampling_seed"], row["decoding"]) == key]
            for number in range(ITEMS):
                rows_of = [row["candidates"] for row in own if row["triplet_id"] == f"t{number}"]
                assert sorted(number for row in rows_of for number in row) == [0, 1, 2, 3]
    features = datasets.Features.from_arrow_schema(pq.read_schema(facts[0]["file"]))
    assert features["image"] == datasets.Image() and "predictions/*.parquet" in (out / "README.md").read_text()


def test_a_resumed_evaluation_writes_the_same_images(evaluated, tiny_base, triplets, tmp_path):
    out, _ = evaluated
    files = sorted((out / "predictions").iterdir())
    contents = {file.name: file.read_bytes() for file in files}
    tables = (out / "tables.json").read_bytes()
    # As if it was stopped between the file of a unit and its images.
    (out / "run.json").rename(out / "run.unfinished.json")
    for file in files[1::2]:
        file.unlink()
    evaluate.run(recipe_of(tiny_base, triplets, out, search={"max_unchanged": 0.4}, **QUICK))
    assert {file.name: file.read_bytes() for file in files} == contents
    assert (out / "tables.json").read_bytes() == tables


def test_images_are_left_out_where_the_recipe_says_so(tiny_base, triplets, tmp_path, capsys):
    models = {"x": {"path": str(tiny_base), "role": "fdm", "label": "X"}}
    more = {"models": models, "idm": "", "zero_shot": False, "keep_images": False, "seeds": [0], **QUICK}
    record = evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    assert "warning" not in capsys.readouterr().out
    assert "predictions" not in record["counts"] and not (tmp_path / "out" / "predictions").exists()


def test_negatives_across_tasks_are_warned_of(tiny_base, tmp_path, capsys):
    bench = write_bench(tmp_path / "set")
    evaluate.run(recipe_of(tiny_base, bench, tmp_path / "out", subset="dataset"), dry_run=True)
    out = capsys.readouterr().out
    assert "subset = 'dataset' is one subset, but class_label has 3 values (magicbrush, something, kubric)" in out
    # By itself it keeps to the classes, and says so.
    evaluate.run(recipe_of(tiny_base, bench, tmp_path / "out"), dry_run=True)
    out = capsys.readouterr().out
    assert "warning" not in out
    assert "subset = 'class_label' (3 values: magicbrush, something, kubric)" in out
