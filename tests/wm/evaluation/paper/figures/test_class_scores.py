"""Figure 9: medians and quantiles are numpy's, for a few classes and for hundreds."""

import numpy as np
import pytest

from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_svg
from wm.evaluation.paper.figures.class_scores import (
    ClassScores,
    VideoSetScores,
    build_class_scores,
    class_scores_csv,
    read_class_scores,
    sort_classes,
)
from wm.evaluation.paper.options import FigureOptions
from wm.evaluation.paper.sources import read_sources
from wm.runs import write_json
from wm.tables import write_table

RNG = np.random.default_rng(1)


def scores_of(count, size):
    return VideoSetScores("UCF-101", {f"class_{number}": -RNG.gamma(2.0, 0.3, size) for number in range(count)})


def test_boxes_are_sorted_medians():
    few = VideoSetScores("few", {"b": np.log([0.5, 0.25, 0.125]), "a_b": np.log([0.75, 0.5]), "none": np.array([])})
    data = ClassScores((few,))
    axes = build_class_scores(data).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a b", "b"]
    medians = [line.get_ydata()[0] for line in axes.get_lines() if line.get_color() == "#D55E00"]
    assert medians == pytest.approx([0.625, 0.25])
    assert axes.get_title(loc="left") == "few: 2 classes, n 5"
    logs = sort_classes(few, log=True)
    assert [name for name, _ in logs] == ["a_b", "b"] and np.median(logs[1][1]) == pytest.approx(np.log(0.25))
    line = class_scores_csv(data).splitlines()[1].split(",")
    assert line[:3] == ["few", "a_b", "2"] and [float(value) for value in line[3:]] == pytest.approx(
        np.quantile([0.75, 0.5], [0.05, 0.25, 0.5, 0.75, 0.95])
    )


def test_hundreds_of_classes_are_bands_without_labels():
    many = scores_of(101, 7)
    data = ClassScores((many, scores_of(40, 3)), log=True, is_toy=True)
    figure = build_class_scores(data)
    first, second = figure.axes
    (median,) = (line for line in first.get_lines() if line.get_label() == "median")
    assert list(median.get_ydata()) == sorted((np.median(values) for values in many.by_class.values()), reverse=True)
    assert len(first.get_xticklabels()) < 20 and first.get_xlabel() == "class, by falling median"
    # The bound itself is still boxes.
    assert len(second.get_xticklabels()) == 40
    assert figure.get_suptitle().endswith("(toy world)") and save_svg(figure) == save_svg(build_class_scores(data))


def write_selection(folder, scores, *, dataset=None, score="mean"):
    rows = [
        {"triplet_id": f"{number}", "class_label": label, "score": value, "rank_in_class": 0, "order": number}
        for number, (label, value) in enumerate(scores)
    ]
    write_table(rows, folder / "selection" / "part-00000.parquet", SELECTION_SCHEMA)
    annotation = folder / "annotation"
    annotation.mkdir()
    write_json(annotation / "run.json", {"stage": "annotate", "recipe": {"dataset": dataset}, "counts": {}})
    recipe = {"triplets": str(annotation / "triplets"), "score": score}
    write_json(folder / "run.json", {"stage": "select", "recipe": recipe, "counts": {}})
    return str(folder)


def test_selections_are_read_by_class_in_the_papers_order(tmp_path):
    own = write_selection(tmp_path / "own", [("", -1.0)])
    ucf = write_selection(tmp_path / "ucf", [("jump", -1.0), ("run", -2.0), ("jump", -3.0)], dataset="ucf101")
    summed = write_selection(tmp_path / "summed", [("jump", -30.0)], score="sum")
    data = read_class_scores(read_sources([own, summed, ucf], options=FigureOptions(log_scores=True)))
    assert [scores.title for scores in data.sets] == ["UCF-101", "own"] and data.log
    assert {name: list(values) for name, values in data.sets[0].by_class.items()} == {"jump": [-1, -3], "run": [-2]}
    absent = read_class_scores(read_sources([summed]))
    assert isinstance(absent, Absent) and absent.reason == "selections by the sum of log-likelihoods only"
    empty = write_selection(tmp_path / "empty", [])
    assert read_class_scores(read_sources([empty])).reason == "no selection chose a triplet"
