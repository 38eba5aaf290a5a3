"""``annotate`` on videos that lie elsewhere: a bucket and a web server, with faults among them."""

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.annotate.decoder import Decoder
from jobs.annotate.job import _show_progress
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.shards import shard_table
from tests.helpers.storage_servers import http_server, refusing_store, s3_server
from tests.helpers.video_files import marked_frame, write_video
from wm.datasets.videos.listing import Entry, make_listing
from wm.errors import InputError
from wm.records import REJECT_SCHEMA
from wm.tables import read_table
from wm.video.child import answer

ROOT = Path(__file__).resolve().parents[3]


def decoder():
    recipe = AnnotateRecipe.parse({"videos": "v", "idm": "i", "out": "o"}, "test")
    return Decoder(recipe.clip_settings(), recipe.download_settings(), recipe.dataset)


def test_what_a_killed_download_left_does_not_fill_the_disk(monkeypatch):
    one = decoder()
    monkeypatch.setattr(one.reader.process, "call", lambda *given: Path(given[3]).touch())
    path = Path(one.videos._local_copy("https://host/1.mp4", {}))
    (path.parent / ".video.0a1b2c3d.tmp").write_bytes(b"half a video")  # as the child was killed while it wrote
    assert one.videos._local_copy("https://host/2.mp4", {}) == str(path)
    assert list(path.parent.iterdir()) == [path]


def test_remote_video_is_named_by_uri_and_segment_by_times():
    with http_server({"/bad.mp4": b"no video\n" * 1000}) as (root, requests):
        rows = [Entry(f"{root}/bad.mp4", f"bad.mp4#0.0-{end}", "", 0.0, end) for end in (1.0, 2.0)]
        one = decoder()
        table = one(shard_table(make_listing(iter(rows), {}), 0, 0, 2)).to_pylist()
        one.reader.close()
        assert len(requests) == 1  # both are parts of one file
    assert [row["reason"] for row in table] == ["not_a_video"] * 2
    for row in table:
        assert row["detail"].startswith(f"segment 0.0-{row['end_s']}: {root}/bad.mp4: ")


def test_a_video_that_hangs_is_named(monkeypatch):
    one = decoder()
    call = one.reader.process.call
    monkeypatch.setattr(one.reader.process, "call", lambda *_: call(0.2, time.sleep, 9))
    row = one(shard_table(make_listing(iter([Entry("https://host/1.mp4", "1.mp4")]), {}), 0, 0, 1)).to_pylist()[0]
    one.reader.close()
    assert (row["reason"], row["detail"]) == ("time_out", "https://host/1.mp4: no answer within 0.2 s")


def decode(*uris):
    """Rows of a decoder whose child's work is done here, as a child takes seconds to start."""

    def call(_limit_s, function, *args, **more):
        kind, value = answer(function, args, more)
        if kind == "error":
            raise pickle.loads(pickle.dumps(value))
        return value

    one = decoder()
    one.reader.process.call = call
    rows = [Entry(uri, uri) for uri in uris]
    return one(shard_table(make_listing(iter(rows), {}), 0, 0, len(rows))).to_pylist()


def test_no_login_on_this_node_ends_the_run_and_is_no_reject(tmp_path, monkeypatch):
    """A clip that is rejected for it would be missing once the same command runs with credentials."""
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="clips")
        s3.put_object(Bucket="clips", Key="mine.mp4", Body=b"no video\n")
        s3.put_object(Bucket="clips", Key="all.mp4", Body=b"no video\n", ACL="public-read")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("HOME", str(tmp_path))
        uris = ["s3://clips/mine.mp4", "s3://clips/all.mp4", "s3://clips/mine.mp4?anonymous=true"]
        rows = {row["uri"]: row for row in decode(*uris)}
        mine, everyones, asked = (rows[uri] for uri in uris)
        assert mine["problem"].startswith(
            f"on node {socket.gethostname()}: s3://clips/mine.mp4: the store refuses this to {socket.gethostname()}: "
            "no credentials found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
        assert (mine["outcome"], mine["reason"], mine["errno"]) == (None, None, 0)
        # Public objects are read without a login; who asks for no login means the object.
        assert (everyones["reason"], everyones["problem"]) == ("not_a_video", None)
        assert (asked["reason"], asked["problem"]) == ("unreadable", None)
        with pytest.raises(InputError, match=f"^on node {socket.gethostname()}: s3://clips/mine.mp4: "):
            _show_progress([{"errno": 0, "problem": mine["problem"]}], 1, 1)
        # The same shard again, with credentials.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        assert decode(uris[0])[0]["reason"] == "not_a_video"


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (400, "ExpiredToken", "the credentials have expired on {host}; renew them"),
        (403, "InvalidAccessKeyId", "the store does not accept the credentials of {host}; check AWS_"),
        (403, "SignatureDoesNotMatch", "the store does not accept the credentials of {host}; check AWS_"),
    ],
)
def test_credentials_that_no_longer_hold_end_the_run(monkeypatch, status, code, words):
    with refusing_store(monkeypatch, status, code):
        (row,) = decode("s3://clips/401.mp4")
    host = socket.gethostname()
    assert row["problem"].startswith(f"on node {host}: s3://clips/401.mp4: {words.format(host=host)}")
    assert row["outcome"] is None and row["errno"] == 0


@pytest.mark.parametrize("lists", [True, False])
def test_a_forbidden_object_costs_itself(monkeypatch, lists):
    """Also where the credentials may not list; and whatever number is in its name."""
    with refusing_store(monkeypatch, 403, "AccessDenied", lists=lists):
        (row,) = decode("s3://clips/401 expired.mp4")
    assert (row["outcome"], row["reason"], row["problem"]) == ("failed", "unreadable", None)
    assert row["detail"].startswith("s3://clips/401 expired.mp4: ")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_remote_clips_become_triplets_and_remote_faults_rejects(tiny_base, tmp_path, monkeypatch):
    frames = [marked_frame(3 * i) for i in range(60)]
    clip = write_video(tmp_path / "clip.mp4", frames).read_bytes()
    with s3_server(monkeypatch) as s3:
        s3.create_bucket(Bucket="clips")
        for key in ("sit down/a+b.mp4", "sit down/ä b.mp4"):
            s3.put_object(Bucket="clips", Key=key, Body=clip)
        rows = [
            "s3://clips/sit down/a+b.mp4,sit down,,",
            "s3://clips/sit down/ä b.mp4,sit down,0.4,1.6",
            "s3://clips/sit down/gone.mp4,sit down,,",
            "good.mp4,web,,",
            "status/404,web,,",
            "hang,web,,",
            "large.mp4,web,,",
        ]
        listing = "\n".join(["uri,class_label,start_s,end_s", *rows]) + "\n"
        files = {"/list.csv": listing.encode(), "/good.mp4": clip, "/large.mp4": bytes(1_100_000)}
        with http_server(files) as (root, _):
            settings = {
                "videos": f"{root}/list.csv",
                "idm": tiny_base,
                "out": tmp_path / "out",
                "keyframes.min_interval_frames": 8,
                "limits.time_limit_s": 8.0,  # the hanging server's answer takes 20
                "limits.download_limit_mib": 1,
                "max_new_tokens": 4,
                "filters.action": "score",
                "filters.unchanged": "score",
            }
            arguments = [f"{key}={value}" for key, value in settings.items()]
            command = [sys.executable, "-m", "jobs.annotate", *arguments]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    triplets = read_table(tmp_path / "out" / "triplets").to_pylist()
    rejects = read_table(tmp_path / "out" / "rejects", REJECT_SCHEMA).to_pylist()
    used = {row["video_uri"] for row in triplets}
    assert used == {"s3://clips/sit down/a+b.mp4", "s3://clips/sit down/ä b.mp4", f"{root}/good.mp4"}
    assert {row["class_label"] for row in triplets} == {"sit down", "web"}
    for row in triplets:
        if "ä" in row["video_uri"]:
            assert 0.4 <= row["source_time_s"] < row["target_time_s"] < 1.6
    actual = {row["uri"].rsplit("/", 1)[1]: (row["outcome"], row["reason"]) for row in rejects}
    assert actual == {
        "gone.mp4": ("failed", "missing_file"),
        "404": ("failed", "missing_file"),
        "hang": ("failed", "time_out"),
        "large.mp4": ("failed", "unreadable"),
    }
