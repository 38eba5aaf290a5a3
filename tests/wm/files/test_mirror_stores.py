"""The contract of the mirror, the same in every store: objects are whole or absent, faults are retried or named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.buckets import Bucket
from wm.errors import InputError
from wm.files.mirror import fetch, mirrored_path, publish, remove, uri_of

_PUBLISH = "import sys; from wm.files.mirror import mirrored_path, publish; publish(mirrored_path(sys.argv[1]))"


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def on_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    """Be another node, which shares nothing with those before."""
    monkeypatch.setenv("WM_CACHE", str(tmp_path / name))


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.name.startswith(".")}


def test_another_node_gets_the_bytes_and_asks_no_more(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = {"a b.txt": b"one", "sub/c?d#e.bin": bytes(range(256)) * 300, "sub/empty": b""}
    folder = mirrored_path(bucket.uri("run/x"))
    for name, data in content.items():
        write(folder / name, data)
    publish(folder)
    assert {key: bucket.read(key) for key in bucket.list_keys()} == {f"run/x/{k}": v for k, v in content.items()}
    assert uri_of(folder) == bucket.uri("run/x")

    # Where it was written nothing is read back.
    bucket.proxy.requests.clear()
    assert fetch(folder) == folder
    assert downloads(bucket) == []
    # Another node reads each once.
    on_node(monkeypatch, tmp_path, "second")
    copy = fetch(bucket.uri("run/x"))
    assert copy != folder and files_of(copy) == content
    bucket.proxy.requests.clear()
    assert files_of(fetch(copy)) == content and downloads(bucket) == []
    # One object is another, one is gone, one is new.
    bucket.write("run/x/a b.txt", b"two!")
    bucket.delete("run/x/sub/empty")
    bucket.write("run/x/new", b"n")
    fetch(copy)
    assert files_of(copy) == {"a b.txt": b"two!", "sub/c?d#e.bin": content["sub/c?d#e.bin"], "new": b"n"}
    # Removed here, it is gone there.
    remove(copy)
    assert bucket.list_keys() == [] and files_of(copy) == {}


def downloads(bucket: Bucket) -> list[str]:
    """Requests that read an object of the bucket, whichever protocol it is."""
    paths = bucket.proxy.list_requests("GET")
    return [path for path in paths if "run/" in path.partition("?")[0] or "alt=media" in path]


@pytest.mark.parametrize("size", [100, 12_000_000], ids=["one-request", "multipart"])
def test_a_killed_writer_leaves_nothing_visible(bucket: Bucket, size: int) -> None:
    path = write(mirrored_path(bucket.uri("run/shard.parquet")), os.urandom(size))
    for method in ("PUT", "POST"):
        bucket.proxy.spoil("stall", method=method, part="shard.parquet")
    script = subprocess.Popen([sys.executable, "-c", _PUBLISH, bucket.uri("run/shard.parquet")])
    try:
        bucket.proxy.wait_for(("PUT", "POST"), "shard.parquet")
    finally:
        script.kill()
        script.wait()
    bucket.proxy.heal()
    assert bucket.list_keys() == []
    # The same file again, from the same node.
    publish(path)
    assert bucket.read("run/shard.parquet") == path.read_bytes()


@pytest.mark.parametrize(
    "kind",
    [
        "status",
        "lose_reply",
        "cut_body",
        *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("lose_request", "slow_body")),
    ],
)
def test_a_fault_that_passes_is_passed_over(
    bucket: Bucket, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = os.urandom(3000)
    path = write(mirrored_path(bucket.uri("run/x")), content)
    # Google's client waits longer and longer.
    count = 1 if bucket.scheme == "gs" else 2
    bucket.proxy.spoil(kind, count=count)  # type: ignore[arg-type]
    publish(path)
    assert bucket.read("run/x") == content
    on_node(monkeypatch, tmp_path, "second")
    bucket.proxy.heal()
    bucket.proxy.spoil(kind, count=count)  # type: ignore[arg-type]
    assert fetch(bucket.uri("run/x")).read_bytes() == content


def test_what_does_not_pass_is_named_with_its_uri(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket.write("run/x", b"x")
    path = write(mirrored_path(bucket.uri("run/y")), b"y")
    name = rf"{bucket.scheme}://{bucket.name}/run/y"
    # 1. Credentials that have expired, and such as may only read.
    bucket.proxy.spoil("status", status=401 if bucket.scheme == "gs" else 400)
    with pytest.raises(InputError, match=rf"{name}.*credentials"):
        publish(path)
    bucket.proxy.heal()
    for method in ("PUT", "POST"):
        bucket.proxy.spoil("status", method=method, status=403)
    with pytest.raises(InputError, match=rf"{name}.*(may not write|no credentials)"):
        publish(path)
    assert fetch(bucket.uri("run/x")).read_bytes() == b"x"
    bucket.proxy.heal()
    # 2. Nothing there, or no bucket.
    with pytest.raises(InputError, match=r"run/none.*no such object or folder"):
        fetch(bucket.uri("run/none"))
    with pytest.raises(InputError, match=r"wm-no-bucket.*no such"):
        fetch(bucket.uri("run/x").replace(bucket.name, "wm-no-bucket"))
    assert bucket.list_keys() == ["run/x"]
