"""The store (local and S3), which checkpoints stay, full disks, and checkpoints of another run."""

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.storage_servers import s3_server
from tests.helpers.training_data import merge_tables, random_rows, write_triplets
from wm.errors import InputError
from wm.training import METRICS, MODEL, RankInfo, TrainRecipe, fit
from wm.training.checkpoint.retention import FAILED, names_to_keep, prune
from wm.training.checkpoint.state_files import StateReader, contents_of, write_tensors
from wm.training.checkpoint.store import MANIFEST, Checkpoint, CheckpointStore
from wm.training.zero import Part

HERE = RankInfo(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def triplets(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(random_rows(tiny_base, 40), tmp_path_factory.mktemp("triplets"))


def recipe_of(base: Path, triplets: Path, out: Path, **values: Any) -> TrainRecipe:
    out.mkdir(exist_ok=True, parents=True)
    common = {"task": "fdm", "base": str(base), "triplets": str(triplets), "out": str(out), "max_steps": 8}
    settings = {
        "resources": {"num_workers": 0},
        "optim": {"lr": 1e-2},
        "global_batch_size": 8,
        "checkpoint": {"every_steps": 2},
        "logging": {"every_steps": 2, "trackers": []},
    }
    return TrainRecipe.parse(merge_tables(common, settings, {"lora": {"r": 4}}, values), "test")


def steps(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.checkpoints()]


def write(store: CheckpointStore, step: int, content: bytes = b"content", *, token: str = "a1") -> str:
    name = f"step-{step:08d}-{token}"
    with store.writing(name, "part") as sink:
        sink.write(content)
    files = {"part": {"bytes": len(content)}}
    store.finish(name, {"step": step, "metrics": {}, "identity": {}, "num_ranks": 1, "files": files})
    return name


@pytest.fixture(params=["local", "s3"])
def store(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CheckpointStore]:
    if request.param == "local":
        yield CheckpointStore(str(tmp_path / "place"))
        return
    with s3_server(monkeypatch) as client:
        client.create_bucket(Bucket="bucket")
        yield CheckpointStore("s3://bucket/runs/place")


def test_a_checkpoint_is_complete_or_not_listed(store: CheckpointStore) -> None:
    store.check()
    store.claim("a1")
    assert store.checkpoints() == [] and store.is_claimed_by("a1")
    write(store, 4)
    with store.writing("step-00000006-a1", "part") as sink:
        sink.write(b"half")
    assert steps(store) == [4]
    store.remove_unfinished()
    (checkpoint,) = store.checkpoints()
    with store.local_files(checkpoint, ["part"]) as folder:
        assert (folder / "part").read_bytes() == b"content"
    with pytest.raises(OSError, match="part is not complete there"):
        store.finish("step-00000006-a1", {"files": {"part": {"bytes": 4}}})
    write(store, 8)
    store.remove_all_but([checkpoint.name])
    assert steps(store) == [4]
    store.claim("b2")
    assert not store.is_claimed_by("a1")


def test_a_file_of_another_size_is_refused(store: CheckpointStore) -> None:
    name = write(store, 4)
    (checkpoint,) = store.checkpoints()
    damaged = Checkpoint(name, {**checkpoint.manifest, "files": {"part": {"bytes": 9}}})
    with (
        pytest.raises(InputError, match=rf"{name} of .*: expected 9 bytes in part, found 7 bytes"),
        store.local_files(damaged, ["part"]),
    ):
        pass


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    name = write(store, 4)
    (tmp_path / name / MANIFEST).write_text('{"step": 4}')
    with pytest.raises(InputError, match=rf"{name}/{MANIFEST} is damaged: keys are missing; remove that folder"):
        store.checkpoints()


def test_a_folder_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"checkpoint.folder = '.*/file/below': cannot be written to"):
        CheckpointStore(str(tmp_path / "file" / "below")).check()


@pytest.mark.parametrize(
    ("values", "is_running", "wanted"),
    [
        ({}, True, [4]),
        ({}, False, []),
        ({"checkpoint": {"keep_last": 2}}, False, [3, 4]),
        ({"checkpoint": {"keep_best": 1}}, True, [2, 4]),
        ({"checkpoint": {"keep_best": 2}}, False, [2, 3]),
        (
            {"checkpoint": {"keep_best": 1, "keep_best_by": "preference"}, "eval": {"every_steps": 2, "triplets": "x"}},
            False,
            [1],
        ),
        ({"checkpoint": {"keep_best": 1, "keep_last": 1}}, False, [2, 4]),
    ],
)
def test_which_checkpoints_stay(
    tiny_base: Path, tmp_path: Path, values: dict[str, Any], is_running: bool, wanted: list[int]
) -> None:
    losses, preferences = [3.0, 1.0, 1.5, float("nan")], [0.9, 0.5, 0.4, 0.1]
    result = [
        Checkpoint(f"step-{step}", {"step": step, "metrics": {"loss": loss, "preference": preference}})
        for step, (loss, preference) in enumerate(zip(losses, preferences, strict=True), 1)
    ]
    remaining = names_to_keep(result, recipe_of(tiny_base, tmp_path, tmp_path, **values), is_running=is_running)
    assert remaining == [f"step-{step}" for step in wanted]


def test_any_range_is_read_from_whatever_files_hold_it(tmp_path: Path) -> None:
    values_by_kind = {kind: torch.randn(10) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    contents = {}
    for file, (begin, end) in {"a": (0, 4), "b": (4, 5), "c": (5, 10)}.items():
        part = Part("layer.weight", begin, {kind: values[begin:end] for kind, values in values_by_kind.items()})
        with (tmp_path / file).open("wb") as sink:
            tensors = {f"{kind}/{begin}/layer.weight": values for kind, values in part.values.items()}
            size = write_tensors(sink, tensors)
        assert size == (tmp_path / file).stat().st_size
        assert torch.equal(
            load_file(tmp_path / file)[f"exp_avg/{begin}/layer.weight"], values_by_kind["exp_avg"][begin:end]
        )
        contents[file] = contents_of([part])
    reader = StateReader(tmp_path, contents)
    for begin, end in ((0, 10), (3, 7), (4, 5), (9, 10)):
        part = Part("layer.weight", begin, {kind: torch.zeros(end - begin) for kind in values_by_kind})
        reader.fill(part)
        assert all(torch.equal(values, values_by_kind[kind][begin:end]) for kind, values in part.values.items())
    with pytest.raises(InputError, match=r"lacks elements 8 to 12 of layer\.weight"):
        reader.fill(Part("layer.weight", 8, {kind: torch.zeros(4) for kind in values_by_kind}))


def test_a_run_resumes_from_checkpoints_in_an_object_store(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_server(monkeypatch) as client:
        client.create_bucket(Bucket="bucket")
        folder_uri = "s3://bucket/run"
        values = {"checkpoint": {"folder": folder_uri, "keep_last": 2}}
        uninterrupted = recipe_of(tiny_base, triplets, tmp_path / "whole", **values)
        assert fit(uninterrupted, HERE, digest="d").checkpoints["written"] == 4
        store = CheckpointStore(folder_uri)
        assert steps(store) == [6, 8]
        store.remove(store.checkpoints()[-1].name)
        again = recipe_of(tiny_base, triplets, tmp_path / "again", **values)
        shutil.copy(tmp_path / "whole" / METRICS, tmp_path / "again" / METRICS)
        assert fit(again, HERE, digest="d").resumed_at_step == 6
        assert losses(tmp_path / "again") == losses(tmp_path / "whole")
        prune(recipe_of(tiny_base, triplets, tmp_path / "again", checkpoint={"folder": folder_uri, "keep_last": 1}))
        names = client.list_objects_v2(Bucket="bucket")["Contents"]
        assert sorted(result["Key"].split("/")[1][:13] for result in names if result["Size"]) == ["step-00000008"] * 2


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / METRICS).read_text().splitlines()]


@contextmanager
def full_from(monkeypatch: pytest.MonkeyPatch, step: int) -> Iterator[None]:
    """The disk is full for checkpoints from ``step`` on."""
    real = CheckpointStore.writing

    @contextmanager
    def writing(self: CheckpointStore, name: str, file: str) -> Iterator[Any]:
        with real(self, name, file) as sink:
            if int(name.split("-")[1]) >= step:
                sink.write(b"half")
                raise OSError(errno.ENOSPC, "No space left on device")
            yield sink

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "writing", writing)
        yield


def test_a_full_disk_is_reported_the_last_checkpoint_stays(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", checkpoint={"keep_last": 1})
    with full_from(monkeypatch, 4):
        summary = fit(recipe, HERE, digest="d")
    text = summary.checkpoints["last_failure"]
    assert "checkpoint of step 8 could not be written" in text and "No space left on device" in text
    assert text.endswith("training continues, the last complete checkpoint is step 2") and "\n" not in text
    assert (summary.checkpoints["written"], summary.checkpoints["failed"]) == (1, 3)
    assert (tmp_path / "out" / FAILED).read_text() == text + "\n" and text in caplog.text
    assert steps(CheckpointStore(str(tmp_path / "out" / "checkpoints"))) == [2]
    assert [path.name[:13] for path in (tmp_path / "out" / "checkpoints").iterdir() if path.is_dir()] == [
        "step-00000002"
    ]
    assert fit(recipe, HERE, digest="d").resumed_at_step == 2
    assert not (tmp_path / "out" / FAILED).exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optim": {"lr": 0.5}}, r"optim\.lr = 0.01 there, 0.5 here"),
        ({"lora": {"r": 8}}, r"lora\.r = 4 there, 8 here"),
        ({"global_batch_size": 4}, r"global_batch_size = 8 there, 4 here"),
        ({"limit": 20}, r"triplets = .*'mix_weight': 1.0.* there, .*'mix_weight': 1.0.* here"),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(
    *, tiny_base: Path, triplets: Path, tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    folder_uri = str(tmp_path / "place")
    fit(
        recipe_of(
            tiny_base, triplets, tmp_path / "one", checkpoint={"folder": folder_uri, "keep_last": 1}, max_steps=2
        ),
        HERE,
        digest="d",
    )
    other = recipe_of(tiny_base, triplets, tmp_path / "two", checkpoint={"folder": folder_uri}, max_steps=2)
    if "limit" in values:
        values = {"triplets": [{"path": str(triplets), **values}]}
    other = TrainRecipe.parse(merge_tables(other.model_dump(), values), "test")
    with pytest.raises(
        InputError, match=f"step-00000002-.* of {folder_uri} is of another recipe: {message}; choose"
    ) as error:
        fit(other, HERE, digest="d")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "two" / MODEL).exists()


def test_an_attempt_that_still_runs_elsewhere_writes_no_more(
    tiny_base: Path, triplets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", checkpoint={"keep_last": 9})
    real = CheckpointStore.finish

    def finish(self: CheckpointStore, name: str, manifest: Any) -> Any:
        result = real(self, name, manifest)
        CheckpointStore(self.root_uri).claim("ffff")  # another attempt begins after our first checkpoint
        return result

    monkeypatch.setattr(CheckpointStore, "finish", finish)
    summary = fit(recipe, HERE, digest="d")
    assert steps(CheckpointStore(str(tmp_path / "out" / "checkpoints"))) == [2]
    assert "another process has begun to train into" in summary.checkpoints["last_failure"]


def test_a_finished_run_keeps_the_checkpoints_of_its_recipe(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", checkpoint={"keep_last": 1})
    fit(recipe, HERE, digest="d")
    prune(recipe)
    assert sorted(path.name[:13] for path in (tmp_path / "out" / "checkpoints").iterdir()) == ["step-00000008"]
    prune(recipe_of(tiny_base, triplets, tmp_path / "out", checkpoint={"keep_last": 0}))
    assert not (tmp_path / "out" / "checkpoints").exists()
    shutil.rmtree(tmp_path / "out")
