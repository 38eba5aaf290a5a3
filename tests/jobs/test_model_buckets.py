"""Stages that use models, with models, tables and outputs in buckets: what they write equals what they write locally,
and one that is killed resumes on a node that has nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from jobs import annotate, evaluate, ingest, pretrain
from jobs import gate as gate_job
from jobs.annotate.annotator import Annotator
from jobs.annotate.recipe import AnnotateRecipe
from jobs.gate import GateRecipe
from jobs.imagine import ImagineRecipe
from jobs.imagine import job as imagine_job
from jobs.predict import job as predict_job
from jobs.predict import triplets as predict_triplets
from jobs.predict.recipe import PredictRecipe
from tests.helpers.bench_files import write_bench
from tests.helpers.bucket_models import bucket, empty, keys, upload
from tests.helpers.models_folders import logits, with_adapter
from tests.helpers.training_data import random_rows, write_triplets
from tests.helpers.video_files import marked_frame, write_video
from wm.buckets import prepare_buckets
from wm.dynamics import predict_observations
from wm.images import encode_png
from wm.models import load_codec, load_model, save_model
from wm.nano import train_codec
from wm.tables import read_table


class KilledError(BaseException):
    """Ends a run where it stands, as a kill does: nothing handles it."""


@pytest.fixture(scope="module")
def data(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two inverse models and a forward one that are adapters of it, and triplets."""
    root = tmp_path_factory.mktemp("data")
    save_model(load_model(tiny_base), root / "base", kind="base", codec=load_codec(tiny_base))
    for seed, name in enumerate(("fdm", "idm", "idm2")):
        save_model(with_adapter(load_model(root / "base"), seed), root / "runs" / name / "model", task=name[:3])
    rows, codec = random_rows(tiny_base, 6, seed=3), load_codec(tiny_base)
    for row in rows:
        image = {"bytes": encode_png(codec.decode(np.array([row["source_codes"]]))[0]), "path": None}
        row["source_image"] = row["target_image"] = image
    write_triplets(rows, root / "triplets")
    return root


@pytest.fixture(scope="module")
def server() -> Any:
    with bucket("data") as client:
        yield client


@pytest.fixture
def client(server: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The store with the data, seen from node a."""
    empty(server, "data")
    upload(server, data, "data", "")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "a"))
    monkeypatch.setattr("wm.models.remote._looked_at", {})
    return server


def killed_at_second_call(function: Any) -> Any:
    calls: list[int] = []

    def call(*arguments: Any, **settings: Any) -> Any:
        if calls:
            raise KilledError
        calls.append(1)
        return function(*arguments, **settings)

    return call


def names(client: Any, prefix: str) -> set[str]:
    """Names of what a run has in the bucket, without the claims of writers."""
    found = {key.removeprefix(f"{prefix}/") for key in keys(client, "data", f"{prefix}/")}
    return {name for name in found if name and not name.startswith(".wm-writers")}


def local_names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_predictions_resume_on_another_node(
    data: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict_triplets, "ROWS_PER_PART", 2)
    search = {"num_candidates": 3}
    local = {"fdm": f"{data}/runs/fdm", "idm": f"{data}/runs/idm", "triplets": f"{data}/triplets"}
    predict_job.run(PredictRecipe.parse(local | {"out": str(tmp_path / "local"), "search": search}, "test"))
    values = {key: path.replace(str(data), "s3://data") for key, path in local.items()}
    recipe = values | {"out": "s3://data/predicted", "search": search}
    # Node a is killed in the second of three parts.
    with monkeypatch.context() as patch:
        patch.setattr(predict_triplets, "predict_observations", killed_at_second_call(predict_observations))
        with pytest.raises(KilledError):
            predict_job.run(PredictRecipe.parse(recipe, "test"))
    assert names(client, "predicted") == {"run.unfinished.json", "predictions/part-00000.parquet"}
    first = client.head_object(Bucket="data", Key="predicted/predictions/part-00000.parquet")["LastModified"]
    # Node b does the other two.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    record = predict_job.run(PredictRecipe.parse(recipe, "test"))
    assert record["recipe"]["fdm"] == "s3://data/runs/fdm" and record["recipe"]["out"] == "s3://data/predicted"
    assert names(client, "predicted") == local_names(tmp_path / "local")
    again = client.head_object(Bucket="data", Key="predicted/predictions/part-00000.parquet")["LastModified"]
    assert again == first
    expected = pq.read_table(tmp_path / "local" / "predictions")
    stored = [
        pq.read_table(tmp_path / "b" / "wm-buckets" / "s3" / "data" / "predicted" / "predictions" / file.name)
        for file in sorted((tmp_path / "local" / "predictions").iterdir())
    ]
    assert [row for table in stored for row in table.to_pylist()] == expected.to_pylist()


@pytest.mark.soak
def test_a_rollout_from_an_image_in_a_bucket(data: Path, client: Any, tmp_path: Path) -> None:
    client.put_object(Bucket="data", Key="source.png", Body=encode_png(np.zeros((16, 16, 3), np.uint8)))
    recipe = {"fdm": "s3://data/runs/fdm", "idm": "s3://data/runs/idm", "image": "s3://data/source.png"}
    more = {"actions": ["move the red cup"], "out": "s3://data/rollout", "search": {"num_candidates": 2}}
    predict_job.run(PredictRecipe.parse(recipe | more, "test"))
    assert {"run.json", "prediction.json", "source.png", "storyboard.png"} <= names(client, "rollout")


def test_imagined_triplets_equal_local_ones(data: Path, client: Any, tmp_path: Path) -> None:
    plain = {
        "filters": {"min_score": -50.0, "max_unchanged": 1.0},
        "search": {"num_candidates": 2},
        "actions_each": 1,
    }

    def recipe(root: str, out: str) -> ImagineRecipe:
        tables = {"sources": f"{root}/triplets", "actions": f"{root}/triplets"}
        models = {"fdm": f"{root}/runs/fdm", "idm": f"{root}/runs/idm"}
        return ImagineRecipe.parse(plain | tables | models | {"out": out}, "test")

    imagine_job.run(recipe(str(data), str(tmp_path / "local")))
    imagine_job.run(recipe("s3://data", "s3://data/imagined"))
    assert names(client, "imagined") == local_names(tmp_path / "local")
    copies = tmp_path / "a" / "wm-buckets" / "s3" / "data" / "imagined" / "triplets"
    assert read_table(copies).equals(read_table(tmp_path / "local" / "triplets"))


def test_of_a_run_its_model_alone_is_fetched(data: Path, client: Any, tmp_path: Path) -> None:
    """Checkpoints of a 7B model are a hundred times what its adapter is."""
    client.put_object(Bucket="data", Key="runs/idm/checkpoints/step-1/optimizer.pt", Body=b"?" * 1000)
    node, inner = tmp_path / "a" / "wm-buckets" / "s3" / "data", "runs/idm/model/adapter_model.safetensors"
    write_bench(tmp_path / "aurora")
    write_video(tmp_path / "clips" / "a.mp4", [marked_frame(index) for index in range(30)])
    of_annotation = {"videos": str(tmp_path / "clips"), "idm": "s3://data/runs/idm", "out": "s3://data/annotated"}
    annotation = AnnotateRecipe.parse(of_annotation, "test")
    models = {"idm": {"path": "s3://data/runs/idm", "role": "idm", "label": "IDM"}}
    of_evaluation = {"triplets": "s3://data/triplets", "models": models, "out": "s3://data/evaluated"}
    of_ingest = {"root": str(tmp_path / "aurora"), "file": "test.json", "codec": "s3://data/runs/idm", "out": "o"}
    # 1. Who checks a recipe reads no weights of an adapter.
    for stage, recipe in (
        (annotate.run, annotation),
        (evaluate.run, evaluate.EvaluateRecipe.parse(of_evaluation, "test")),
        (ingest.run, ingest.recipe.IngestRecipe.parse(of_ingest, "test")),
    ):
        prepare_buckets(recipe)
        stage(recipe, dry_run=True)
    assert (node / "runs/idm/model/wm_model.json").is_file() and not (node / inner).exists()
    # 2. Who annotates with it has them.
    annotator = Annotator(annotation.annotator_settings())
    expected = load_model(data / "runs/idm", merge=True)
    assert annotator.problem == "" and torch.equal(logits(annotator.idm.role.model), logits(expected))
    assert (node / inner).is_file() and not (node / "runs/idm/checkpoints").exists()


@pytest.mark.parametrize("out", ["s3://data/gate", pytest.param("local", marks=pytest.mark.soak)])
def test_the_gate_copies_the_better_model(
    data: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    path = out if "://" in out else str(tmp_path / out)
    models = {"champion": "s3://data/runs/idm", "challenger": "s3://data/runs/idm2"}
    values = models | {"role": "idm", "triplets": "s3://data/triplets", "out": path}
    winner = gate_job.run(GateRecipe.parse(values, "test"))["summary"]["promoted"]
    # Another node, where the base is not either.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    assert not (Path(path) / "model").is_symlink()
    expected = load_model(data / models[winner].removeprefix("s3://data/"))
    assert torch.equal(logits(load_model(path)), logits(expected))


@pytest.mark.soak
def test_pretraining_resumes_after_the_codec(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_images": 64, "num_documents": 64, "encoder_steps": 1, "decoder_steps": 1, "max_steps": 1}
    recipe = sizes | {"batch_size": 4, "out": "s3://data/base-run"}
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_build_documents", _kill)
        with pytest.raises(KilledError):
            pretrain.run(pretrain.PretrainRecipe.parse(recipe, "test"))
    assert names(client, "base-run") == {"run.unfinished.json", "codec.safetensors", "codec.json"}
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    monkeypatch.setattr(train_codec, "train_codec", None)
    pretrain.run(pretrain.PretrainRecipe.parse(recipe, "test"))
    stored = json.loads(client.get_object(Bucket="data", Key="base-run/run.json")["Body"].read())
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "c"))
    model = load_model("s3://data/base-run")
    assert sum(parameter.numel() for parameter in model.module.parameters()) == stored["counts"]["parameters"]


def _kill(*_: Any) -> Any:
    raise KilledError
