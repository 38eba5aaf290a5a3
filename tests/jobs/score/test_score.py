"""Prediction sets of several systems, scored side by side."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from jobs import collect, evaluate, score
from jobs.collect import CollectRecipe
from jobs.score import ScoreRecipe
from jobs.score import job as score_job
from jobs.score.actions import ACTION_VALUE_SCHEMA
from tests.helpers.bench_files import TASKS, bench_pair, write_bench
from tests.helpers.evaluate_data import ACTIONS, noise_pair, recipe_of, write_triplets
from tests.helpers.models_encoders import write_blip, write_clip, write_dino, write_roberta
from wm.errors import InputError
from wm.evaluation.bench_rows import read_bench_rows
from wm.evaluation.image_scoring import VALUE_SCHEMA
from wm.evaluation.metrics.encoders import load_blip, load_clip, load_dino
from wm.evaluation.metrics.text import report_text
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.paper.tables.common import Layout
from wm.tables import read_table

SUBSETS = ["magicbrush", "something", "kubric"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return write_bench(tmp_path_factory.mktemp("score"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    writers = {"clip": write_clip, "dino": write_dino, "blip": write_blip}
    return {name: str(write(folder / name)) for name, write in writers.items()}


def predicted(number, candidate=0):
    """What the system of the tests predicts: the target, shifted, at another size."""
    image = Image.fromarray(np.roll(bench_pair(number)[1], candidate + 1, axis=1))
    return np.array(image.resize((30, 26)))


@pytest.fixture(scope="module")
def got(bench, tmp_path_factory):
    """Two candidates of each row but the last, two equal ones of the first."""
    folder = tmp_path_factory.mktemp("got")
    for number in range(4):
        for candidate in range(2):
            name = f"{number}_{candidate}.png"
            Image.fromarray(predicted(number, candidate if number else 0)).save(folder / name)
    values = {"system": "GoT", "triplets": str(bench), "folder": str(folder), "pattern": "{row}_{candidate}.png"}
    collect.run(CollectRecipe.parse(values | {"out": str(folder / "set")}, "test"))
    return folder / "set"


def recipe_for(bench, out, sets=(), **changes):
    values = {"predictions": [str(folder) for folder in sets], "triplets": str(bench), "out": str(out)}
    return ScoreRecipe.parse(values | changes, "test")


def gap(first, second):
    return float(np.abs(first.astype(float) - second).mean() / 255)


def cosine(encoder, first, second):
    return float((encoder.embed_images([first]) * encoder.embed_images([second])).sum())


def test_figures_are_those_made_by_hand(bench, got, models, tmp_path, capsys):
    record = score.run(recipe_for(bench, tmp_path / "out", [got], **models, resources={"batch_size": 3}))
    assert record["counts"] == {"triplets": 5, "images": 5 + 7, "actions": 0, "systems": 2}
    scores = json.loads((tmp_path / "out/scores.json").read_text())
    rows = {(row["system"], row["choice"]): row for row in scores["rows"]}
    assert scores["subsets"] == SUBSETS and not scores["absent"] and scores["note"] == ""
    # Copy: the distance of the pairs themselves.
    copy = rows["Copy", "none"]["metrics"]["l1"]
    gaps = [gap(*bench_pair(number)) for number in range(5)]
    by_subset = [np.mean(gaps[:2]), np.mean(gaps[2:4]), gaps[4]]
    assert list(copy["by_subset"].values()) == pytest.approx(by_subset) and list(copy["by_subset"]) == SUBSETS
    assert (copy["macro_mean"], copy["micro_mean"]) == pytest.approx((np.mean(by_subset), np.mean(gaps)))
    # GoT: resized to the target, mean over the candidates of an item; a subset without a prediction shows.
    row = rows["GoT", "none"]
    assert (row["num_items"], row["num_missing"], row["missing_by_subset"]) == (4, 1, {"kubric": 1})
    resized = {
        (number, candidate): np.array(
            Image.fromarray(predicted(number, candidate)).resize((24, 16), Image.Resampling.BICUBIC)
        )
        for number in range(4)
        for candidate in range(2)
    }
    items = [gap(resized[0, 0], bench_pair(0)[1])]
    items += [np.mean([gap(resized[number, k], bench_pair(number)[1]) for k in range(2)]) for number in range(1, 4)]
    figure = row["metrics"]["l1"]
    assert figure["micro_mean"] == pytest.approx(np.mean(items)) and figure["num_items"] == 4
    assert figure["by_subset"]["kubric"] is None and figure["macro_mean"] is None
    # The models' figures, value by value.
    clip, dino, blip = load_clip(models["clip"]), load_dino(models["dino"]), load_blip(models["blip"])
    values = read_table(tmp_path / "out/values", VALUE_SCHEMA).to_pylist()
    ids = [bench_row.triplet_id for bench_row in read_bench_rows(bench)]
    for value in values:
        number = ids.index(value["triplet_id"])
        source, target = bench_pair(number)
        image = source if value["system"] == "Copy" else predicted(number, value["candidates"][0])
        assert value["clip_i"] == pytest.approx(cosine(clip, image, target), abs=1e-6)
        assert value["dino"] == pytest.approx(cosine(dino, image, target), abs=1e-6)
        captions = blip.caption([image]) + blip.caption([target])
        assert [value["caption"], value["target_caption"]] == captions
        own, true = (clip.embed_images([image]) @ clip.embed_texts(captions).T)[0]
        assert (value["clip_t_prediction"], value["clip_t_target"]) == pytest.approx((own, true), abs=1e-6)
    out = capsys.readouterr().out
    assert "GoT: 1 triplets have no prediction (Kubric 1)" in out and "macro mean" in out
    lines = list(csv.DictReader((tmp_path / "out/scores.csv").read_text().splitlines()))
    by_name = {line["subset"]: line for line in lines if (line["system"], line["metric"]) == ("GoT", "l1")}
    assert float(by_name["magicbrush"]["mean"]) == figure["by_subset"]["magicbrush"]
    # Each mean with the items that it is of; a subset without data has none, and neither has the macro mean.
    assert {name: (line["num_items"], line["num_missing"]) for name, line in by_name.items()} == {
        "magicbrush": ("2", "0"), "something": ("2", "0"), "kubric": ("0", "1"), "macro mean": ("4", "1"),
        "micro mean": ("4", "1"),
    }  # fmt: skip
    assert by_name["kubric"]["mean"] == by_name["macro mean"]["mean"] == ""


def test_a_killed_run_resumes_with_equal_figures(bench, got, models, tmp_path, monkeypatch):
    recipe = recipe_for(bench, tmp_path / "out", [got], clip=models["clip"], images_per_task=3)
    actual, calls = score_job.score_and_store, []

    def stop_after_two(*arguments):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(arguments)
        return actual(*arguments)

    monkeypatch.setattr(score_job, "score_and_store", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        score.run(recipe)
    assert len(list((tmp_path / "out/values").iterdir())) == 2 and not (tmp_path / "out/scores.json").exists()
    monkeypatch.undo()
    score.run(recipe)
    # Once more in one go, with features of another run and in batches of another size.
    shared = {"clip": models["clip"], "cache": str(tmp_path / "out/features"), "images_per_task": 100}
    score.run(recipe_for(bench, tmp_path / "again", [got], **shared))
    first, second = (json.loads((tmp_path / name / "scores.json").read_text()) for name in ("out", "again"))
    for row, other in zip(first["rows"], second["rows"], strict=True):
        for metric, figure in row["metrics"].items():
            assert figure["micro_mean"] == pytest.approx(other["metrics"][metric]["micro_mean"], abs=1e-7)
    assert first["absent"]["dino"] == "needs dino (a folder such as facebook/dino-vits16)"
    assert set(first["absent"]) == {"dino", "clip_t_target", "clip_t_prediction"}


def test_an_evaluations_own_figures_come_back(tiny_base, tmp_path):
    triplets = write_triplets(tmp_path / "held_out", noise_pair, ACTIONS)
    models = {"x": {"path": str(tiny_base), "role": "fdm", "label": "X"}}
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "run", models=models, idm="zero-shot-idm", probe=False))
    changes = {"codec": str(tiny_base), "subset": "dataset", "images_per_task": 5}
    score.run(recipe_for(triplets, tmp_path / "out", [tmp_path / "run"], **changes))
    expected = {
        (row["label"], row["choice"], row["k"]): row["metrics"]["l1"]
        for row in json.loads((tmp_path / "run/tables.json").read_text())["fdm"]
        if row["choice"] != "oracle"
    }
    rows = json.loads((tmp_path / "out/scores.json").read_text())["rows"]
    for row in rows:
        figure = row["metrics"]["l1_square"]
        assert row["num_missing"] == 0
        # Copy shows the full frame, whose square is scaled.
        if row["system"] != "Copy":
            mean = expected[row["system"], row["choice"], row["k"]]["mean"]
            assert figure["micro_mean"] == pytest.approx(mean, abs=1e-12), row["system"]
            assert set(figure["by_subset"]) == {"even", "odd"}
    assert {(row["system"], row["choice"], row["k"]) for row in rows} == set(expected)
    (own,) = json.loads((tmp_path / "out/scores.json").read_text())["actions"]["rows"]
    (row,) = json.loads((tmp_path / "run/tables.json").read_text())["idm"]
    for name in ("rouge1", "rouge2", "rougeL", "exact_match"):
        assert own["metrics"][name]["micro_mean"] == pytest.approx(row["metrics"][name]["mean"]), name


def test_actions_of_several_systems(bench, models, tmp_path, capsys):
    rows = read_bench_rows(bench)
    texts = {"VILA-U": ["do 0", "do 2", "undo"], "Echo": [row.action for row in rows]}
    for system, actions in texts.items():
        lines = [json.dumps({"row": number, "action": text}) for number, text in enumerate(actions)]
        (tmp_path / f"{system}.jsonl").write_text("\n".join(lines))
        values = {"system": system, "triplets": str(bench), "actions": str(tmp_path / f"{system}.jsonl")}
        collect.run(CollectRecipe.parse(values | {"out": str(tmp_path / system)}, "test"))
    sets = [tmp_path / system for system in texts]
    bert = {"model": str(write_roberta(tmp_path / "roberta")), "layer": 2, "rescale": False}
    score.run(recipe_for(bench, tmp_path / "out", sets, with_copy=False, bertscore=bert))
    actions = json.loads((tmp_path / "out/scores.json").read_text())["actions"]
    by_system = {row["system"]: row for row in actions["rows"]}
    figures = {name: row["metrics"] for name, row in by_system.items()}
    for name in ("rouge1", "rouge2", "rougeL", "exact_match", "bertscore"):
        assert figures["Echo"][name]["macro_mean"] == pytest.approx(1.0, abs=1e-6), name
    # "do 2" for "do 1": one of two words; "undo" for "do 2": none.
    assert figures["VILA-U"]["rouge1"]["by_subset"] == pytest.approx(
        {"magicbrush": 0.75, "something": 0, "kubric": None}
    )
    assert figures["VILA-U"]["exact_match"]["micro_mean"] == pytest.approx(1 / 3)
    assert by_system["VILA-U"]["missing_by_subset"] == {"something": 1, "kubric": 1}
    report = report_text(texts["VILA-U"], [row.action for row in rows[:3]])
    assert actions["corpus_bleu"]["VILA-U"] == {"0": pytest.approx(report.figures["bleu"])}
    values = read_table(tmp_path / "out/action_values", ACTION_VALUE_SCHEMA).to_pylist()
    assert [row["action"] for row in values] == texts["VILA-U"] + texts["Echo"]
    # On to the paper's table 1, whose row VILA-U is filled by texts alone.
    table = TABLES["1"](Layout(Measured(read_sources([str(tmp_path / "VILA-U"), str(tmp_path / "out")]))))
    (vila,) = (row for row in table.rows if row.title == "VILA-U")
    cells = dict(zip([column.name for column in table.columns], vila.cells, strict=True))
    assert cells["R-1"].mean == figures["VILA-U"]["rouge1"]["micro_mean"]
    assert cells["R-1"].spread_text() == f"(n 3 of {len(rows)})" and cells["BS"].mean is not None
    assert cells["BLEU"].mean == pytest.approx(report.figures["bleu"])
    out = capsys.readouterr().out
    assert "bleu (corpus)" in out and "bertscore: layer 2, not rescaled" in out
    with pytest.raises(InputError, match="both hold actions of a system named 'Echo'"):
        shutil.copytree(tmp_path / "Echo", tmp_path / "again")
        score.run(recipe_for(bench, tmp_path / "twice", [*sets, tmp_path / "again"]))


def test_bad_input_is_one_line_and_leaves_nothing(bench, got, models, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(got, other)
    (tmp_path / "half").mkdir()
    alien = write_triplets(tmp_path / "alien", noise_pair, ACTIONS)
    # Not its own: a text is passed over, a table of other columns is not.
    mixed = tmp_path / "mixed"
    shutil.copytree(got, mixed)
    (mixed / "predictions" / "notes.txt").write_text("none")
    assert score.run(recipe_for(bench, tmp_path / "dry", [mixed]), dry_run=True) == {}
    shutil.copy(bench / "triplets" / "part-00000.parquet", mixed / "predictions" / "other.parquet")
    for sets, changes, message in (
        ([got, other], {}, "both hold a system named 'GoT'; give one of them another name"),
        ([tmp_path / "half"], {}, "half is not complete: expected a folder with run.json"),
        ([tmp_path / "none"], {}, "none does not exist"),
        ([mixed], {}, "predictions/other.parquet lacks the column 'system'"),
        ([bench], {}, "has no predictions/: expected a folder of wm collect"),
        ([], {"with_copy": False}, "nothing to score"),
        ([got, got], {}, "expected different folders"),
        ([got], {"clip": models["dino"]}, "holds a model of type 'vit'; expected clip"),
        ([got], {"triplets": str(alien)}, "is of another bench: 4 of its triplets"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            score.run(recipe_for(bench, tmp_path / "out", sets, **changes))
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_dry_run_prints_systems_and_what_is_absent(bench, got, tmp_path, capsys):
    assert score.run(recipe_for(bench, tmp_path / "out", [got]), dry_run=True) == {}
    out = capsys.readouterr().out
    assert "GoT: 7 images, 1 triplets have none" in out and f"Copy: {len(TASKS)} images\n" in out
    assert "clip_i: absent, needs clip" in out and not (tmp_path / "out").exists()
