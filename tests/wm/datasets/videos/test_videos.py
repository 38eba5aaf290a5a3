"""Listing of videos: what counts, its keys and classes, and every way it can be wrong."""

import pytest

from wm.datasets.videos.listing import LISTING_SCHEMA, listing_digest, listing_note
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "set"
    for name in [
        "b run/x.mp4",
        "b run/y.AVI",
        "ä+1/x.mp4",
        "top.mkv",
        "a/deep/er.webm",
        "a/notes.txt",
        ".cache/z.mp4",
    ]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    (root / "b run" / ".hidden.mp4").touch()
    (root / "b run" / "dangling.mp4").symlink_to(root / "nowhere")
    (root / "folder.mp4").mkdir()
    return root


def pairs(listing):
    assert listing.schema.equals(LISTING_SCHEMA)
    return list(zip(listing["key"].to_pylist(), listing["class_label"].to_pylist(), strict=True))


def test_folder_lists_every_video_below_it_sorted_with_its_class(tree):
    actual = pairs(list_videos(str(tree)))
    assert actual == [
        ("a/deep/er.webm", ""),
        ("b run/dangling.mp4", "b run"),
        ("b run/x.mp4", "b run"),
        ("b run/y.AVI", "b run"),
        ("top.mkv", ""),
        ("ä+1/x.mp4", "ä+1"),
    ]
    assert all(row["uri"] == f"{tree}/{row['key']}" for row in list_videos(str(tree)).to_pylist())


def test_keys_do_not_depend_on_where_the_folder_is(tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    near = list_videos("set")
    assert near["key"].to_pylist() == list_videos(str(tree))["key"].to_pylist()
    assert near["uri"][0].as_py() == "set/a/deep/er.webm"
    assert near.drop(["uri"]) == list_videos(f"file://{tree}").drop(["uri"]) == list_videos("./set/").drop(["uri"])
    monkeypatch.chdir(tree)
    here = list_videos(".")
    assert here["uri"].to_pylist() == here["key"].to_pylist() == near["key"].to_pylist()


def test_glob(tree, monkeypatch):
    actual = list_videos(f"{tree}/*/*.mp4")
    assert actual["key"].to_pylist() == ["b run/dangling.mp4", "b run/x.mp4", "ä+1/x.mp4"]
    assert actual["uri"][1].as_py() == f"{tree}/b run/x.mp4"
    assert list_videos(f"{tree}/**/x.*")["class_label"].to_pylist() == ["b run", "ä+1"]
    monkeypatch.chdir(tree)
    assert (
        pairs(list_videos("*/x.mp4"))
        == pairs(list_videos("./*/x.mp4"))
        == [("b run/x.mp4", "b run"), ("ä+1/x.mp4", "ä+1")]
    )


def test_list_file_counts_each_line_once_relative_to_itself(tree):
    listing = tree / "list.txt"
    listing.write_text("# mine\nb run/x.mp4\n\ngone.mp4\nb run/x.mp4\n/abs/y.mp4\n")
    actual = list_videos(str(listing))
    assert [(row["key"], row["uri"]) for row in actual.to_pylist()] == [
        ("/abs/y.mp4", "/abs/y.mp4"),
        ("b run/x.mp4", f"{tree}/b run/x.mp4"),
        ("gone.mp4", f"{tree}/gone.mp4"),
    ]
    assert listing_note(actual, "duplicates") == "1"


def test_one_file(tree):
    assert list_videos(f"{tree}/top.mkv")["key"].to_pylist() == ["top.mkv"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gone", "no such file or folder"),
        ("empty", "is an empty folder"),
        ("words", "holds no video: none of 1 files"),
        ("gone/*.mp4", "no such folder"),
        ("words/*.mp4", "matches no file"),
        ("words/*", "matches no video"),
        ("blank.txt", "lists no video"),
        ("bytes.txt", "not UTF-8"),
        ("", "is empty"),
    ],
)
def test_bad_specifications_are_named(tmp_path, monkeypatch, spec, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.doc").touch()
    (tmp_path / "blank.txt").write_text("\n# nothing\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=message) as caught:
        list_videos(spec)
    assert spec in str(caught.value)
    assert "\n" not in str(caught.value)


def test_digest_changes_with_the_files(tree):
    before = listing_digest(list_videos(str(tree)))
    assert before == listing_digest(list_videos(str(tree)))
    (tree / "top.mkv").write_bytes(b"more")
    assert listing_digest(list_videos(str(tree))) != before
