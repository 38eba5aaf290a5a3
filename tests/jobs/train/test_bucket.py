"""A run whose base, triplets, tokens and output are in buckets, on nodes that share nothing else."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.train.job import run
from jobs.train.watch import watch
from tests.helpers.bucket_models import bucket, keys, upload
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.files.mirror import mirrored_path
from wm.models import load_model
from wm.training import METRICS, TrainRecipe
from wm.training.checkpoint.manager import CheckpointManager
from wm.training.data import cache_folders


class KilledError(BaseException):
    """Ends a run where it stands, as a kill does: nothing handles it."""


@pytest.fixture(scope="module")
def rows(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows")
    write_triplets(random_rows(tiny_base, 12, seed=3), root / "held_out")
    return write_triplets(random_rows(tiny_base, 40), root / "triplets")


def recipe_of(root: str, out: str, base: str = "", **values: Any) -> TrainRecipe:
    common = {
        "task": "fdm",
        "base": base or f"{root}/base",
        "triplets": f"{root}/triplets",
        "out": out,
        "max_steps": 8,
        "global_batch_size": 8,
    }
    settings = {
        "resources": {"num_workers": 0},
        "optim": {"lr": 1e-2},
        "checkpoint": {"every_steps": 3},
        "logging": {"every_steps": 2},
    }
    return TrainRecipe.parse(merge_tables(common, settings, values), "test")


def exact(text: str) -> list[tuple[float, ...]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]


def read(client: Any, key: str) -> str:
    return str(client.get_object(Bucket="data", Key=key)["Body"].read().decode())


def test_a_killed_run_resumes_on_a_node_that_has_nothing(
    tiny_base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = {"every_steps": 3, "metric_for_best_model": "nats"}
    # 1. What comes of it where nothing is killed and all is local.
    held_out = {"eval": {**evaluation, "triplets": str(rows.parent / "held_out")}}
    run(recipe_of(str(rows.parent), str(tmp_path / "local"), str(tiny_base), **held_out))
    expected = load_model(tmp_path / "local" / "model")
    with bucket("data") as client:
        upload(client, tiny_base, "data", "base")
        upload(client, rows.parent, "data", "")
        values = {"eval": {**evaluation, "triplets": "s3://data/held_out"}, "data": {"token_cache": "s3://data/tokens"}}
        # 2. Node a, killed when its checkpoint of step 6 is complete.
        monkeypatch.setenv("WM_CACHE", str(tmp_path / "a"))
        with monkeypatch.context() as patch:
            kill_after(patch, step=6)
            with pytest.raises(KilledError):
                run(recipe_of("s3://data", "s3://data/runs/fdm", **values))
        assert not any(key.endswith(("run.json", "model/config.json")) for key in keys(client, "data", "runs/fdm/"))
        assert len(exact(read(client, f"runs/fdm/{METRICS}"))) == 6
        # 3. Node b has nothing, and reads the tokens that node a has published.
        monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
        monkeypatch.setattr(cache_folders, "_write", None)
        capsys.readouterr()
        record = run(recipe_of("s3://data", "s3://data/runs/fdm", **values))
        assert record["summary"]["resumed_at_step"] == 6
        # A log that ends before the summary says it too.
        assert " steps, resuming from step 6\n" in capsys.readouterr().out
        assert exact(read(client, f"runs/fdm/{METRICS}")) == exact((tmp_path / "local" / METRICS).read_text())
        # 4. The bucket has what a local folder has, and nothing else.
        names = [name for key in keys(client, "data", "runs/fdm/") if (name := key.removeprefix("runs/fdm/"))]
        left = {name.split("/")[0] for name in names} - {"checkpoints", ".wm-writers"}
        assert left == {path.name for path in (tmp_path / "local").iterdir()}
        # 5. Node c loads the model; the same command has nothing to do there.
        monkeypatch.setenv("WM_CACHE", str(tmp_path / "c"))
        model = load_model("s3://data/runs/fdm")
        for (name, ours), theirs in zip(model.module.named_parameters(), expected.module.parameters(), strict=True):
            assert torch.equal(ours, theirs), name
        capsys.readouterr()
        assert run(recipe_of("s3://data", "s3://data/runs/fdm", **values))["summary"] == record["summary"]
        output = capsys.readouterr().out
        assert output == "s3://data/runs/fdm is complete: nothing to do (model in s3://data/runs/fdm/model)\n"
        # 6. Whoever watches from a node of its own.
        with watch(mirrored_path("s3://data/runs/fdm")) as (folder, refresh):
            refresh()
            assert (folder / METRICS).read_text() == read(client, f"runs/fdm/{METRICS}")


def kill_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """End the run when the checkpoint of this step is complete."""
    save = CheckpointManager.save

    def save_and_end(self: CheckpointManager, num_steps: int, *args: Any) -> None:
        save(self, num_steps, *args)
        if num_steps == step:
            self.wait()
            raise KilledError

    patch.setattr(CheckpointManager, "save", save_and_end)
