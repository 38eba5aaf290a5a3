"""Figure 4: the lines that are drawn are the means that were measured, and these are those of plain loops."""

from types import SimpleNamespace

import numpy as np
import pytest

from wm.evaluation.judge.figures import ItemScore
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_png, save_svg
from wm.evaluation.paper.figures.read_verification import read_verification
from wm.evaluation.paper.figures.verification import (
    AVERAGE,
    Curve,
    Level,
    Panel,
    Point,
    Verification,
    build_verification,
    verification_csv,
)
from wm.evaluation.paper.sources import Source, Sources

SUBSETS = {"a": "kubric", "b": "kubric", "c": "ag"}
JUDGE = Source("J", "judge", {"recipe": {"model": "gpt-4o"}})


def sources_of(folders=(JUDGE,), subsets=None, **cached):
    """Results whose files are read already."""
    sources = Sources(folders, {"SE": "smart-edit"})
    defaults = {"judgements": [], "values": [], "tables": [], "predictions": [], "is_toy": False}
    subsets = SUBSETS if subsets is None else subsets
    order = sorted(set(subsets.values()))
    sources.__dict__.update(defaults | {"subsets": subsets, "subset_order": order} | cached)
    return sources


def line_of(axes, label):
    (line,) = [line for line in axes.get_lines() if line.get_label() == label]
    return line


def test_lines_bands_and_levels_are_the_data():
    points = (Point(1, 2.0, 0.5), Point(2, 3.0, 0.25), Point(8, 4.0, 0.125))
    panel = Panel(
        "AG",
        (
            Curve("C-FT", "verifier", points),
            Curve("C-FT", "adaptive", (Point(2.5, 3.5),)),
            Curve("C-FDM", "verifier", (Point(1, 1.0), Point(8, 2.0))),
            Curve("C-FDM", "oracle", (Point(1, 1.0, 0.1), Point(8, 5.0, 0.1))),
        ),
        (Level("GoT", 3.25),),
        50,
        "GoT: 48 of 50",
    )
    data = Verification((panel, Panel(AVERAGE, panel.curves[:1])), "score by gpt-4o", is_toy=True)
    figure = build_verification(data)
    axes = figure.axes[0]
    line = line_of(axes, "C-FT")
    assert list(line.get_xdata()) == [1, 2, 8] and list(line.get_ydata()) == [2.0, 3.0, 4.0]
    # One band: a line without a spread has none, nor has the oracle's.
    (band,) = axes.collections
    edges = {tuple(vertex) for vertex in band.get_paths()[0].vertices}
    assert {(1.0, 1.5), (1.0, 2.5), (2.0, 2.75), (2.0, 3.25), (8.0, 3.875), (8.0, 4.125)} <= edges
    assert list(line_of(axes, "GoT").get_ydata()) == [3.25, 3.25]
    assert list(line_of(axes, "C-FDM, oracle").get_ydata()) == [1.0, 5.0]
    assert list(line_of(axes, "C-FT, adaptive N").get_xdata()) == [2.5]
    assert list(axes.get_xticks()) == [1, 2, 8] and axes.get_title() == "AG  (n 50)"
    assert "GoT: 48 of 50" in [text.get_text() for text in axes.texts]
    title = figure.get_suptitle()
    assert title == "Verification: score by gpt-4o; bands: standard deviation over seeds (toy world)"
    # The same colour in every panel.
    assert line_of(figure.axes[1], "C-FT").get_color() == line.get_color()
    again = build_verification(data)
    assert save_svg(figure) == save_svg(again) and save_png(figure) == save_png(again)
    assert verification_csv(data).splitlines()[1:4] == [
        "AG,C-FT,verifier,1,2.0,0.5",
        "AG,C-FT,verifier,2,3.0,0.25",
        "AG,C-FT,verifier,8,4.0,0.125",
    ]


def judged(system, run, num_candidates, finals):
    return [
        ItemScore(
            triplet_id, SUBSETS[triplet_id], system, run, 0, num_candidates, 0, final,
            *((None, "refusal") if final is None else (10.0, None)),
        )
        for triplet_id, final in zip(SUBSETS, finals, strict=True)
    ]  # fmt: skip


def test_judgements_become_panels():
    scores = [
        *judged("C-FT", 0, 1, [1.0, 2.0, 6.0]),
        *judged("C-FT", 1, 1, [3.0, 4.0, 6.0]),
        *judged("C-FT", 0, 4, [5.0, 5.0, 7.0]),
        *judged("C-FT", 1, 4, [5.0, 5.0, 8.0]),
        *judged("smart-edit", 0, 1, [2.0, None, 4.0]),
        *judged("Copy", 0, 1, [0.0, 0.0, 0.0]),
    ]
    data = read_verification(sources_of(judgements=scores))
    assert [panel.title for panel in data.panels] == ["AG", "Kubric", "Avg."] and data.metric == "score by gpt-4o"
    ag, kubric, average = data.panels
    # Two training seeds of each, which is what the bands are over.
    assert (data.over, data.bound) == ("training seeds", "oracle")
    (curve,) = kubric.curves
    assert curve.label == "C-FT" and [(point.k, point.mean) for point in curve.points] == [(1, 2.5), (4, 5.0)]
    assert curve.points[0].std == pytest.approx(np.std([1.5, 3.5], ddof=1)) and curve.points[1].std == 0
    assert [point.mean for point in average.curves[0].points] == [4.25, 6.25]
    assert average.curves[0].points[0].std == pytest.approx(np.std([3.75, 4.75], ddof=1))
    # By the paper's name; over what was judged, which is said.
    assert kubric.levels == (Level("SE", 2.0),) and kubric.note == "SE: 1 of 2" and ag.note == ""
    assert ag.num_items == 1 and kubric.num_items == 2 and average.num_items is None
    assert build_verification(data).axes[0].get_title() == "AG  (n 1)"


def value_row(system, triplet_id, l1, run=0, chosen_at=None):
    decoding = "unknown" if chosen_at is None else "sampled"
    return {
        "triplet_id": triplet_id, "system": system, "run": run, "sampling_seed": 0, "decoding": decoding,
        "candidates": [0], "chosen_at": chosen_at or [], "l1": l1,
    }  # fmt: skip


def test_distances_stand_in_for_a_judge():
    rows = [
        # Two candidates: both count at K = 1, the verifier's choice at K = 2.
        *(value_row("C-FT", key, 0.25, chosen_at=[1, 2]) for key in SUBSETS),
        *(value_row("C-FT", key, 0.75, chosen_at=[1]) for key in SUBSETS),
        *(value_row("GoT", key, 0.5) for key in "ac"),
    ]
    data = read_verification(sources_of((), values=rows))
    assert data.lower_is_better and data.metric == "L1 to the target" and data.bound == "closest to the target"
    for panel in data.panels:
        assert [(point.k, point.mean, point.std) for point in panel.curves[0].points] == [
            (1, 0.5, None),
            (2, 0.25, None),
        ]
        assert panel.levels == (Level("GoT", 0.5),)
    assert [panel.note for panel in data.panels] == ["", "GoT: 1 of 2", "GoT: 2 of 3"]


def figure_of(mean, std):
    return {"mean": mean, "std": std}


def test_an_evaluations_own_judge_comes_next():
    rows = [
        {"label": "FT", "choice": choice, "k": k, "metrics": {"final": figure_of(k / 8, 0.1)}, "by_subset": {}}
        for choice, k in (("idm", 1), ("idm", 4), ("oracle", 4))
    ]
    adaptive = [
        {"label": "FT", "margin": 0.2, "metrics": {"final": figure_of(0.4, None), "draws": figure_of(2.5, None)}}
    ]
    tables = {"judge": "oracle", "subsets": ["tabletop"], "fdm": rows, "adaptive": adaptive}
    subsets = {"t": "tabletop"}
    data = read_verification(sources_of((), subsets, tables=[(SimpleNamespace(), tables)], is_toy=True))
    (panel,) = data.panels
    assert data.is_toy and panel.title == "tabletop"
    assert {curve.choice: [(point.k, point.mean) for point in curve.points] for curve in panel.curves} == {
        "verifier": [(1, 0.125), (4, 0.5)],
        "oracle": [(1, 0.125), (4, 0.5)],
        "adaptive": [(2.5, 0.4)],
    }
    # A bench of several subsets, as of today's evaluations.
    for row in rows:
        row |= {"by_subset": {"x": {"final": 0.1}, "y": {"final": 0.3}}, "by_subset_std": {"x": {"final": 0.01}}}
        row |= {"macro": {"final": 0.2}, "macro_std": {"final": 0.02}}
    tables["subsets"], tables["adaptive"] = ["x", "y"], []
    data = read_verification(sources_of((), {"t": "x", "u": "y"}, tables=[(SimpleNamespace(), tables)]))
    points = [panel.curves[0].points[0] for panel in data.panels]
    assert points == [Point(1, 0.1, 0.01), Point(1, 0.3), Point(1, 0.2, 0.02)]


def test_the_toy_judge_has_adaptive_n_beside_it():
    scores = [*judged("FT", 0, 1, [1.0] * 3), *judged("FT", 0, 4, [2.0] * 3)]
    row = {"label": "FT", "margin": 0.2, "metrics": {"final": figure_of(0.4, None), "draws": figure_of(2.5, None)}}
    row |= {"by_subset": {"ag": {"final": 1.5, "draws": 3.0}}, "macro": {"final": 1.75, "draws": 2.25}}
    tables = {"judge": "oracle", "subsets": ["ag", "kubric"], "fdm": [], "adaptive": [row]}
    for model, expected in (("nano:oracle", [(3.0, 1.5)]), ("gpt-4o", [])):
        judge = Source("J", "judge", {"recipe": {"model": model}})
        data = read_verification(sources_of((judge,), judgements=scores, tables=[(SimpleNamespace(), tables)]))
        curves = [curve for curve in data.panels[0].curves if curve.choice == "adaptive"]
        assert [(point.k, point.mean) for curve in curves for point in curve.points] == expected


def test_without_several_k_it_is_absent():
    scores = judged("C-FT", 0, 1, [1.0, 2.0, 6.0])
    absent = read_verification(sources_of(judgements=scores))
    assert isinstance(absent, Absent) and "num_candidates='[1, 2, 4, 8]'" in absent.command
    assert isinstance(read_verification(sources_of(())), Absent)
