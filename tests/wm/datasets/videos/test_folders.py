"""Folders and globs in an object store: the same videos as in the same local tree."""

import pytest

from tests.helpers.storage_servers import gs_server, s3_server
from wm.datasets.videos.listing import listing_digest
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError

NAMES = [
    "train/air drumming/x.mp4",
    "train/air drumming/y+1.MKV",
    "train/yoga/x.mp4",
    "train/yoga/notes.txt",
    "train/.cache/z.mp4",
    "train/yoga/.z.mp4",
    "val/ünï#?/x y.avi",
    "top.mp4",
]
VIDEOS = [NAMES[number] for number in (7, 0, 1, 2, 6)]
"""Those that count, sorted."""
PATTERNS = ["*", "**", "*.mp4", "*/*/x.mp4", "**/x*", "train/**", "train/**/*.MKV", "t*/[ay]*/?.mp4", "**/yoga/**"]


@pytest.fixture(scope="module")
def s3():
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as client:
        client.create_bucket(Bucket="bucket")
        for name in NAMES:
            client.put_object(Bucket="bucket", Key=f"set/{name}", Body=b"x")
        client.put_object(Bucket="bucket", Key="texts/a.txt", Body=b"x")
        client.put_object(Bucket="bucket", Key="list.txt", Body=b"set/top.mp4\n../escape.mp4\n")
        client.put_object(Bucket="bucket", Key="lists/l.txt", Body=b"../set/top.mp4\nclips/x.mp4\n")
        yield client


@pytest.fixture
def tree(tmp_path):
    for name in NAMES:
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    return tmp_path / "set"


def test_a_bucket_lists_as_a_folder_does(s3, tree):
    for spec in ("s3://bucket/set", "s3://bucket/set/"):
        actual = list_videos(spec)
        assert actual.drop(["uri"]) == list_videos(str(tree)).drop(["uri"])
        assert actual["key"].to_pylist() == VIDEOS
        assert actual["uri"].to_pylist() == [f"s3://bucket/set/{key}" for key in VIDEOS]
    assert actual["class_label"].to_pylist() == ["", "air drumming", "air drumming", "yoga", "ünï#?"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_matches_as_it_does_in_a_folder(s3, tree, pattern):
    near, far = list_videos(f"{tree}/{pattern}"), list_videos(f"s3://bucket/set/{pattern}")
    assert far.drop(["uri"]) == near.drop(["uri"])
    fixed = "train/" if pattern.startswith("train") else ""
    assert far["uri"].to_pylist() == [f"s3://bucket/set/{fixed}{key}" for key in near["key"].to_pylist()]


def test_options_of_the_uri_go_into_every_row(s3, monkeypatch):
    address = s3.meta.endpoint_url.removeprefix("http://")
    options = f"?endpoint_override={address.replace(':', '%3A')}&scheme=http&region=us-east-1"
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    for spec in (f"s3://bucket/set/{options}", f"s3://bucket/set/**{options}"):
        actual = list_videos(spec)
        assert actual["key"].to_pylist() == VIDEOS
        assert actual["uri"].to_pylist() == [f"s3://bucket/set/{key}{options}" for key in VIDEOS]


def test_one_file_and_lists_in_a_bucket(s3):
    assert list_videos("s3://bucket/set/top.mp4").to_pylist()[0]["key"] == "top.mp4"
    assert list_videos("s3://bucket/set/gone.mp4").num_rows == 1  # it becomes a reject
    assert list_videos("s3://bucket/lists/l.txt")["uri"].to_pylist() == [
        "s3://bucket/set/top.mp4",
        "s3://bucket/lists/clips/x.mp4",
    ]
    with pytest.raises(InputError, match=r"list.txt line 2: '../escape.mp4' leads out of the bucket"):
        list_videos("s3://bucket/list.txt")


def test_missing_videos_of_a_table_lie_in_the_bucket(s3, tmp_path):
    (tmp_path / "t.csv").write_text("label,youtube_id,time_start,time_end\nyoga,abc,1,2\n")
    actual = list_videos("s3://bucket/set", annotations=str(tmp_path / "t.csv"))
    assert actual["uri"].to_pylist() == ["s3://bucket/set/abc_000001_000002.mp4"]


def test_digest_follows_the_sizes_that_the_store_lists(s3):
    before = listing_digest(list_videos("s3://bucket/set/train"))
    assert listing_digest(list_videos("s3://bucket/set/train/")) == before
    s3.put_object(Bucket="bucket", Key="set/train/yoga/notes.txt", Body=b"longer")
    assert listing_digest(list_videos("s3://bucket/set/train")) == before
    s3.put_object(Bucket="bucket", Key="set/train/yoga/x.mp4", Body=b"longer")
    assert listing_digest(list_videos("s3://bucket/set/train")) != before


def test_google_bucket():
    with gs_server({f"set/{name}": b"x" for name in NAMES}) as address:
        actual = list_videos(f"gs://bucket/set/?endpoint_override={address}&scheme=http&anonymous=true")
        assert actual["key"].to_pylist() == VIDEOS


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("s3://bucket/gone/", "no such object or bucket"),
        ("s3://nobucket/", "no such object or bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://bucket/texts", "holds no video: none of 1 files"),
        ("s3://bucket/texts/b*", "matches no file"),
        ("s3://bucket/texts/*", "matches no video"),
        ("s3://bucket/gone.csv", "no such object"),
        ("https://host.example/folder/", "HTTP has no listing"),
        ("https://host.example/*.mp4", "HTTP has no listing"),
        ("ftp://host.example/x.mp4", "unknown scheme 'ftp'; expected a local path or one of s3://"),
        ("file://host/x.mp4", "without a host"),
    ],
)
def test_bad_places_are_named(s3, spec, message):
    with pytest.raises(InputError, match=message) as caught:
        list_videos(spec)
    assert spec in str(caught.value)


def test_a_video_over_http_is_itself():
    uri = "https://host.example/films/my%20film.mp4?sig=a/b&x=1"
    row = list_videos(uri).to_pylist()[0]
    assert (row["uri"], row["key"]) == (uri, "my film.mp4")


def test_a_folder_that_may_not_be_read_is_named(tree, monkeypatch):
    import os

    real = os.scandir

    def guarded(path):
        if str(path).endswith("yoga"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(InputError, match=r"cannot list the folder '.*/yoga': Permission denied"):
        list_videos(str(tree))
