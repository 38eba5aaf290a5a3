"""An evaluation from models and triplets to tables: complete, resumed, on Ray, over one base."""

import json

import numpy as np
import pytest

from jobs import evaluate
from jobs.evaluate import workers
from tests.helpers.evaluate_data import ITEMS, noise_pair, recipe_of
from tests.helpers.models_roles import write_roles
from wm.errors import InputError
from wm.evaluation import bench
from wm.evaluation.predictions import list_predictions
from wm.evaluation.units import load_part, run_unit
from wm.models import checkpoints
from wm.sampling.llama_runner import LlamaRunner


def test_all_tables_and_examples_are_written(tiny_base, triplets, tmp_path, capsys):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    record = evaluate.run(recipe)
    predictions = len(list_predictions(tmp_path / "out"))
    assert record["counts"] == {
        "triplets": ITEMS, "models": 5, "units": 16, "examples": 3, "predictions": predictions,
        "actions": 2 * ITEMS,
    }  # fmt: skip
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {(row["label"], row["choice"], row["k"]): row for row in tables["fdm"]}
    assert rows["Copy", "none", 1]["metrics"]["unchanged_tokens"]["mean"] == 1.0
    gaps = [np.abs(a.astype(float) - b).mean() / 255 for a, b in map(noise_pair, range(ITEMS))]
    assert rows["Copy", "none", 1]["metrics"]["l1"]["mean"] == pytest.approx(np.mean(gaps))
    assert rows["Copy", "none", 1]["by_subset"]["even"]["l1"] == pytest.approx(np.mean(gaps[::2]))
    for k in (1, 2, 4):
        figure = rows["C-FT", "idm", k]["metrics"]["l1"]
        assert (figure["n"], figure["over"], set(figure["runs"])) == (2, "training seeds", {"0", "1"})
    # both runs are the same weights and the same noise: no spread between them
    assert rows["C-FT", "idm", 1]["metrics"]["l1"]["std"] == 0.0
    assert rows["C-ZS", "idm", 1]["metrics"]["l1"]["over"] == "sampling seeds"
    assert rows["C-FT", "oracle", 4]["metrics"]["l1"]["mean"] <= rows["C-FT", "oracle", 2]["metrics"]["l1"]["mean"]
    assert {row["label"] for row in tables["idm"]} == {"C-ZS", "IDM"}
    assert {(row["role"], row["label"]) for row in tables["probe"]} == {
        ("fdm", "C-FT"),
        ("fdm", "C-ZS"),
        ("idm", "C-ZS"),
        ("idm", "IDM"),
    }
    examples = json.loads((tmp_path / "out/examples.json").read_text())
    assert len(examples) == 3
    for example in examples:
        assert len(example["change"]) == 4
        for model in example["models"]:
            assert sum(candidate["times"] for candidate in model["candidates"]) == 4
            scores = [candidate["logprob"] for candidate in model["candidates"]]
            assert scores == sorted(scores, reverse=True) and model["chosen"] == 0
            assert (tmp_path / "out" / model["candidates"][0]["image"]).is_file()
    out = capsys.readouterr().out
    assert "C-FT, closest to the target of 4" in out and "preference for the truth" in out
    assert evaluate.run(recipe) == record
    assert "nothing to do" in capsys.readouterr().out


def test_adapters_over_one_base_give_the_same_tables(tiny_base, triplets, tmp_path, monkeypatch):
    """Fewer loads of the base, the same candidates, and scores up to rounding."""
    folders = write_roles(tiny_base, tmp_path)
    models = {
        "inverse": {"path": str(folders / "idm"), "role": "idm", "label": "IDM"},
        "forward": {"path": str(folders / "fdm"), "role": "fdm", "label": "C-FT"},
        "other": {"path": str(folders / "full"), "role": "idm", "label": "Full"},
    }
    read, runners = [], []
    load_full, ready = checkpoints._load_full, LlamaRunner.__init__

    def counted_load(folder, *settings):
        read.append(folder.name)
        return load_full(folder, *settings)

    def counted_init(self, vlm, **options):
        runners.append(options)
        ready(self, vlm, **options)

    monkeypatch.setattr(checkpoints, "_load_full", counted_load)
    monkeypatch.setattr(LlamaRunner, "__init__", counted_init)
    parts, reads = {}, {}
    for weights in ("merged", "shared"):
        bench.load_cached_role.cache_clear()
        bench._load_base.cache_clear()
        read.clear()
        runners.clear()
        out = tmp_path / weights
        settings = {
            "base": str(folders / "base"),
            "models": models,
            "idm": "inverse",
            "resources": {"base_sharing": weights},
        }
        evaluate.run(recipe_of(tiny_base, triplets, out, **settings))
        parts[weights] = {file.name: load_part(file) for file in sorted((out / "parts").iterdir())}
        reads[weights] = read.copy()
        assert len(runners) <= len(read) + 4, "one a model, not one a call"
    assert reads["shared"].count("base") == 1 < reads["merged"].count("base")
    assert reads["shared"].count("full") == 1
    for name, (facts, arrays) in parts["merged"].items():
        others, their_arrays = parts["shared"][name]
        for key, values in arrays.items():
            np.testing.assert_allclose(their_arrays[key], values, atol=2e-4, err_msg=f"{name} {key}")
        assert facts.get("texts") == others.get("texts")


def test_a_stopped_evaluation_resumes_where_it_stopped(tiny_base, triplets, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", probe=False)
    calls = []

    def stop_after_three(*arguments):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(arguments)
        return run_unit(*arguments)

    monkeypatch.setattr(workers, "run_unit", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(recipe)
    times_ns = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/parts").iterdir()}
    assert len(times_ns) == 3 and not (tmp_path / "out/run.json").exists()
    monkeypatch.undo()
    evaluate.run(recipe)
    for name, time in times_ns.items():
        assert (tmp_path / "out/parts" / name).stat().st_mtime_ns == time


def test_parts_of_another_seed_scheme_are_not_mixed_in(tiny_base, triplets, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    monkeypatch.setattr(workers, "run_unit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.run(recipe)
    path = tmp_path / "out/run.unfinished.json"
    record = json.loads(path.read_text())
    del record["inputs"]["seeds"]  # as before each row had its own
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"another run, unfinished \(inputs seeds = None there, \"of the run's seed"):
        evaluate.run(recipe)


def test_dry_run_writes_nothing(tiny_base, triplets, tmp_path, capsys):
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out"), dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "would evaluate 5 models on 6 triplets in 16 units" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_gives_the_same_tables(tiny_base, triplets, tmp_path, ray_session):
    for num_workers in (0, 2):
        recipe = recipe_of(
            tiny_base,
            triplets,
            tmp_path / str(num_workers),
            resources={"num_workers": num_workers},
            probe=False,
            examples=0,
        )
        evaluate.run(recipe)
    (tmp_path / "cut").mkdir()
    for file in tiny_base.iterdir():
        data = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(data[:500] if file.suffix == ".safetensors" else data)
    models = {"x": {"path": str(tmp_path / "cut"), "role": "fdm", "label": "X"}}
    bad = recipe_of(
        tiny_base, triplets, tmp_path / "bad", resources={"num_workers": 2}, models=models, idm="", zero_shot=False
    )
    with pytest.raises(InputError) as caught:
        evaluate.run(bad)
    assert "\n" not in str(caught.value) and "cut" in str(caught.value)
    local, remote = (json.loads((tmp_path / name / "tables.json").read_text()) for name in ("0", "2"))
    for row, other in zip(local["idm"], remote["idm"], strict=True):
        for name, figure in row["metrics"].items():
            assert figure["mean"] == pytest.approx(other["metrics"][name]["mean"], abs=1e-5), name
    for row, other in zip(local["fdm"], remote["fdm"], strict=True):
        assert row["metrics"]["l1"]["mean"] == pytest.approx(other["metrics"]["l1"]["mean"], abs=1e-6)
