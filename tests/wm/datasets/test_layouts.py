"""Classes by layout and listings by a data set's own table: UCF-101, Kinetics-700, Moments in Time, EPIC-Kitchens."""

import pytest

from wm.datasets.layouts import class_rule
from wm.datasets.videos.listing import listing_note
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError

UCF = ["HandstandPushups/v_HandStandPushups_g01_c01.avi", "YoYo/v_YoYo_g25_c03.avi"]
KINETICS = ["train/air drumming/-3Pk_zWPr5o_000003_000013.mp4", "val/yoga/a-b_c-d_e-f_000100_000110.mp4"]
EPIC_100 = """narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,\
stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes
P01_101_1,P01,P01_101,00:00:02.300,00:00:01.5,00:00:03.37,90,202,"turn on, tap",turn-on,6,tap,0,['tap'],[0]
P01_101_0,P01,P01_101,00:00:00.56,00:00:00.14,00:00:01.50,8,90,open door,open,3,door,3,['door'],[3]
P02_03_7,P02,P02_03,01:00:00.000,01:02:03.25,01:02:04.00,0,9,wash pan,wash,2,pan,5,['pan'],[5]
P03_09_0,P03,P03_09,00:00:00.000,00:00:01.00,00:00:02.00,0,9,cut,cut,2,pan,5,['pan'],[5]
"""
EPIC_55 = """uid,participant_id,video_id,narration,start_timestamp,stop_timestamp,start_frame,stop_frame,verb,verb_class
6374,P01,P01_101,stir vegetables,00:00:01.25,00:00:02.50,1,2,stir,20
6375,P01,P01_101,stir again,00:00:02.25,00:00:02.50,1,2,stir,20
"""


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def classes(listing):
    return dict(zip(listing["key"].to_pylist(), listing["class_label"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("layout", "key", "label"),
    [
        ("auto", UCF[0], "HandstandPushups"),
        ("auto", "UCF-101/" + UCF[1], "YoYo"),
        ("auto", "v_YoYo_g25_c03.avi", "YoYo"),
        ("auto", "deep/other/v_YoYo_g25_c03.avi", ""),
        ("auto", "other/v_YoYo_g25_c03.avi", "other"),
        ("auto", KINETICS[0], "air drumming"),
        ("auto", "k700/" + KINETICS[1], "yoga"),
        ("auto", "train/-3Pk_zWPr5o_000003_000013.mp4", ""),
        ("auto", "train/my ride.mp4", "train"),
        ("auto", "training/clapping+hands/x y.mp4", "clapping+hands"),
        ("auto", "Ünï çode/x.mp4", "Ünï çode"),
        ("auto", "a/b/c.mp4", ""),
        ("auto", "c.mp4", ""),
        ("folder", "a/b/c.mp4", "b"),
        ("folder", "c.mp4", ""),
        ("ucf101", "x/YoYo/v_YoYo_g25_c03.avi", "YoYo"),
        ("ucf101", "v_YoYo_g25_c03.avi", "YoYo"),
        ("ucf101", "other.avi", ""),
        ("kinetics", "yoga/a.mp4", "yoga"),
        ("kinetics", "val/a.mp4", ""),
        ("moments", "Training/yoga/a.mp4", "yoga"),
    ],
)
def test_class_of_a_place(layout, key, label):
    assert class_rule(layout)(key) == label


def test_class_in_a_list_needs_a_known_layout():
    rule = class_rule("auto", is_list=True)
    assert rule("some folder/x.mp4") == ""
    assert rule(UCF[1]) == "YoYo"
    assert rule("https://host.example/val/air%20drumming/x.mp4?sig=a/b") == "air drumming"
    assert rule("s3://val/bucket's/x.mp4") == ""
    assert class_rule("folder", is_list=True)("/abs/y/x.mp4") == "y"


def test_two_videos_of_one_name_stay_two(tmp_path):
    put(tmp_path, "train/a/x.mp4", "train/b/x.mp4")
    assert classes(list_videos(str(tmp_path))) == {"train/a/x.mp4": "a", "train/b/x.mp4": "b"}


@pytest.mark.parametrize("layout", ["auto", "kinetics"])
def test_kinetics_by_folders_and_by_table(tmp_path, layout):
    root = put(tmp_path / "k", *KINETICS)
    assert classes(list_videos(str(root), layout=layout)) == {KINETICS[0]: "air drumming", KINETICS[1]: "yoga"}
    table = tmp_path / "train.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split\n"
        '"a/b, c+d",-3Pk_zWPr5o,3,13,train\n'
        "ünï,missing_1-x,0,10,train\n"
        "ünï,missing_1-x,0,10,train\n"
    )
    actual = list_videos(str(root), layout=layout, annotations=str(table))
    assert classes(actual) == {KINETICS[0]: "a/b, c+d", "missing_1-x_000000_000010.mp4": "ünï"}
    assert actual["uri"].to_pylist() == [f"{root}/missing_1-x_000000_000010.mp4", f"{root}/{KINETICS[0]}"]
    assert actual["start_s"].null_count == 2  # the files are cut already
    assert (listing_note(actual, "duplicates"), listing_note(actual, "unnamed")) == ("1", "1")


def test_flat_kinetics_takes_the_file_of_its_split(tmp_path):
    name = "abcdefghijk_000001_000011"
    root = put(tmp_path / "k", f"train/{name}.mp4", f"val/{name}.MKV")
    table = tmp_path / "val.csv"
    table.write_text("label,youtube_id,time_start,time_end,split\nyoga,abcdefghijk,1.0,11.0,val\n")
    assert list_videos(str(root), annotations=str(table))["key"].to_pylist() == [f"val/{name}.MKV"]
    table.write_text("label,youtube_id,time_start,time_end\nyoga,abcdefghijk,1,11\n")
    assert list_videos(str(root), annotations=str(table)).num_rows == 2


@pytest.mark.parametrize("flat", [False, True])
def test_ucf_split_file(tmp_path, flat):
    root = put(tmp_path / "u", *(name.rpartition("/")[2] if flat else name for name in UCF))
    split = tmp_path / "trainlist01.txt"
    split.write_text("YoYo/v_YoYo_g25_c03.avi 101\nYoYo/v_YoYo_g25_c04.avi 101\n")
    actual = list_videos(str(root), annotations=str(split))
    there = "v_YoYo_g25_c03.avi" if flat else "YoYo/v_YoYo_g25_c03.avi"
    assert classes(actual) == {"YoYo/v_YoYo_g25_c04.avi": "YoYo", there: "YoYo"}
    assert listing_note(actual, "unnamed") == "1"
    split.write_text("HandstandPushups/v_HandStandPushups_g01_c01.avi\r\n")
    assert list(classes(list_videos(str(root), layout="ucf101", annotations=str(split))).values()) == [
        "HandstandPushups"
    ]


def test_epic_100_segments(tmp_path):
    root = put(
        tmp_path / "e", "P01/videos/P01_101.MP4", "P01/rgb/P01_101.mp4", "P02/p02_03.mp4", "P04/videos/P04_1.MP4"
    )
    table = tmp_path / "EPIC_100_train.csv"
    table.write_text(EPIC_100)
    actual = list_videos(str(root), annotations=str(table))
    assert actual == list_videos(str(root), layout="epic", annotations=f"file://{table}")
    rows = [tuple(row.values()) for row in actual.to_pylist()]
    first, missing = "P01/videos/P01_101.MP4", "P03/videos/P03_09.MP4"
    assert rows == [
        (f"{root}/{first}", f"{first}#P01_101_0", "open", 0.14, 1.5, ""),
        (f"{root}/{first}", f"{first}#P01_101_1", "turn-on", 1.5, 3.37, ""),
        (f"{root}/P02/p02_03.mp4", "P02/p02_03.mp4#P02_03_7", "wash", 3723.25, 3724.0, ""),
        (f"{root}/{missing}", f"{missing}#P03_09_0", "cut", 1.0, 2.0, ""),
    ]
    assert listing_note(actual, "unnamed") == "1"


def test_epic_55_segments_differ_by_their_times(tmp_path):
    root = put(tmp_path / "e", "P01_101.mp4")
    table = tmp_path / "EPIC_train_action_labels.csv"
    table.write_text(EPIC_55)
    actual = list_videos(str(root), layout="epic", annotations=str(table))
    assert actual["key"].to_pylist() == ["P01_101.mp4#1.25-2.5", "P01_101.mp4#2.25-2.5"]


def test_annotated_videos_may_come_from_a_list(tmp_path):
    put(tmp_path, "disk/P01_101.MP4")
    (tmp_path / "videos.txt").write_text("https://host.example/P02/P02_03.MP4?sig=1\ndisk/P01_101.MP4\n")
    (tmp_path / "table.csv").write_text(EPIC_100)
    actual = list_videos(str(tmp_path / "videos.txt"), annotations=str(tmp_path / "table.csv"))
    assert set(actual["uri"].to_pylist()) == {
        "https://host.example/P02/P02_03.MP4?sig=1",
        f"{tmp_path}/disk/P01_101.MP4",
        f"{tmp_path}/P03/videos/P03_09.MP4",
    }


@pytest.mark.parametrize(
    ("text", "layout", "message"),
    [
        ("video_id,start_timestamp,verb\n", "epic", "line 1: no column 'stop_timestamp'; columns found: video_id"),
        (EPIC_100.replace("00:00:01.5,", "1.5,"), "auto", r"line 2: time stamp '1.5', expected HH:MM:SS"),
        (
            EPIC_100.replace("00:00:03.37", "00:00:01.50"),
            "auto",
            "line 2: stop_timestamp = 00:00:01.50, expected later",
        ),
        (EPIC_100.replace(",P01_101,", ",../P01,"), "auto", "line 2: video_id = '../P01'"),
        (EPIC_100.splitlines()[0], "auto", "lists no video"),
        ("label,youtube_id,time_start\n", "kinetics", "line 1: no column 'time_end'"),
        (
            "label,youtube_id,time_start,time_end\na,b,x,2\n",
            "auto",
            "line 2: time 'x', expected a whole number of seconds",
        ),
        (
            "label,youtube_id,time_start,time_end\na,b,-1,2\n",
            "auto",
            "line 2: time '-1', expected a whole number of seconds",
        ),
        ("label,youtube_id,time_start,time_end\na,b,2,2\n", "auto", "line 2: time_end = 2, expected more than"),
        ("label,youtube_id,time_start,time_end\na,,1,2\n", "auto", "line 2: no value for 'youtube_id'"),
        ("label,youtube_id,time_start,time_end\na,b/c,1,2\n", "auto", "line 2: youtube_id = 'b/c'"),
        ("1 ApplyEyeMakeup\n", "ucf101", "line 1: '1 ApplyEyeMakeup', expected a line such as"),
        ("1 ApplyEyeMakeup\n", "auto", "first line '1 ApplyEyeMakeup' is none that is known"),
        ("", "auto", "first line '' is none"),
        ("a", "moments", "layout = 'moments' takes no annotations; those that do: ucf101, kinetics, epic, something"),
    ],
)
def test_bad_tables_are_named(tmp_path, text, layout, message):
    root = put(tmp_path / "v", "a.mp4")
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        list_videos(str(root), layout=layout, annotations=str(table))
    assert layout == "moments" or str(table) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_layouts_that_do_not_fit_are_named(tmp_path):
    root = str(put(tmp_path / "v", "a.mp4"))
    with pytest.raises(InputError, match="layout = 'epic' needs annotations"):
        list_videos(root, layout="epic")
    with pytest.raises(InputError, match="layout = 'kinetics' fits none of the 1 videos"):
        list_videos(root, layout="kinetics")
    with pytest.raises(InputError, match="layout = 'ucf'; expected one of auto, folder"):
        list_videos(root, layout="ucf")
    with pytest.raises(InputError, match=r"annotations = 'gone.csv': no such file"):
        list_videos(root, annotations="gone.csv")
    (tmp_path / "l.csv").write_text("uri,start_s\na.mp4,1\n")
    (tmp_path / "t.csv").write_text(EPIC_55)
    with pytest.raises(InputError, match="lists segments"):
        list_videos(str(tmp_path / "l.csv"), annotations=str(tmp_path / "t.csv"))
