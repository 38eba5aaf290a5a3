"""The benchmark's command line, its record, and its own measures of agreement. Speed is never asserted."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from jobs.benchmark import job as benchmark
from jobs.benchmark.clips import H264, SHAPES, XVID, made_clips, scene
from jobs.benchmark.harness import interleaved, spread
from jobs.benchmark.keyframes import decode, jaccard, naive, spearman
from wm.video.decode import frames

HEADLINES = [
    *("dis_over_naive_xvid", "dis_over_naive_h264", "dis_over_decode_xvid", "dis_over_decode_h264"),
    *("dis_spearman", "exact_over_naive", "exact_jaccard", "exact_capture"),
]


@pytest.mark.slow
def test_a_quick_run_writes_the_record(tmp_path, capsys):
    out = tmp_path / "new" / "keyframes.json"
    assert benchmark.main(["keyframes", f"out={out}", "quick=true"]) == 0
    record = json.loads(out.read_text())
    assert record["benchmark"] == "keyframes"
    assert record["command"].startswith("python -m jobs.benchmark")
    assert record["machine"]["cores"] >= 1 and record["versions"]["av"]
    ratios, rates = record["ratios"], record["rates"]
    assert set(HEADLINES) <= set(ratios) == set(record["spread"])
    assert all(math.isfinite(value) and value >= 0 for value in [*ratios.values(), *rates.values()])
    assert 0.9 <= ratios["dis_spearman"] <= 1  # scenes of plain motion; real ones are harder
    assert 0.8 <= ratios["exact_jaccard"] <= 1
    assert ratios["exact_capture"] >= 0.9
    for headline in ("exact_over_naive", "exact_jaccard"):
        first, last = headline.split("_", 1)
        parts = [name for name in ratios if name.startswith(first) and last in name and name.count("_") > 3]
        assert ratios[headline] <= min(ratios[name] for name in parts if "xvid" not in name and "h264" not in name)
    for name in (
        "dis_frames_per_s",
        "decode_frames_per_s",
        "grey_frames_per_s",
        "exact_frames_per_s",
        "fetch_images_per_s",
    ):
        assert rates[name] > 0
    told = capsys.readouterr().out
    assert "dis_spearman" in told and str(out) in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fast"], "benchmark 'fast'; expected one of annotate, compare, demo, gpu, keyframes"),
        ([], "benchmark ''"),
        (["keyframes", "out=x.txt"], "out = 'x.txt': expected the name of a .json file"),
        (["keyframes", "out=x.json", "videos=/nowhere"], "/nowhere"),
        (["keyframes"], "out is missing"),
    ],
)
def test_bad_input_is_told_in_one_line(arguments, told, capsys):
    assert benchmark.main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_help_names_the_benchmarks_and_their_keys():
    for arguments, word in ((["--help"], "keyframes"), (["keyframes", "--help"], "rounds")):
        done = subprocess.run(
            [sys.executable, "-m", "jobs.benchmark", *arguments], capture_output=True, text=True, check=True
        )
        assert word in done.stdout


def test_spearman_is_pearson_of_ranks_with_ties_shared():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 99]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 2, 4], [1, 3, 2, 4]) == pytest.approx(0.9486832980505138)  # by hand: 4.5 / sqrt(4.5 * 5)
    assert spearman([1, 1], [2, 2]) == 1
    assert spearman([1, 1], [2, 3]) == 0


def test_jaccard_counts_near_frames_once():
    assert jaccard([10, 50], [12, 48]) == 1
    assert jaccard([10, 50], [13, 48]) == pytest.approx(1 / 3)
    assert jaccard([10], [9, 11]) == 0.5
    assert jaccard([], []) == 1


def test_work_takes_turns_and_quick_work_is_repeated():
    done = []
    work = {"a": lambda item: done.append(("a", item)), "b": lambda item: done.append(("b", item))}
    seconds = interleaved(work, [1, 2], 2, {"b": 2})
    assert done == [("b", 1), *([("a", 1), ("b", 1), ("b", 1)] * 2), *([("a", 2), ("b", 2), ("b", 2)] * 2)]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}
    assert spread([1, 2, 3, 4, 5]) == {"min": 1, "q25": 2, "median": 3, "q75": 4, "max": 5, "count": 5}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_made_clips_have_the_shape_and_move_and_rest(tmp_path, shape):
    (clip,) = made_clips(tmp_path, shape, 1, 1.2)
    assert clip.suffix == shape.suffix and decode(clip) == 30
    assert [raw.size_px() for raw in frames(clip)][-1] == (shape.height_px, shape.width_px)
    first, again = (list(scene(5, shape, 4)) for _ in range(2))
    assert np.array_equal(first, again)
    curve = naive(clip)
    assert curve[0] == 0 and np.isfinite(curve).all() and curve[1:].max() > 0.3


def test_shapes_are_the_corpora_s():
    assert (XVID.height_px, XVID.width_px, XVID.num_frames) == (240, 320, 180)
    assert (H264.height_px, H264.width_px) == (256, 340)
