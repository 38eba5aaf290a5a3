"""Sets and machines that a training run cannot use, and odd ones that it can: told in one line, before any work."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.train.job import main, run
from tests.helpers.training_data import merge_tables, random_rows, to_arguments, write_triplets
from wm.errors import InputError
from wm.models import load_codec
from wm.training import TrainRecipe


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 20), tmp_path_factory.mktemp("triplets"))


def arguments(base: Path, triplets: Path, out: Path, **values: Any) -> dict[str, Any]:
    common = {
        "task": "fdm",
        "base": str(base),
        "triplets": str(triplets),
        "out": str(out),
        "resources": {"num_workers": 0},
    }
    training = {
        "max_steps": 4,
        "global_batch_size": 4,
        "checkpoint": {"every_steps": 2},
        "logging": {"trackers": []},
    }
    return merge_tables(common, training, values)


def refused(capsys: pytest.CaptureFixture[str], out: Path, values: dict[str, Any]) -> str:
    """The one line with which the command refuses."""
    assert main(to_arguments(values)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert not (out / "model").exists() and not (out / "run.json").exists()
    return error


def nothing_but_tokens(out: Path) -> None:
    """The rows were read into the token cache, which another start uses; nothing else was done."""
    assert [path.name for path in out.iterdir()] == [".tokens"]


def test_a_base_that_is_no_folder_says_how_to_get_it(
    triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for more in ([], ["--dry-run"]):
        assert main([*to_arguments(arguments(Path("leloy/Anole-7b-v0.1-hf"), triplets, out)), *more]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: base = 'leloy/Anole-7b-v0.1-hf': no such model folder; models are read from ")
        assert "hf download leloy/Anole-7b-v0.1-hf" in error and error.count("\n") == 1
    assert "nothing is downloaded" not in refused(capsys, out, arguments(tmp_path / "gone", triplets, out))


def test_an_empty_set_is_refused(tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_triplets([], tmp_path), tmp_path / "out"
    error = refused(capsys, out, arguments(tiny_base, folder, out))
    assert f"{folder} has no row to train on (0 rows, 0 not of status 'ok')" in error
    assert not out.exists()


def test_a_source_without_rows_beside_a_good_one_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    empty = write_triplets(random_rows(tiny_base, 3, status="doubtful"), tmp_path)
    sources = [{"path": str(triplets)}, {"path": str(empty)}]
    recipe = TrainRecipe.parse(arguments(tiny_base, triplets, tmp_path / "out") | {"triplets": sources}, "test")
    with pytest.raises(InputError, match=rf"^{empty} has no row to train on \(3 rows, 3 not of status 'ok'\)$"):
        run(recipe)
    nothing_but_tokens(tmp_path / "out")


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_source_of_mix_weight_0_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path, weight: float) -> None:
    values = arguments(tiny_base, triplets, tmp_path / "out") | {"triplets": [{"path": "x", "mix_weight": weight}]}
    with pytest.raises(InputError, match=rf"^test: triplets\.0\.mix_weight = {weight}: .*greater than 0"):
        TrainRecipe.parse(values, "test")


def test_a_mix_weight_that_shows_no_row_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    values = arguments(tiny_base, triplets, tmp_path / "out")
    values["triplets"] = [{"path": str(triplets)}, {"path": str(triplets), "mix_weight": 0.01}]
    with pytest.raises(
        InputError, match=r"mix_weight = 0.01 shows none of its 20 rows in an epoch; expected 0.025 or more"
    ):
        run(TrainRecipe.parse(values, "test"))
    nothing_but_tokens(tmp_path / "out")


@pytest.mark.parametrize("count", [1, 3])
def test_a_set_of_fewer_rows_than_a_batch_is_trained_on(tiny_base: Path, tmp_path: Path, count: int) -> None:
    folder = write_triplets(random_rows(tiny_base, count), tmp_path)
    record = run(TrainRecipe.parse(arguments(tiny_base, folder, tmp_path / "out", optim={"lr": 1e-2}), "test"))
    assert record["counts"]["triplets"] == count
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == pytest.approx([4 * step / count for step in (1, 2, 3, 4)], abs=1e-3)
    assert lines[-1]["loss"] < lines[0]["loss"]


def test_unchanged_images_train_with_equal_weights(tiny_base: Path, tmp_path: Path) -> None:
    rows = random_rows(tiny_base, 8)
    for row in rows:
        row |= {"target_codes": row["source_codes"], "change": [0.0] * load_codec(tiny_base).tokens_per_image}
    folder = write_triplets(rows, tmp_path)
    losses = {}
    for enabled in (True, False):
        out = tmp_path / f"out{enabled}"
        run(TrainRecipe.parse(arguments(tiny_base, folder, out, recognition={"enabled": enabled}), "test"))
        losses[enabled] = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert losses[True] == pytest.approx(losses[False], rel=1e-6)


def test_more_gpus_than_there_are_is_refused(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    values = arguments(tiny_base, triplets, tmp_path / "out", resources={"num_workers": 2, "use_gpu": True})
    error = refused(capsys, tmp_path / "out", values)
    assert "resources.num_workers = 2, resources.use_gpu = true asks for 2 GPUs; torch finds 1 on this machine" in error
    assert not (tmp_path / "out").exists()


def test_a_recipe_that_names_a_missing_base_is_refused(
    triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'task = "fdm"\nbase = "models/none"\nmax_steps = 1\nout = "{tmp_path}/out"\ntriplets = "{triplets}"\n'
    )
    assert main([str(recipe), "resources.num_workers=0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "models/none" in error
    assert not (tmp_path / "out").exists()


def test_checkpoints_that_cannot_be_written_are_refused(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    values = arguments(tiny_base, triplets, tmp_path / "out", checkpoint={"folder": str(tmp_path / "file" / "below")})
    assert "/file/below': cannot be written to" in refused(capsys, tmp_path / "out", values)
    assert not (tmp_path / "out").exists()
    values["checkpoint"]["folder"] = "https://host/place"
    assert "expected a local folder, s3://bucket/prefix or gs://bucket/prefix" in refused(
        capsys, tmp_path / "out", values
    )


def test_checkpoint_of_another_recipe_is_refused_before_work(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = arguments(
        tiny_base, triplets, tmp_path / "out", checkpoint={"folder": str(tmp_path / "place"), "keep_last": 1}
    )
    run(TrainRecipe.parse(values, "test"))
    capsys.readouterr()
    error = refused(capsys, tmp_path / "other", values | {"out": str(tmp_path / "other"), "seed": 7})
    assert "is of another recipe: seed = 0 there, 7 here; choose another folder" in error
    nothing_but_tokens(tmp_path / "other")
