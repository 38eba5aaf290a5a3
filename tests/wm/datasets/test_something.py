"""Something-Something v2: labels and folder become a listing, and human-labelled rows; bad rows are named."""

import json
from pathlib import Path

import pytest

from tests.helpers.something_data import CLASSES, ROWS, write_release
from wm.datasets.layouts import recognise_table
from wm.datasets.layouts.base import Problem, VideoSegment
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.videos.listing import listing_note, passed_over_of
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError

HOLDING, CLOSING = "Holding something next to something", "Closing something"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_release(tmp_path_factory.mktemp("something"))


@pytest.mark.parametrize("layout", ["auto", "something"])
def test_listing_takes_templates_as_classes(release: Path, layout: str) -> None:
    folder = release.parents[1] / "20bn-something-something-v2"
    listing = list_videos(str(folder), layout=layout, annotations=str(release))
    assert dict(zip(listing["key"].to_pylist(), listing["class_label"].to_pylist(), strict=True)) == {
        "101.webm": HOLDING,
        "7.webm": CLOSING,
        "404.webm": CLOSING,  # not there: it becomes a reject when it is read
        "9.webm": CLOSING,
    }
    assert listing["uri"].to_pylist()[0] == f"{folder}/101.webm"
    assert listing_note(listing, "unnamed") == "1"
    record = {kind: (entry["count"], entry["examples"]) for kind, entry in passed_over_of(listing).items()}
    assert record == {"unnamed": (1, ["33.webm"]), "absent": (1, ["404"])}


def test_folder_of_the_release_is_no_class(release: Path) -> None:
    listing = list_videos(str(release.parents[1]))
    assert set(listing["class_label"].to_pylist()) == {""} and listing.num_rows == 4


def test_rows_keep_the_order_and_the_words_of_the_labels(release: Path) -> None:
    folder = release.parents[1] / "20bn-something-something-v2"
    rows = list_labelled(folder, str(release))
    assert rows[:2] == [
        VideoSegment("101.webm", HOLDING, f"{folder}/101.webm", "holding potato next to vicks vaporub bottle"),
        VideoSegment("7.webm", CLOSING, f"{folder}/7.webm", "closing a door"),
    ]
    assert [row.uri for row in rows] == ["101.webm", "7.webm", "404.webm", "9.webm"]


def test_converted_video_stands_in_for_a_missing_webm(tmp_path: Path) -> None:
    for name in ("a/7.mp4", "b/7.webm", "a/101.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "train.json").write_text(json.dumps(ROWS[:2]))
    record: dict[str, object] = {}
    first, second = list_labelled(tmp_path, "train.json", passed_over=record)
    assert (first.uri, second.uri) == ("a/101.mp4", "b/7.webm")
    assert record["same_name"] == {"count": 1, "examples": ["a/7.mp4"]}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ({"id": "7", "template": "Closing [something]"}, "missing_field", "no narration or label"),
        ({"id": "7", "label": "closing", "template": None}, "missing_field", "no 'template'; found 'id'"),
        ({"label": "closing", "template": "Closing [something]"}, "missing_field", "no 'id'"),
        ({"id": "../7", "label": "x", "template": "Closing [something]"}, "bad_field", "id = '../7'"),
        ({"id": " ", "label": "x", "template": "Closing [something]"}, "bad_field", "id = ' '"),
        ({"id": True, "label": "x", "template": "Closing [something]"}, "bad_field", "id = True"),
        ({"id": "7", "label": ["x"], "template": "Closing [something]"}, "bad_field", "label = ['x']"),
        ({"id": "7", "label": "x", "template": "Dancing"}, "unknown_class", "'Dancing' is none of the 2 listed"),
        ({"id": "101", "label": "x", "template": "Closing [something]"}, "duplicate", "101.webm is listed twice"),
        (["7"], "not_a_row", "expected an object"),
    ],
)
def test_bad_row_is_a_problem_and_the_others_stay(tmp_path: Path, row: object, reason: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(CLASSES))
    (tmp_path / "train.json").write_text(json.dumps([ROWS[0], row, ROWS[1] | {"id": 8}]))
    (tmp_path / "101.webm").touch()
    good, bad, other = list_labelled(tmp_path, "train.json")
    assert isinstance(good, VideoSegment) and isinstance(other, VideoSegment) and other.uri == "8.webm"
    assert isinstance(bad, Problem) and bad.reason == reason and message in bad.detail


@pytest.mark.parametrize(
    ("text", "classes", "message"),
    [
        ('[{"id": "7", "template": "Closing [so', "{}", "is not valid JSON"),
        ('[{"id": "7"}]', "{}", "expected .*a JSON list of id, template, label"),
        ('[{"id": 1.5, "template": "x"}]', "{}", "no usable row; the first: .*id = 1.5"),
        ('[{"id": "7", "template": "Closing [something]"}]', "[]", "holds list; expected an object of classes"),
        ('[{"id": "7", "template": "Closing [something]"}]', "{", "labels.json: not valid JSON"),
    ],
)
def test_bad_labels_are_refused_at_once(tmp_path: Path, text: str, classes: str, message: str) -> None:
    (tmp_path / "labels.json").write_text(classes)
    (tmp_path / "train.json").write_text(text)
    (tmp_path / "7.webm").touch()
    for call in (
        lambda: list_labelled(tmp_path, "train.json"),
        lambda: list_videos(str(tmp_path), annotations=str(tmp_path / "train.json")),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_bad_row_stops_a_listing_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(json.dumps([ROWS[0], {"id": "7"}]))
    (tmp_path / "7.webm").touch()
    with pytest.raises(InputError, match=r"train\.json#1: no 'template'"):
        list_videos(str(tmp_path), annotations=str(tmp_path / "train.json"))
    with pytest.raises(InputError, match="dataset_layout = 'something' needs annotations"):
        list_videos(str(tmp_path), layout="something")


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        (json.dumps(ROWS, indent=1), "something"),
        ('[{"instruction": "a", "input": "b", "output": "c"}]', "aurora"),
        ("video_id,verb,start_timestamp,stop_timestamp\n", "epic"),
        ("label,youtube_id,time_start,time_end,split\n", "kinetics"),
        ("YoYo/v_YoYo_g25_c05.avi 101\n", "ucf101"),
    ],
)
def test_every_table_is_recognised_by_how_it_begins(tmp_path: Path, text: str, layout: str) -> None:
    (tmp_path / "table").write_text(text)
    assert recognise_table(tmp_path / "table", "file", "table") == layout


def test_layout_without_human_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("YoYo/v_YoYo_g25_c05.avi 101\n")
    with pytest.raises(InputError, match="'ucf101' has no human labels; those that do: epic, something, aurora"):
        list_labelled(tmp_path, "list.txt")
    with pytest.raises(InputError, match="'aurora' takes no annotations; those that do"):
        list_videos(str(tmp_path), layout="aurora")
