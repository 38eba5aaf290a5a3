"""The worked examples of CONTRIBUTING.md for data: a data-set layout and a key-frame rule, run as they are there."""

import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jobs.annotate.recipe import AnnotateRecipe
from jobs.ingest.recipe import IngestRecipe
from jobs.ingest.rows import LoadedPair, list_rows, load_row
from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.datasets import layouts
from wm.datasets.layouts.base import Problem, VideoSegment
from wm.datasets.videos.listing import passed_over_of
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.video import KEYFRAME_RULES, keyframes, scan_video
from wm.video.decode import frames
from wm.video.isolation import IsolatedProcess
from wm.video.motion import farneback_motion

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


def blocks(heading: str) -> list[str]:
    """The code under a heading."""
    section = re.split(r"^## ", TEXT.partition(f"## {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def captions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder of two clips and a table of three, with the new layout and its line in place."""
    file, line = blocks("Adding a data-set layout")
    module = ModuleType("wm.datasets.layouts.captions")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(file, "CONTRIBUTING.md", "exec"), module.__dict__)
    table = dict(layouts.LAYOUTS)
    exec(line, {"LAYOUTS": table})
    for name, number in set(table.items()) - set(layouts.LAYOUTS.items()):
        monkeypatch.setitem(layouts.LAYOUTS, name, number)
    write_video(tmp_path / "a" / "door.mp4", [marked_frame(index) for index in range(12)])
    write_video(tmp_path / "spare.mp4", [marked_frame(0)] * 3)
    lines = ["clip,verb,caption", "door,open,the door opens", "gone,close,it closes", "door,open,again", "spare,rest,"]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path


def test_layout_example_lists_videos_for_annotate(captions: Path) -> None:
    AnnotateRecipe(videos="v", idm="i", out="o", dataset_layout="captions")
    listing = list_videos(str(captions), annotations=str(captions / "table.csv"))
    assert list(zip(listing["key"].to_pylist(), listing["class_label"].to_pylist(), strict=True)) == [
        ("a/door.mp4", "open"),
        ("gone.mp4", "close"),
        ("spare.mp4", "rest"),
    ]
    assert passed_over_of(listing)["absent"] == {"count": 1, "examples": ["gone"]}


def test_layout_example_gives_triplets_for_ingest(captions: Path) -> None:
    recipe = IngestRecipe(root=str(captions), file="table.csv", out="o")
    first, gone, repeated, silent = list_rows(recipe)
    assert first == VideoSegment("a/door.mp4", "open", str(captions / "a" / "door.mp4"), "the door opens")
    assert isinstance(repeated, Problem) and repeated.reason == "duplicate"
    assert isinstance(silent, Problem) and silent.reason == "missing_field"
    with IsolatedProcess() as process:
        pair, problem = load_row(recipe, process, first), load_row(recipe, process, gone)
    assert isinstance(pair, LoadedPair) and (read_mark(pair.source), read_mark(pair.target)) == (0, 11)
    assert isinstance(problem, Problem) and problem.reason == "missing_file"


@pytest.fixture
def rule(monkeypatch: pytest.MonkeyPatch) -> Iterator[keyframes.KeyframeRule]:
    """The new rule, with its line in place."""
    code, line = blocks("Adding a key-frame rule")
    names = dict(vars(keyframes))
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    names["KEYFRAME_RULES"] = table = dict(KEYFRAME_RULES)
    exec(line, names)
    [name] = table.keys() - KEYFRAME_RULES.keys()
    monkeypatch.setitem(KEYFRAME_RULES, name, table[name])
    yield table[name]


def test_rule_example_is_asked_by_scan_search_and_planner(rule: keyframes.KeyframeRule, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texture = np.kron(rng.integers(0, 256, (24, 40, 1), np.uint8), np.ones((4, 4, 3), np.uint8))
    steps = np.cumsum(rng.integers(0, 7, 60))
    path = write_video(tmp_path / "clip.mp4", [np.roll(texture, step, axis=1) for step in steps])
    settings = {"rule": rule.name, "max_keyframes": 3, "min_interval_frames": 8}

    def choose(motion: list[float]) -> list[int]:
        windows = [range(start, min(start + 8, len(motion))) for start in range(0, len(motion), 8)]
        maxima = [max(window, key=lambda frame: (motion[frame], -frame)) for window in windows]
        return sorted(sorted(maxima, key=lambda frame: -motion[frame])[:3])

    scan = scan_video(path, **settings)
    assert scan.keyframes == choose(scan.motion.tolist())
    exact = scan_video(path, motion="farneback", **settings)
    greys = [frame.grey() for frame in frames(path)]
    assert exact.keyframes == choose([0.0, *(farneback_motion(*pair) for pair in pairwise(greys))])
    assert exact.measured[exact.keyframes].all() and not exact.measured.all()
    assert rule.expected_keyframes(3.0) == 3.75
    recipe = AnnotateRecipe.parse({"videos": "v", "idm": "i", "out": "o", "keyframes": {"rule": rule.name}}, "test")
    assert recipe.clip_settings().rule == rule.name
    with pytest.raises(InputError, match="top_then_spacing or greedy_spacing or window_maxima"):
        AnnotateRecipe.parse({"videos": "v", "idm": "i", "out": "o", "keyframes": {"rule": "best"}}, "test")
