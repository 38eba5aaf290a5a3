"""Remote files: what is read is what was stored, every fault ends in time and says what it was."""

import io
import pickle
import time

import pytest

from tests.helpers.storage_servers import closed_port, fill, gs_server, http_server, s3_server, silent_port
from wm.errors import InputError
from wm.files.storage import LIST_THREADS, collect_objects, download, list_files, read_bytes
from wm.files.storage_errors import StorageError
from wm.video.errors import REASONS

ODD_KEYS = ["a b/x+1.mp4", "a b/ü#?.mp4", "deep/er/y%20.mp4", "z.mp4"]


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as client:
        client.create_bucket(Bucket="bucket")
        for number, key in enumerate(ODD_KEYS):
            client.put_object(Bucket="bucket", Key=f"set/{key}", Body=b"x" * (number + 1))
        client.put_object(Bucket="bucket", Key="set/folder/", Body=b"")
        client.create_bucket(Bucket="many")
        fill("many", [f"clips/{number:05d}.mp4" for number in range(1205)])
        yield client


@pytest.fixture
def http():
    with http_server({"/a b.mp4": b"film" * 1000, "/x.mp4": b"x" * 3_000_000}) as (root, requested):
        yield root, requested


def test_s3_lists_every_object_below_a_folder_with_its_size(s3):
    for prefix in ("s3://bucket/set", "s3://bucket/set/"):
        table = list_files(prefix).sort_by("size_bytes")
        assert table["path"].to_pylist() == ODD_KEYS
        assert table["size_bytes"].to_pylist() == [1, 2, 3, 4]
        assert all(abs(ns / 1e9 - time.time()) < 3600 for ns in table["mtime_ns"].to_pylist())
    assert sorted(list_files("s3://bucket")["path"].to_pylist()) == sorted(f"set/{key}" for key in ODD_KEYS)


def test_s3_lists_more_than_one_page(s3):
    paths = list_files("s3://many/clips/")["path"].to_pylist()
    assert sorted(paths) == [f"{number:05d}.mp4" for number in range(1205)]


@pytest.mark.parametrize("folders", [0, 1, 3, LIST_THREADS + 5])
def test_folders_are_listed_side_by_side_and_none_is_lost(tmp_path, folders):
    from pyarrow.fs import LocalFileSystem

    names = {"a.mp4", "one/deep/er/b.mp4"} | {f"f{number}/x/{number}.mp4" for number in range(folders)}
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1" * len(name))
    (tmp_path / "empty").mkdir()
    table = collect_objects(LocalFileSystem(), str(tmp_path)).to_pydict()
    assert sorted(table["path"]) == sorted(names) and table["size_bytes"] == [len(name) for name in table["path"]]
    with pytest.raises(FileNotFoundError):
        collect_objects(LocalFileSystem(), str(tmp_path / "nowhere"))


def test_s3_reads_keys_as_they_are_written(s3, tmp_path):
    for number, key in enumerate(ODD_KEYS):
        assert read_bytes(f"s3://bucket/set/{key}") == b"x" * (number + 1)
        assert download(f"s3://bucket/set/{key}", tmp_path / "video.mp4") == number + 1
        assert (tmp_path / "video.mp4").read_bytes() == b"x" * (number + 1)
    assert [path.name for path in tmp_path.iterdir()] == ["video.mp4"]


def test_the_server_may_be_named_in_the_uri(s3, monkeypatch):
    address = s3.meta.endpoint_url.removeprefix("http://")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    assert read_bytes(f"s3://bucket/set/z.mp4?endpoint_override={address}&scheme=http&region=us-east-1") == b"xxxx"


def test_without_credentials_access_is_anonymous(s3, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    fault("s3://bucket/set/z.mp4", tmp_path, "unreadable", "ACCESS_DENIED")
    s3.put_object(Bucket="bucket", Key="public.mp4", Body=b"all", ACL="public-read")
    assert read_bytes("s3://bucket/public.mp4") == b"all"
    s3.delete_object(Bucket="bucket", Key="public.mp4")


def test_large_objects_come_whole(s3, tmp_path):
    body = bytes(range(256)) * 70_000  # more than two parts
    s3.put_object(Bucket="bucket", Key="large.mp4", Body=body)
    assert download("s3://bucket/large.mp4", tmp_path / "large.mp4") == len(body)
    assert (tmp_path / "large.mp4").read_bytes() == body
    s3.delete_object(Bucket="bucket", Key="large.mp4")


@pytest.mark.parametrize(
    ("uri", "reason", "text"),
    [
        ("s3://bucket/set/gone.mp4", "missing_file", "no such object or bucket"),
        ("s3://nobucket/x.mp4", "missing_file", "no such object or bucket"),
        ("s3://bucket/x.mp4?endpoint_override=127.0.0.1:CLOSED&scheme=http", "unreadable", "connect"),
    ],
)
def test_s3_faults(s3, tmp_path, monkeypatch, *, uri, reason, text):
    monkeypatch.setattr("wm.files.storage._OBJECT_PAUSES_S", (0.01, 0.01))
    uri = uri.replace("CLOSED", str(closed_port()))
    fault(uri, tmp_path, reason, text)


def test_a_store_that_is_away_is_waited_for(tmp_path, monkeypatch):
    """While it is started again connections are refused; a clip that was rejected then would be missing."""
    codes, calls = iter([7, 7, 7, 7, None, 6]), []

    class Store:
        def open_input_stream(self, path):
            calls.append(path)
            if code := next(codes):
                raise OSError(f"AWS Error NETWORK_CONNECTION: curlCode: {code}, Could not connect to server")
            return io.BytesIO(b"clip")

    monkeypatch.setattr("wm.files.storage.get_filesystem", lambda address, stall_limit_s: Store())
    monkeypatch.setattr("wm.files.storage._OBJECT_PAUSES_S", (0.01,) * 7)
    assert download("s3://bucket/x.mp4", tmp_path / "x.mp4") == 4 and calls == ["bucket/x.mp4"] * 5
    # A host without an address is not waited for.
    with pytest.raises(StorageError, match="curlCode: 6") as error:
        download("s3://bucket/x.mp4", tmp_path / "y.mp4")
    assert not error.value.transient and len(calls) == 6


def test_listing_faults(s3):
    for prefix in ("s3://bucket/gone/", "s3://nobucket/"):
        with pytest.raises(StorageError) as caught:
            list_files(prefix)
        assert caught.value.reason == "missing_file"
        assert prefix in caught.value.detail
    with pytest.raises(InputError, match="cannot be listed"):
        list_files("https://host.example/folder/")


def test_a_silent_s3_server_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with silent_port() as port:
        uri = f"s3://bucket/x.mp4?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        fault(uri, tmp_path, "time_out", "", time_limit_s=1.5)


def test_google_store_lists_pages_and_reads(tmp_path):
    objects = {f"set/{key}": b"x" * (number + 1) for number, key in enumerate(ODD_KEYS)}
    with gs_server(objects) as address:
        options = f"?endpoint_override={address}&scheme=http&anonymous=true"
        table = list_files(f"gs://bucket/set/{options}").sort_by("size_bytes")
        assert table["path"].to_pylist() == ODD_KEYS
        assert table["size_bytes"].to_pylist() == [1, 2, 3, 4]
        assert read_bytes(f"gs://bucket/set/{ODD_KEYS[1]}{options}") == b"xx"
        fault(f"gs://bucket/set/gone.mp4{options}", tmp_path, "missing_file", "no such object")


def test_http_reads(http, tmp_path):
    root, requested = http
    assert read_bytes(f"{root}/a b.mp4?token=1&x=a%2Fb") == b"film" * 1000
    assert requested == ["/a%20b.mp4?token=1&x=a%2Fb"]
    assert download(f"{root}/x.mp4", tmp_path / "x") == 3_000_000
    assert read_bytes(f"{root}/to/{root}/x.mp4") == b"x" * 3_000_000


def test_what_may_pass_is_tried_again(http):
    root, requested = http
    assert read_bytes(f"{root}/once") == b"at last"
    assert requested == ["/once", "/once"]


@pytest.mark.parametrize(
    ("path", "reason", "text"),
    [
        ("/gone.mp4", "missing_file", "HTTP status 404"),
        ("/status/410", "missing_file", "HTTP status 410"),
        ("/status/403", "unreadable", "HTTP status 403"),
        ("/status/204", "unreadable", "HTTP status 204"),
        ("/status/500", "unreadable", "HTTP status 500"),
        ("/short", "unreadable", "4 bytes"),
        ("/hang", "time_out", ""),
        ("/stall", "time_out", ""),
        ("/trickle", "time_out", "not read within"),
        ("/loop", "unreadable", "redirects"),
        ("/to/file:///etc/hostname", "unreadable", "file:"),
        ("/to/ftp://127.0.0.1/x", "unreadable", "ftp:"),
    ],
)
def test_http_faults(http, tmp_path, path, reason, text):
    fault(f"{http[0]}{path}", tmp_path, reason, text, time_limit_s=1.0 if reason == "time_out" else 20.0)


def test_no_server_and_too_large(http, tmp_path):
    fault(f"http://127.0.0.1:{closed_port()}/x.mp4", tmp_path, "unreadable", "refused")
    with pytest.raises(StorageError, match="larger than 1,000 bytes"):
        download(f"{http[0]}/x.mp4", tmp_path / "x.mp4", max_bytes=1000)
    assert list(tmp_path.iterdir()) == []


def test_a_full_or_missing_disk_is_no_fault_of_the_file(http, tmp_path):
    with pytest.raises(FileNotFoundError):
        download(f"{http[0]}/x.mp4", tmp_path / "gone" / "x.mp4")


def test_only_remote_uris_are_fetched(tmp_path):
    for uri in ("/etc/hostname", "file:///etc/hostname"):
        with pytest.raises(InputError, match="no remote URI"):
            download(uri, tmp_path / "x")
    with pytest.raises(InputError, match=r"'ftp'; expected .*s3://, gs://, http://, https://, file://"):
        download("ftp://host/x.mp4", tmp_path / "x")


def test_the_error_travels_between_processes():
    error = StorageError("missing_file", "s3://b/k: no such object", transient=True)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.reason, copy.detail, copy.transient) == (error.reason, error.detail, True)
    assert str(copy) == "missing_file: s3://b/k: no such object"


def fault(uri, folder, reason, text, time_limit_s=20.0):
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        download(uri, folder / "x.mp4", time_limit_s=time_limit_s)
    assert time.monotonic() - started < time_limit_s + 12  # on a busy machine too; the servers are silent for longer
    assert caught.value.reason == reason in REASONS
    assert uri in caught.value.detail and text in caught.value.detail
    assert "\n" not in caught.value.detail
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("uri", ["s3:///a.mp4", "gs://", "http://[x/a.mp4", "http://"])
def test_a_uri_that_names_nothing_costs_itself(tmp_path, uri):
    """A row of a list: any other exception stops the annotation of all rows."""
    with pytest.raises(StorageError) as error:
        download(uri, tmp_path / "video", time_limit_s=5)
    assert error.value.reason == "unreadable" and not error.value.transient and not list(tmp_path.iterdir())
