"""What a listing passes over is counted and named, and no video is passed over that the reader can read."""

import json
import subprocess
from pathlib import Path

import imageio_ffmpeg
import pytest

from jobs.annotate.job import run as run_annotate
from jobs.look import LookRecipe
from jobs.look import run as run_look
from jobs.plan.job import PlanRecipe
from jobs.plan.job import run as run_plan
from tests.helpers.storage_servers import s3_server
from tests.helpers.video_files import marked_frame, write_video
from wm.datasets.videos.endings import VIDEO_SUFFIXES
from wm.datasets.videos.listing import listing_note, passed_over_of
from wm.datasets.videos.passed_over import MAX_ENDINGS, MAX_NAMES, PassedOver, describe
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.video import scan_video

ISSUE = [".asf", ".gif", ".divx", ".mpe", ".qt", ".mxf", ".f4v", ".3g2", ".dv"]
MORE = [".m2ts", ".mts", ".vob", ".ogv", ".wmv", ".rm", ".nut", ".y4m", ".ivf", ".mkv", ".webm", ".flv", ".m2v"]
MORE += [".h264", ".ts", ".mpg", ".3gp", ".m4v", ".mjpeg", ".apng"]


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def keys(listing):
    return listing["key"].to_pylist()


def find_l(root):
    """Paths of the files below a folder as ``find -L`` gives them."""
    message = subprocess.run(["find", "-L", ".", "-type", "f"], cwd=root, capture_output=True, text=True, check=False)
    return sorted(line.removeprefix("./") for line in message.stdout.splitlines())


def make(path, ending):
    """A video of this ending by ffmpeg's own choice of container and codec."""
    size, rate, more = "96x64", "25", []
    if ending in (".dv", ".y4m"):
        size, more = "720x576", ["-pix_fmt", "yuv420p"]
    elif ending in (".divx", ".qt", ".mpe"):
        more = ["-f", {".divx": "avi", ".qt": "mov", ".mpe": "mpeg"}[ending]]
    elif ending in (".3g2", ".3gp"):
        size, more = "176x144", ["-c:v", "mpeg4"]
    elif ending == ".apng":
        more = ["-f", "apng"]
    source = ["-f", "lavfi", "-i", f"testsrc=size={size}:rate={rate}:duration=1"]
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, *more, str(path)]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("ending", ISSUE + MORE)
def test_endings_that_the_reader_reads_are_listed(tmp_path, ending):
    path = tmp_path / f"x{ending.upper()}"
    make(tmp_path / f"x{ending}", ending)
    (tmp_path / f"x{ending}").rename(path)
    assert keys(list_videos(str(tmp_path))) == [path.name]
    assert scan_video(str(path)).num_frames >= 20


def test_endings_of_containers_stand_in_the_table():
    """Common endings that ffmpeg has no muxer for, or names of a container that it has under another one."""
    names = (
        "amv rmvb divx xvid mod tod m2t m2p mp4v mpv mk3d ogm wtv dvr-ms swf nsv r3d mlv insv lrv 360 3gpp hevc 265 av1"
    )
    assert {f".{name}" for name in names.split()} <= VIDEO_SUFFIXES
    assert not {".txt", ".jpg", ".png", ".json", ".wav", ".mp3", ".srt", ".dat", ".zip"} & VIDEO_SUFFIXES


# links


def test_linked_class_folders_are_listed_as_find_lists_them(tmp_path):
    put(tmp_path / "disk", "yoga/a.mp4", "yoga/deep/b.mp4", "run/c.mp4")
    root = put(tmp_path / "set", "own/d.mp4")
    (root / "yoga").symlink_to(tmp_path / "disk" / "yoga")
    (root / "jog").symlink_to("../disk/run", target_is_directory=True)
    (root / "chain").symlink_to("jog")
    listing = list_videos(str(root))
    assert keys(listing) == find_l(root) == ["chain/c.mp4", "jog/c.mp4", "own/d.mp4", "yoga/a.mp4", "yoga/deep/b.mp4"]
    assert listing["class_label"].to_pylist() == ["chain", "jog", "own", "yoga", ""]
    assert all(Path(uri).is_file() for uri in listing["uri"].to_pylist())
    assert passed_over_of(listing) == {"repeats": {"count": 1, "examples": ["jog/c.mp4"]}}


def test_links_that_loop_are_followed_once_and_named(tmp_path):
    root = put(tmp_path / "set", "a/x.mp4", "b/y.mp4")
    (root / "a" / "up").symlink_to(root)
    (root / "b" / "self").symlink_to(".")
    (root / "deep").symlink_to("a/up/a")
    listing = list_videos(str(root))
    assert set(keys(listing)) == {"a/x.mp4", "b/y.mp4", "deep/x.mp4"} == set(find_l(root))
    loops = passed_over_of(listing)["looping_links"]
    assert loops["count"] == 3 and loops["examples"] == ["a/up", "b/self", "deep/up"]


@pytest.mark.parametrize("spec", ["{}", "{}/**/*.mp4", "{}/**"])
def test_folders_full_of_links_to_each_other_end(tmp_path, spec):
    """Twelve folders that each link to all: there are a billion paths without a loop."""
    names = [f"f{number:02d}" for number in range(12)]
    root = put(tmp_path / "set", *(f"{name}/{name}.mp4" for name in names))
    for name in names:
        for other in names:
            (root / name / f"to-{other}").symlink_to(f"../{other}")
    listing = list_videos(spec.format(root))
    actual = keys(listing)
    assert {f"{name}/{name}.mp4" for name in names} <= set(actual)
    assert len(actual) <= 12 + 12 * 12
    assert passed_over_of(listing)["looping_links"]["count"] > 0


def test_broken_links_and_repeats_are_named(tmp_path):
    root = put(tmp_path / "set", "run/x.mp4", "run/y.mp4")
    (root / "yoga").symlink_to(tmp_path / "unmounted")
    (root / "round").symlink_to("round")
    (root / "run" / "z.mp4").symlink_to("nowhere.mp4")
    (root / "run" / "again.mp4").symlink_to("x.mp4")
    listing = list_videos(str(root))
    assert keys(listing) == ["run/again.mp4", "run/x.mp4", "run/y.mp4", "run/z.mp4"]  # z becomes a reject
    assert passed_over_of(listing) == {
        "broken_links": {"count": 2, "examples": ["round", "yoga"]},
        "repeats": {"count": 1, "examples": ["run/again.mp4"]},
    }


# kinds and words

NAMES = ["a/x.mp4", "a/notes.TXT", "a/list.txt", "b/thumb.jpg", "b/.hidden.mp4", ".cache/z.mp4", "b/README", "top.mkv"]
EXPECTED = {
    "other_endings": {
        "count": 4,
        "examples": ["a/list.txt", "a/notes.TXT", "b/README", "b/thumb.jpg"],
        "by_ending": {".txt": 2, "": 1, ".jpg": 1},
    },
    "hidden": {"count": 2, "examples": [".cache/", "b/.hidden.mp4"]},
}


def test_other_files_are_counted_in_a_folder_and_a_bucket(tmp_path):
    root = put(tmp_path / "set", *NAMES)
    assert passed_over_of(list_videos(str(root))) == EXPECTED
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as client:
        client.create_bucket(Bucket="bucket")
        for name in NAMES:
            client.put_object(Bucket="bucket", Key=f"set/{name}", Body=b"x")
        for pattern in ("", "/**", "/*/*", "/*", "/a/*.mp4", "/**/.*", "/.cache/*"):
            near, far = list_videos_or_error(f"{root}{pattern}"), list_videos_or_error(f"s3://bucket/set{pattern}")
            assert near == far


def list_videos_or_error(spec):
    try:
        return passed_over_of(list_videos(spec))
    except InputError as error:
        return str(error).partition(" ")[2].split(" ", 2)[2]


def test_a_glob_counts_what_it_matches(tmp_path):
    root = put(tmp_path / "set", *NAMES)
    assert passed_over_of(list_videos(f"{root}/a/*.mp4")) == {}
    assert passed_over_of(list_videos(f"{root}/*")) == {"folders": {"count": 2, "examples": ["a/", "b/"]}}
    assert passed_over_of(list_videos(f"{root}/**")) == EXPECTED
    with pytest.raises(InputError, match=r"no video: none of 2 files .*: 2 \(1 without ending, 1 \.jpg\): README, th"):
        list_videos(f"{root}/b/*")
    with pytest.raises(InputError, match=r"matches no file \(folders that match the pattern.*: 2: a/, b/"):
        list_videos(f"{root}/[ab]")


def test_a_record_stays_small_whatever_is_there():
    passed_over = PassedOver()
    for number in reversed(range(1000)):
        passed_over.add_file(f"dir/file.e{number:03d}")
    passed_over.add_file("caf\udce9.t\udce9")
    record = json.loads(passed_over.dumps())["other_endings"]
    assert (
        record["count"] == 1001 and record["examples"][0] == "caf\\xe9.t\\xe9" and len(record["examples"]) == MAX_NAMES
    )
    assert len(record["by_ending"]) == MAX_ENDINGS + 1 and sum(record["by_ending"].values()) == 1001
    [line] = describe(passed_over.record())
    assert line.encode() and line.startswith("files without a video's ending: 1,001 (1 ") and line.endswith(", …")


# annotations


def test_rows_without_a_file_and_files_without_a_row(tmp_path):
    root = put(
        tmp_path / "k", "train/abcdefghijk_000001_000011.mp4", "val/abcdefghijk_000001_000011.mkv", "c/other.mp4"
    )
    put(root, "c/notes.txt")
    table = tmp_path / "t.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split\nyoga,abcdefghijk,1,11,val\nrun,gone,0,9,val\nrun,lost,0,9,val\n"
    )
    listing = list_videos(str(root), annotations=str(table))
    assert passed_over_of(listing) == {
        "other_endings": {"count": 1, "examples": ["c/notes.txt"], "by_ending": {".txt": 1}},
        "unnamed": {"count": 1, "examples": ["c/other.mp4"]},
        "same_name": {"count": 1, "examples": ["train/abcdefghijk_000001_000011.mp4"]},
        "absent": {"count": 2, "examples": ["gone_000000_000009", "lost_000000_000009"]},
    }
    assert listing.num_rows == 3 and listing_note(listing, "unnamed") == "1"


def test_epic_and_ucf_count_as_well(tmp_path):
    root = put(tmp_path / "e", "P01/videos/P01_101.MP4", "P01/rgb/P01_101.mp4", "P04/videos/P04_1.MP4", "P01/x.json")
    table = tmp_path / "epic.csv"
    table.write_text(
        "video_id,start_timestamp,stop_timestamp,verb\n"
        "P01_101,00:00:00,00:00:01,cut\nP01_101,00:00:01,00:00:02,cut\nP09_1,00:00:00,00:00:01,cut\n"
    )
    record = passed_over_of(list_videos(str(root), annotations=str(table)))
    assert {kind: entry["examples"] for kind, entry in record.items()} == {
        "other_endings": ["P01/x.json"],
        "unnamed": ["P04/videos/P04_1.MP4"],
        "same_name": ["P01/rgb/P01_101.mp4"],
        "absent": ["P09_1"],
    }
    root = put(tmp_path / "u", "Yo/v_Yo_g01_c01.avi", "Yo/v_Yo_g01_c02.avi")
    split = tmp_path / "trainlist01.txt"
    split.write_text("Yo/v_Yo_g01_c01.avi 1\nYo/v_Yo_g09_c09.avi 1\nYo/v_Yo_g01_c01.avi 1\n")
    assert passed_over_of(list_videos(str(root), annotations=str(split))) == {
        "duplicates": {"count": 1, "examples": ["Yo/v_Yo_g01_c01.avi"]},
        "unnamed": {"count": 1, "examples": ["Yo/v_Yo_g01_c02.avi"]},
        "absent": {"count": 1, "examples": ["v_Yo_g09_c09"]},
    }


# jobs


@pytest.fixture
def clips(tmp_path):
    root = put(tmp_path / "set", "wave/notes.txt", ".cache/z.mp4")
    write_video(root / "wave" / "a.mp4", [marked_frame(number) for number in range(45)])
    return root


LINES = (
    "  files without a video's ending: 1 (1 .txt): wave/notes.txt\n  hidden files and folders, whose names begin with"
)


def test_look_says_what_was_passed_over_and_keeps_it(clips, tmp_path, capsys):
    recipe = LookRecipe(videos=str(clips), out=str(tmp_path / "out"))
    run_look(recipe, dry_run=True)
    message = capsys.readouterr().out
    assert LINES in message
    record = run_look(recipe)
    assert LINES in capsys.readouterr().out
    assert record["passed_over"] == passed_over_of(list_videos(str(clips)))
    assert json.loads((tmp_path / "out" / "run.json").read_text())["passed_over"].keys() == {"other_endings", "hidden"}


def test_plan_says_what_was_passed_over(clips, tmp_path, capsys):
    rates = dict.fromkeys(("fetch_images_per_s", "encode_images_per_s", "idm_pairs_per_s"), 10.0)
    rates |= {"dis_frames_per_s": 10.0, "write_triplets_per_s": 10.0}
    (tmp_path / "rates.json").write_text(json.dumps({"rates": rates}))
    values = {"rates": str(tmp_path / "rates.json"), "videos": str(clips), "out": str(tmp_path / "plan.json")}
    nodes = [{"name": "n", "cpus": 4, "gpus": 1}]
    plan = run_plan(PlanRecipe.parse({**values, "nodes": nodes}, "test"))
    assert LINES in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["passed_over"] == plan["passed_over"]
    assert plan["passed_over"]["other_endings"]["count"] == 1


def test_annotate_says_what_was_passed_over(clips, tmp_path, tiny_base, capsys, monkeypatch):
    import jobs.annotate.job
    from tests.helpers.annotate_data import recipe

    one = recipe(clips, tiny_base, tmp_path / "out")
    run_annotate(one, dry_run=True)
    assert LINES in capsys.readouterr().out

    def annotate(*args):
        assert LINES in capsys.readouterr().out  # at the start, before hours of work
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.annotate.job, "_annotate", annotate)
    with pytest.raises(KeyboardInterrupt):
        run_annotate(one)
