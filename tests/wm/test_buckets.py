"""Runs and recipes in buckets: checked before work starts, recorded as URIs, resumed on a node that has nothing."""

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest

from tests.helpers.faulty_proxy import serve_proxy
from tests.helpers.storage_servers import closed_port, s3_server
from wm import buckets
from wm.buckets import find_bucket_paths, localise, prepare_buckets
from wm.cli import main
from wm.config import Recipe
from wm.errors import InputError, OtherRunError
from wm.files import lease as leases
from wm.files.mirror import mirrored_path, publish
from wm.paths import INPUT, InputPath, OptionalInputPath, OutputPath, SourcePath, TablePath
from wm.runs import Run, digest_of, read_run


class Entry(Recipe):
    """A table in a list."""

    path: TablePath = ""


class StageRecipe(Recipe):
    """A stage with every kind of path."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"fail"})

    out: OutputPath
    model: OptionalInputPath = None
    videos: SourcePath = ""
    tables: list[Entry] = []
    names: Annotated[dict[str, InputPath], INPUT] = {}
    fail: bool = False


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(buckets, "CHECK_S", 0.0)
    monkeypatch.setattr(leases, "POLL_S", 0.01)
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="bucket")
        yield s3


def keys(s3: Any) -> set[str]:
    """Keys without markers of folders."""
    objects = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return {each["Key"] for each in objects if not each["Key"].endswith("/")}


def run(recipe: StageRecipe, *, dry_run: bool = False) -> None:
    """Write two files, the second of which may fail."""
    inputs = {"model": digest_of(recipe.model)} if recipe.model else {}
    stage = Run(recipe.out, "stage", recipe, inputs)
    if stage.is_complete() or dry_run:
        print(f"stage: already complete in {recipe.out}")
        return
    stage.start()
    out = Path(recipe.out)
    if not (out / "a.txt").exists():
        (out / "a.txt").write_text(str(out.stat().st_ino))
        publish(out / "a.txt")
    (out / "b.txt").write_text("not published")
    if recipe.fail:
        raise InputError(f"{out}/b.txt went wrong")
    stage.finish({"files": 2})


def command(*argv: str) -> int:
    """Run the stage's command line."""
    return main(StageRecipe, run, name="stage", description="A stage.", argv=list(argv))


def test_recipes_hold_paths_and_record_uris(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WM_CACHE", str(tmp_path))
    values = {
        "out": "s3://bucket/out/",
        "model": "gs://b/m",
        "videos": "s3://bucket/videos/",
        "tables": [{"path": "s3://bucket/t"}, {"path": "t"}],
        "names": {"x": "s3://bucket/x"},
    }
    recipe = StageRecipe.parse(values, "test")
    assert recipe.out == str(mirrored_path("s3://bucket/out")) and recipe.videos == "s3://bucket/videos/"
    record = recipe.model_dump(mode="json")
    assert record == {**values, "out": "s3://bucket/out", "fail": False}
    assert StageRecipe.parse(record, "test") == recipe and not list(tmp_path.iterdir())
    found = {(name, uri, mark.is_lazy) for name, uri, mark in find_bucket_paths(recipe)}
    assert found == {
        ("out", "s3://bucket/out", False),
        ("model", "gs://b/m", False),
        ("tables.0.path", "s3://bucket/t", True),
        ("names.x", "s3://bucket/x", False),
    }


def test_a_worker_gets_its_own_paths(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bucket.put_object(Bucket="bucket", Key="m/config.json", Body=b"{}")
    bucket.put_object(Bucket="bucket", Key="t/0.parquet", Body=b"1")
    values = {"out": "s3://bucket/out", "names": {"m": "s3://bucket/m"}, "tables": [{"path": "s3://bucket/t"}]}
    recipe = StageRecipe.parse(values, "test")
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "worker"))
    own = localise(recipe)
    assert own == StageRecipe.parse(values, "test") != recipe
    assert (Path(own.names["m"]) / "config.json").exists() and not (Path(own.tables[0].path) / "0.parquet").exists()


def test_a_run_resumes_where_nothing_is(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1. The first attempt ends early; users read of URIs.
    assert command("out=s3://bucket/out", "fail=true") == 2
    assert capsys.readouterr().err == "error: s3://bucket/out/b.txt went wrong\n"
    first = bucket.get_object(Bucket="bucket", Key="out/a.txt")["Body"].read()
    assert {"out/a.txt", "out/run.unfinished.json"} <= keys(bucket) and "out/b.txt" not in keys(bucket)
    # 2. Another node resumes from the bucket alone.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "other"))
    assert command("out=s3://bucket/out") == 0
    assert keys(bucket) == {"out/a.txt", "out/b.txt", "out/run.json"}
    assert bucket.get_object(Bucket="bucket", Key="out/a.txt")["Body"].read() == first
    record = read_run(mirrored_path("s3://bucket/out"))
    assert record is not None and record["recipe"]["out"] == "s3://bucket/out" and record["counts"] == {"files": 2}
    # 3. The first node reads the bucket's marks, not its own leftovers.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    assert command("out=s3://bucket/out") == 0
    assert capsys.readouterr().out == "stage: already complete in s3://bucket/out\n"
    with pytest.raises(OtherRunError, match=r"^s3://bucket/out holds another run"):
        Run(mirrored_path("s3://bucket/out"), "other", StageRecipe(out="x")).is_complete()


def test_a_run_made_anew_is_unfinished_until_it_ends(bucket: Any) -> None:
    recipe = StageRecipe.parse({"out": "s3://bucket/out"}, "test")
    run(recipe)
    stage = Run(recipe.out, "stage", recipe)
    stage.reopen()
    assert keys(bucket) == {"out/a.txt", "out/b.txt", "out/run.unfinished.json"} and not stage.is_complete()
    stage.start()
    stage.abandon()
    assert keys(bucket) == {"out/a.txt", "out/b.txt"}
    with pytest.raises(InputError, match=r"^s3://bucket/out is not empty \(a.txt\) and is no run of wm"):
        Run(recipe.out, "stage", recipe).start()
    assert keys(bucket) == {"out/a.txt", "out/b.txt"}


def test_a_digest_is_that_of_the_bucket_and_follows_the_run(bucket: Any, tmp_path: Path) -> None:
    for key in ("m/config.json", "m/x/weights"):
        bucket.put_object(Bucket="bucket", Key=key, Body=b"{}")
    model = mirrored_path("s3://bucket/m")
    first = digest_of(model)
    assert not model.exists() and digest_of(model) == first != digest_of(model / "config.json")
    bucket.put_object(Bucket="bucket", Key="m/x/weights", Body=b"{}}")
    assert digest_of(model) != first
    with pytest.raises(InputError, match="s3://bucket/none: no such object"):
        digest_of(mirrored_path("s3://bucket/none"))
    # Of a stage's output the record counts, wherever its files are.
    record = b'{"stage": "x", "recipe": {}, "inputs": {}, "finished_at": "now"}'
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "run.json").write_bytes(record)
    bucket.put_object(Bucket="bucket", Key="m/run.json", Body=record)
    assert digest_of(model) == digest_of(tmp_path / "m")


def test_what_cannot_be_used_is_named_before_work_starts(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("out=s3://absent/out") == 2
    assert capsys.readouterr().err.startswith("error: out = 's3://absent/out': no such bucket (absent)")
    assert command("out=s3://bucket/out", "model=s3://bucket/none", "--dry-run") == 2
    assert capsys.readouterr().err == "error: model = 's3://bucket/none': no such object or folder\n"
    assert keys(bucket) == set()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(InputError, match=r"^out = 's3://bucket/out': no connection to its server"):
        prepare_buckets(StageRecipe.parse({"out": "s3://bucket/out"}, "test"))


def test_a_bucket_in_another_region_is_named(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve_proxy(os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{proxy.address}")
        # AWS names no Location in it, and answers a HEAD without a text.
        proxy.spoil("status", status=301)
        cases = ((f"out={tmp_path}/out", "model=s3://bucket/m"), ("out=s3://bucket/out",))
        for *others, setting in cases:
            key, _, uri = setting.partition("=")
            proxy.requests.clear()
            assert command(*others, setting) == 2
            hint = "the bucket is in another region; set AWS_REGION, or add ?region=NAME to the URI ("
            assert capsys.readouterr().err.startswith(f"error: {key} = {uri!r}: {hint}")
            assert len(proxy.requests) <= 2  # nothing is tried again
    assert keys(bucket) == set()
