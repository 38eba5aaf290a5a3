"""The user's job: one image and some actions, or a folder of triplets; against calls of the functions it is made of."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs.predict import job as predict
from jobs.predict import triplets as predict_triplets
from jobs.predict.job import main
from jobs.predict.recipe import PredictRecipe
from tests.helpers.code_calls import predict_observations, roll_out
from tests.helpers.training_data import random_rows, write_triplets
from wm import dynamics
from wm.dynamics import Search
from wm.errors import InputError, OtherRunError
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, draw_storyboard
from wm.images import decode_image, encode_png
from wm.models import ImageCodec, load_codec, load_model
from wm.nano.preset import write_random_base
from wm.records import row_seeds

ACTIONS = ["put", "move the red cup"]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Of another size and mode than the models': 40 x 24, grey."""
    path = tmp_path / "grey.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)).save(path)
    return path


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = random_rows(tiny_base, 5)
    for row in rows:
        row["source_image"] = row["target_image"] = {"bytes": encode_png(np.zeros((16, 16, 3), np.uint8)), "path": None}
    return write_triplets(rows, tmp_path_factory.mktemp("triplets") / "triplets")


def recipe_of(tiny_base: Path, tmp_path: Path, **more: Any) -> PredictRecipe:
    values = {"fdm": str(tiny_base), "idm": str(tiny_base), "out": str(tmp_path / "out")}
    return PredictRecipe.parse(values | more, "test")


def test_a_rollout_is_written_whole(tiny_base, tmp_path, picture, capsys):
    more = {
        "image": str(picture),
        "actions": ACTIONS,
        "search": {"num_candidates": 5, "num_beams": 2, "num_return": 3},
        "seed": 4,
    }
    recipe = recipe_of(tiny_base, tmp_path, **more)
    assert predict.run(recipe, dry_run=True) == {} and not (tmp_path / "out").exists()
    assert "would predict 2 actions" in capsys.readouterr().out
    record = predict.run(recipe)
    model, codec, out = load_model(tiny_base), load_codec(tiny_base), tmp_path / "out"
    source = decode_image((out / "source.png").read_bytes(), "source")
    assert source.shape == (16, 16, 3)
    search = Search(num_candidates=5, num_beams=2)
    expected = roll_out(model, model, codec.encode(source[None]), [ACTIONS], search=search, seed=4)[0]
    told = json.loads((out / "prediction.json").read_text())
    assert told["actions"] == ACTIONS
    assert [entry["codes"] for entry in told["sequences"]] == [
        [list(one.codes) for one in entry.candidates] for entry in expected.trajectories
    ]
    assert [entry["logprob"] for entry in told["sequences"]] == pytest.approx(
        [entry.logprob for entry in expected.trajectories], abs=1e-4
    )
    for number, one in enumerate(expected.best.candidates):
        pixels = decode_image((out / told["images"][number]).read_bytes(), "step")
        assert np.array_equal(pixels, codec.decode(torch.tensor([one.codes]))[0])
        assert told["steps"][number]["unchanged_share"] == one.unchanged_share
    for step, found in zip(told["steps"], expected.steps, strict=True):
        kept = {}
        for expansion, prediction in zip(step["expansions"], found.predictions, strict=True):
            assert expansion["draws"] == sum(one["times"] for one in expansion["candidates"]) == 5
            assert expansion["seed"] == prediction.best.seed
            assert [one["codes"] for one in expansion["candidates"]] == [list(one.codes) for one in prediction.distinct]
            for rank, one in enumerate(expansion["candidates"]):
                assert (one["image"] is not None) == (rank < 3 or one["kept_as"] is not None)
                if one["image"]:
                    pixels = decode_image((out / one["image"]).read_bytes(), "candidate")
                    assert np.array_equal(pixels, codec.decode(torch.tensor([one["codes"]]))[0])
                if one["kept_as"] is not None:
                    kept[one["kept_as"]] = one["codes"]
        assert kept == {place: list(entry.candidates[-1].codes) for place, entry in enumerate(found.beam)}
    with Image.open(out / "storyboard.png") as board:
        assert board.width > board.height * 0.3 and board.width > 400
    draws = sum(len(one.candidates) for step in expected.steps for one in step.predictions)
    assert record["counts"] == {"steps": 2, "draws": draws, "sequences": 2}
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert predict.run(recipe) == record and "already complete" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(OtherRunError, match="another run"):
        predict.run(recipe_of(tiny_base, tmp_path, **{**more, "seed": 5}))


def test_triplets_are_predicted_in_parts_and_gone_on_with(tiny_base, tmp_path, triplets, monkeypatch):
    monkeypatch.setattr(predict_triplets, "ROWS_PER_PART", 2)
    search = {"num_candidates": 4, "num_return": 2, "min_gain_nats": 0.9, "num_draft_tokens": 2}
    more = {"triplets": str(triplets), "search": search, "seed": 3}
    recipe = recipe_of(tiny_base, tmp_path, **more)
    done: list[int] = []

    def stop(*arguments: Any, **settings: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return dynamics.predict_observations(*arguments, **settings)

    monkeypatch.setattr(predict_triplets, "predict_observations", stop)
    with pytest.raises(KeyboardInterrupt):
        predict.run(recipe)
    parts = tmp_path / "out" / "predictions"
    assert [path.name for path in parts.iterdir()] == ["part-00000.parquet"]
    assert not (tmp_path / "out" / "run.json").exists()
    kept = (parts / "part-00000.parquet").stat().st_mtime_ns
    monkeypatch.setattr(predict_triplets, "predict_observations", dynamics.predict_observations)
    record = predict.run(recipe)
    assert (parts / "part-00000.parquet").stat().st_mtime_ns == kept
    rows = pq.read_table(parts).to_pylist()
    source = pq.read_table(triplets).to_pylist()
    model, seeds = load_model(tiny_base), row_seeds(3, [row["triplet_id"] for row in source])
    found = predict_observations(
        model, model, np.array([row["source_codes"] for row in source]), [row["action"] for row in source],
        search=Search(num_candidates=4, min_gain_nats=0.9, num_draft_tokens=2), seed=seeds,
    )  # fmt: skip
    expected = [
        (row["triplet_id"], seed, one, prediction)
        for row, seed, prediction in zip(source, seeds, found, strict=True)
        for one in prediction.top(2)
    ]
    assert len(rows) == len(expected) == record["counts"]["rows"]
    for row, (triplet_id, seed, one, prediction) in zip(rows, expected, strict=True):
        assert (row["triplet_id"], row["codes"], row["seed"]) == (triplet_id, list(one.codes), seed)
        assert (row["candidate"], row["draws"], row["rounds"]) == (
            one.index, len(prediction.candidates), prediction.rounds
        )  # fmt: skip
        assert row["logprob"] == pytest.approx(one.score.logprob, abs=1e-4)
        assert row["unchanged_share"] == one.unchanged_share
        assert row["times"] == [other.codes for other in prediction.candidates].count(one.codes)
        assert row["passes"] == prediction.passes
    draws = [len(prediction.candidates) for prediction in found]
    assert record["counts"]["draws_each"] == sum(draws) / 5 and record["counts"]["triplets"] == 5


def test_triplets_are_drawn_with_candidates_and_scores(tiny_base, tmp_path, triplets, monkeypatch, capsys):
    drawn: list[Column] = []

    def draw(columns: list[Column], path: Path) -> None:
        drawn.extend(columns)
        draw_storyboard(columns, path)

    monkeypatch.setattr("jobs.predict.triplet_storyboard.draw_storyboard", draw)
    more = {"triplets": str(triplets), "search": {"num_candidates": 4, "num_return": 2}, "storyboard_triplets": 2}
    predict.run(recipe_of(tiny_base, tmp_path, **more))
    path = tmp_path / "out" / "storyboard.png"
    assert f"storyboard: {path}" in capsys.readouterr().out and decode_image(path.read_bytes(), "it").shape[2] == 3
    source = pq.read_table(triplets).to_pylist()[:2]
    rows = pq.read_table(tmp_path / "out" / "predictions").to_pylist()
    assert [column.title for column in drawn] == [row["action"] for row in source]
    codec = load_codec(tiny_base)
    for column, triplet in zip(drawn, source, strict=True):
        candidates = [row for row in rows if row["triplet_id"] == triplet["triplet_id"]]
        assert [shot.below[0] for shot in column.shots[:2]] == ["source", "true target"]
        assert len(column.shots) == 2 + len(candidates)
        for rank, (shot, row) in enumerate(zip(column.shots[2:], candidates, strict=True)):
            assert row["rank"] == rank and shot.frame == (OTHER if rank else CHOSEN)
            assert np.array_equal(shot.pixels, codec.decode(torch.tensor([row["codes"]]))[0])
            score = f"{row['logprob'] / row['action_tokens']:.3f} nats/token"
            assert shot.below == [score, f"sampled {row['times']} of 4 times"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "give image=FILE with actions=.*, or triplets=FOLDER, and not both"),
        ({"image": "a.png"}, r"actions = \[\]: expected one action or more"),
        ({"image": "a.png", "actions": ["put", " "]}, "action ' ' is empty"),
        ({"image": "a.png", "actions": ["x" * 1001]}, "has 1001 letters; expected some words, 1000 letters at most"),
        ({"image": "a.png", "actions": ["put"], "limit": 3}, "limit = 3 belongs to triplets"),
        ({"triplets": "t", "actions": ["put"]}, "actions belong to image"),
        ({"triplets": "t", "search": {"num_beams": 2}}, "search.num_beams = 2 belongs to actions one after the other"),
        ({"image": "a.png", "actions": ["put"], "search": {"num_candidates": 0}}, "search.num_candidates = 0"),
        ({"image": "nowhere.png", "actions": ["put"]}, "image = 'nowhere.png': no such file|no such file or folder"),
        ({"image": "a.png", "actions": ["put"], "fdm": "nowhere"}, "fdm = 'nowhere': no such model folder"),
        ({"image": "a.png", "actions": ["put"], "resources": {"device": "abacus"}}, "device = 'abacus'"),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(tiny_base, tmp_path, more, said):
    with pytest.raises(InputError, match=said) as caught:
        predict.run(recipe_of(tiny_base, tmp_path, **more))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def refuse(codec):
    raise InputError("no decoder")


def test_what_models_cannot_do_is_refused_before_any_output(tiny_base, tmp_path, picture, triplets, monkeypatch):
    given = {"image": str(picture), "actions": ["put"]}
    with pytest.raises(InputError, match=r"num_draft_tokens = 4: expected 0 \(off\) to 3"):
        predict.run(recipe_of(tiny_base, tmp_path, **given, search={"num_draft_tokens": 4}))
    with pytest.raises(InputError, match="holds the reserved token"):
        predict.run(recipe_of(tiny_base, tmp_path, image=str(picture), actions=["put", "<pad>"]))
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken\.png is no readable image"):
        predict.run(recipe_of(tiny_base, tmp_path, image=str(broken), actions=["put"]))
    # Of two codecs pixels are exchanged, which the forward model's has to decode.
    write_random_base(tmp_path / "other", seed=9)
    monkeypatch.setattr(ImageCodec, "check_decoder", refuse)
    with pytest.raises(InputError, match="no decoder"):
        predict.run(recipe_of(tiny_base, tmp_path, triplets=str(triplets), idm=str(tmp_path / "other")), dry_run=True)
    predict.run(recipe_of(tiny_base, tmp_path, triplets=str(triplets)), dry_run=True)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tiny_base, tmp_path, picture, monkeypatch, capsys):
    shutil.copy(picture, tmp_path / "a.jpg")
    monkeypatch.chdir(tmp_path)
    models = [f"fdm={tiny_base}", f"idm={tiny_base}"]
    argv = [
        "predict",
        *models,
        "image=a.jpg",
        'actions=["put", "take"]',
        "out=o",
        "search.num_candidates=2",
        "search.max_unchanged=0.5",
    ]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 0
    assert "step 2: take: " in capsys.readouterr().out
    assert json.loads(Path("o/run.json").read_text())["recipe"]["search"]["max_unchanged"] == 0.5


def test_a_folder_named_like_a_column_is_no_column(tmp_path: Path) -> None:
    """Pyarrow reads ``rank=8`` in a list of files' paths as a value of the column ``rank``."""
    folder = tmp_path / "rank=8" / "draws=2"
    folder.mkdir(parents=True)
    columns = {
        "triplet_id": ["a", "a"],
        "rank": [0, 1],
        "draws": [4, 4],
        "logprob": [-2.0, -3.0],
        "action_tokens": [2, 2],
    }
    pq.write_table(pa.table(columns | {"unchanged_share": [0.25, 0.5]}), folder / "part.parquet")
    counts = predict.count_parts([folder / "part.parquet"], 1)
    assert counts["triplets"] == 1 and counts["rows"] == 2 and counts["draws"] == 4
    assert counts["mean_logprob"] == -1.0 and counts["unchanged_share"] == 0.25
