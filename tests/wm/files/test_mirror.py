"""Paths that stand for objects of a bucket: there and back, copies that are today's, uploads that are complete."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.storage_servers import s3_server
from wm.errors import InputError
from wm.files import cache, store_errors, transfer
from wm.files.mirror import fetch, list_below, mirrored_path, on_this_node, publish, remove, shown, to_path, uri_of
from wm.files.storage import list_files
from wm.files.storage_errors import StorageError
from wm.files.transfer import BucketError


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transfer, "PATIENCE_S", 0.0)
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="bucket")
        yield s3


def keys(s3: Any) -> dict[str, int]:
    """Size by key, without markers of folders."""
    objects = s3.list_objects_v2(Bucket="bucket").get("Contents", [])
    return {each["Key"]: each["Size"] for each in objects if not each["Key"].endswith("/")}


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/run",
        "gs://bucket.with-dots/a b/ü=1?.x/%20#.parquet",
        "s3://bucket/run?endpoint_override=localhost%3A9000&scheme=http",
        "s3://bucket/",
    ],
)
def test_a_path_gives_its_uri_again_on_any_node(uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "a"))
    path = mirrored_path(uri)
    assert path.is_relative_to(tmp_path / "a") and uri_of(path) == uri and to_path(uri) == str(path)
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "b"))
    assert uri_of(path) == uri and on_this_node(path) == mirrored_path(uri) != path


def test_other_paths_stand_for_nothing(tmp_path: Path) -> None:
    for path in ("", "x/y", "/x/wm-buckets", "/x/wm-buckets/s3", "/x/wm-buckets/http/host/y", tmp_path):
        assert uri_of(path) is None and fetch(path) == Path(path)
    publish(tmp_path)
    assert to_path("http://host/x") == "http://host/x"


@pytest.mark.parametrize("key", ["a//b", "a/../b", "./a", "a\0b"])
def test_keys_that_cannot_be_paths_are_refused(key: str) -> None:
    with pytest.raises(InputError, match="cannot be a path"):
        mirrored_path(f"s3://bucket/{key}")


def test_messages_name_the_uri_and_not_the_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WM_CACHE", "/my cache")
    path = mirrored_path("s3://bucket/run?region=eu-west-1")
    assert shown(f"no {path}/x.parquet, /data/y") == "no s3://bucket/run/x.parquet, /data/y"
    assert shown("no '/other/node/wm-buckets/gs/b/x'") == "no 'gs://b/x'"


def test_only_what_changed_is_copied(bucket: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = mirrored_path("s3://bucket/run")
    for name, content in (("a.txt", b"a"), ("t/x.parquet", b"x" * 9_000_000), (".y.tmp", b""), ("t/.lock", b"")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(content)
    publish(out)
    assert keys(bucket) == {"run/a.txt": 1, "run/t/x.parquet": 9_000_000}
    # Another node: all of it, then only the file that is another.
    monkeypatch.setenv("WM_CACHE", str(tmp_path / "other"))
    copy = fetch(out)
    assert (copy / "t/x.parquet").read_bytes() == b"x" * 9_000_000
    inodes = {name: (copy / name).stat().st_ino for name in ("a.txt", "t/x.parquet")}
    bucket.put_object(Bucket="bucket", Key="run/a.txt", Body=b"aa")
    bucket.put_object(Bucket="bucket", Key="run/b.txt", Body=b"")
    assert fetch("s3://bucket/run") == copy
    assert (copy / "a.txt").read_bytes() == b"aa" and (copy / "b.txt").read_bytes() == b""
    assert (copy / "t/x.parquet").stat().st_ino == inodes["t/x.parquet"]
    # What the bucket has no more goes, unless the output is being written.
    bucket.delete_object(Bucket="bucket", Key="run/b.txt")
    bucket.put_object(Bucket="bucket", Key="run/run.unfinished.json", Body=b"{}")
    assert fetch(copy / "t").is_dir() and (fetch(copy) / "b.txt").exists()
    bucket.delete_object(Bucket="bucket", Key="run/run.unfinished.json")
    assert not (fetch(copy) / "b.txt").exists()


def test_what_is_left_out_has_its_folder_and_no_old_copy(bucket: Any) -> None:
    bucket.put_object(Bucket="bucket", Key="run/run.json", Body=b"{}")
    bucket.put_object(Bucket="bucket", Key="run/triplets/0.parquet", Body=b"12")
    copy = fetch("s3://bucket/run", leave=["*.parquet"])
    assert (copy / "run.json").exists() and (copy / "triplets").is_dir()
    assert [facts.name for facts in list_below(copy)] == ["run.json", "triplets/0.parquet"]
    assert fetch(copy / "triplets/0.parquet").read_bytes() == b"12"
    bucket.put_object(Bucket="bucket", Key="run/triplets/0.parquet", Body=b"123")
    fetch(copy, leave=["*.parquet"])
    assert not (copy / "triplets/0.parquet").exists()


def test_remove_takes_the_object_too(bucket: Any) -> None:
    for key in ("run/a", "run/b/c", "run/b/d"):
        bucket.put_object(Bucket="bucket", Key=key, Body=b"1")
    copy = fetch("s3://bucket/run")
    remove(copy / "b")
    remove(copy / "none")
    assert keys(bucket) == {"run/a": 1} and not (copy / "b").exists()


def test_what_is_missing_is_named(bucket: Any) -> None:
    with pytest.raises(BucketError, match=r"^s3://bucket/none: no such object or folder$"):
        fetch("s3://bucket/none")
    with pytest.raises(BucketError, match=r"^s3://no-such-bucket/x: no such bucket \(no-such-bucket\)"):
        fetch("s3://no-such-bucket/x")
    path = mirrored_path("s3://no-such-bucket/x")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"1")
    with pytest.raises(BucketError, match=r"^s3://no-such-bucket/x: no such bucket"):
        publish(path)


@pytest.mark.parametrize(
    ("text", "hint", "transient"),
    [
        ("AWS Error UNKNOWN (HTTP status 411) during PutObject: x", "AWS_REQUEST_CHECKSUM_CALCULATION", False),
        ("AWS Error ACCESS_DENIED during PutObject operation", "no credentials found; set AWS_ACCESS_KEY_ID", False),
        ("AWS Error UNKNOWN (HTTP status 400) ExpiredToken", "credentials have expired", False),
        ("AWS Error REQUEST_TIME_TOO_SKEWED during PutObject operation: (HTTP status 403)", "the clock of", False),
        ("An error occurred (RequestTimeTooSkewed) when calling the DeleteObject operation", "set it (NTP)", False),
        (
            "UNAVAILABLE "
            + "x" * 300
            + ' "invalid_grant","error_description":"Invalid JWT: Token must be a short-lived '
            'token (60 minutes) and in a reasonable timeframe. Check your iat and exp values in the JWT claim."',
            "the clock of",
            False,
        ),
        ('{"error": "invalid_grant", "error_description": "Token has been revoked."}', "have expired", False),
        ("AWS Error INVALID_ACCESS_KEY_ID during x", "does not accept the credentials", False),
        ("AWS Error UNKNOWN (HTTP status 301) PermanentRedirect", "another region; set AWS_REGION", False),
        ("AWS Error SLOW_DOWN during GetObject", "SLOW_DOWN", True),
        ("AWS Error UNKNOWN (HTTP status 503) during x", "503", True),
        ("AWS Error NETWORK_CONNECTION: curlCode: 7, Couldn't connect to server", "no connection to its server", True),
        ("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached", "no answer in time", True),
    ],
)
def test_errors_say_what_to_do(text: str, hint: str, transient: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_errors, "has_login", lambda scheme: False)
    error = store_errors.explain_error("s3://bucket/x", OSError(text), "write")
    assert hint in str(error) and str(error).startswith("s3://bucket/x: ") and error.transient == transient
    monkeypatch.setattr(store_errors, "has_login", lambda scheme: True)
    if "ACCESS_DENIED" in text:
        assert "may not write here" in str(store_errors.explain_error("s3://bucket/x", OSError(text), "write"))


@pytest.mark.parametrize(
    ("answer", "hint", "transient"),
    [
        (
            "Bucket 'absent' not found",
            r"no such bucket \(absent\); make it first, or check its name and server$",
            False,
        ),
        (
            "When resolving region for bucket 'absent': AWS Error NETWORK_CONNECTION during HeadBucket operation: "
            "curlCode: 6, Couldn't resolve host name",
            "no connection to its server",
            True,
        ),
    ],
)
def test_a_bucket_whose_region_aws_does_not_say(
    answer: str, hint: str, transient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def resolve(name: str) -> str:
        calls.append(name)
        raise OSError(answer)

    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pyarrow.fs.resolve_s3_region", resolve)
    # What may pass would be tried again, here for no time at all; an answer is one.
    patience_s = 0.0 if transient else 60.0
    with pytest.raises(BucketError, match=rf"^s3://absent/x: {hint}") as read:
        transfer.list_objects("s3://absent/x", patience_s=patience_s)
    with pytest.raises(BucketError, match=rf"^s3://absent/x: {hint}") as written:
        transfer.write_object("s3://absent/x", b"1", patience_s=patience_s)
    assert calls == ["absent"] * 2 and read.value.transient == written.value.transient == transient
    with pytest.raises(StorageError) as listed:
        list_files("s3://absent/x")
    assert listed.value.reason == ("unreadable" if transient else "missing_file")


def test_copies_beyond_the_limit_are_evicted_but_none_in_use(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        bucket.put_object(Bucket="bucket", Key=name, Body=b"1" * 1000)
    used, old = fetch("s3://bucket/a"), fetch("s3://bucket/b", hold=False)
    now_s = time.time()
    monkeypatch.setattr(cache, "RECENT_S", -1.0)
    os.utime(used, (now_s - 1e6, used.stat().st_mtime))
    monkeypatch.setenv("WM_CACHE_GIB", str(2100 / 2**30))
    assert fetch("s3://bucket/c").exists() and used.exists() and not old.exists()
    monkeypatch.setenv("WM_CACHE_GIB", str(2000 / 2**30))
    with pytest.raises(InputError, match=r"s3://bucket/b needs .* WM_CACHE_GIB = .* lacks"):
        fetch("s3://bucket/b")
    monkeypatch.setenv("WM_CACHE_GIB", "much")
    with pytest.raises(InputError, match="WM_CACHE_GIB = 'much'; expected a number of GiB"):
        fetch("s3://bucket/b")
