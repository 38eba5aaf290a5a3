"""The budget of an annotation: lengths from headers, a dry run that says what is taken, a resume that looks no more."""

import contextlib
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from jobs.annotate.budget import report_of
from jobs.annotate.job import _list_or_resume, run
from jobs.annotate.shards import store_listing
from tests.helpers.annotate_data import recipe
from tests.helpers.video_files import marked_frame, write_video
from wm.errors import InputError
from wm.video.errors import VideoError
from wm.video.length import read_length_s


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 1 s and one that is broken, in two classes."""
    root = tmp_path_factory.mktemp("videos")
    clip = write_video(root / "wave" / "0.mp4", [marked_frame(at) for at in range(25)])
    for number in range(1, 12):
        path = root / ("wave" if number < 8 else "jump") / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(clip.read_bytes())
    (root / "jump" / "broken.mp4").write_bytes(b"no video")
    return root


def test_a_dry_run_says_what_the_budget_takes(
    videos: Path, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(**budget: Any) -> str:
        run(recipe(videos, tiny_base, tmp_path / "out", budget=budget), dry_run=True)
        return capsys.readouterr().out

    assert "budget:" not in plan()
    assert "budget: 6 of 13 videos, 3 of each of 2 classes\n" in plan(videos_per_class=3)
    # No file is opened for it, so that there is no progress to show.
    run(recipe(videos, tiny_base, tmp_path / "out", budget={"videos_per_class": 3}), dry_run=True)
    assert not capsys.readouterr().err
    text = plan(hours=5 / 3600)
    assert "h of the 0.001389 h asked for" in text and "videos of 2 classes from" in text
    assert "13 of 13 videos" in plan(hours=1) and "the length of 1 cannot be read" in plan(hours=1)


def test_a_resumed_run_takes_what_it_took(videos: Path, tiny_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one = recipe(videos, tiny_base, out, budget={"hours": 4.5 / 3600})
    listing, digest = _list_or_resume(one)
    report = report_of(listing)
    assert report is not None and report["is_full"] and report["taken"] - report["unknown_lengths"] == 5
    assert report["hours"] == pytest.approx(5 / 3600, abs=1e-4)
    store_listing(out, listing, digest)
    # All videos unchanged: no header is opened again; another budget is another run's.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.annotate.job.take_budget", lambda *_: pytest.fail("opened again"))
        assert _list_or_resume(one)[0].equals(listing, check_metadata=False)
        with pytest.raises(pytest.fail.Exception):
            _list_or_resume(recipe(videos, tiny_base, out, budget={"hours": 1.0}))
    # A folder that grew meanwhile does not change what was taken.
    extra = videos / "wave" / "99.mp4"
    try:
        extra.write_bytes(b"x")
        again, same = _list_or_resume(one)
        assert same == digest and again.column("key").equals(listing.column("key"))
    finally:
        extra.unlink()


def test_remote_headers_are_not_read_segments_have_lengths(tiny_base: Path, tmp_path: Path) -> None:
    rows = ["https://host.invalid/0.mp4,a,,", "https://host.invalid/1.mp4,a,2,5"]
    listed = tmp_path / "list.csv"
    listed.write_text("\n".join(["uri,class_label,start_s,end_s", *rows]))
    one = recipe(listed, tiny_base, tmp_path / "out", budget={"hours": 1.0})
    with contextlib.chdir(tmp_path), pytest.raises(InputError, match=r"budget.hours = 1 needs the length of 'https:"):
        _list_or_resume(one)
    listed.write_text("\n".join(["uri,class_label,start_s,end_s", rows[1]]))
    report = report_of(_list_or_resume(one)[0])
    assert report is not None and report["hours"] == round(3 / 3600, 4)


def test_lengths_without_decoding(videos: Path, tmp_path: Path) -> None:
    assert read_length_s(videos / "wave" / "0.mp4") == pytest.approx(1.0, abs=0.05)
    # A live WebM knows no duration: its packets do.
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", format="webm", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.width = stream.height = 32
        for _ in range(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        assert not container.duration and not container.streams.video[0].duration
    assert read_length_s(path) == pytest.approx(1.2, abs=0.11)
    with pytest.raises(VideoError):
        read_length_s(videos / "jump" / "broken.mp4")
