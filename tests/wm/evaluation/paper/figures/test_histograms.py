"""Figure 11: bars are numpy's counts, and failures are no scores."""

import numpy as np

from wm.evaluation.judge.figures import ItemScore
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_svg
from wm.evaluation.paper.figures.histograms import (
    JudgedSubset,
    JudgedVariant,
    ScoreHistograms,
    build_histograms,
    histograms_csv,
    read_histograms,
)
from wm.evaluation.paper.sources import Source, Sources

RNG = np.random.default_rng(0)


def subset(name, count, unjudged=0):
    success, minimality = (RNG.integers(0, 21, count) / 2 for _ in range(2))
    return JudgedSubset(name, success, minimality, unjudged)


def heights(axes):
    return [patch.get_height() for patch in axes.patches]


def test_bars_are_counts():
    variants = (
        JudgedVariant("Standard loss: A", (subset("AG", 40, 2), subset("Kubric", 30))),
        JudgedVariant("Weighted loss: B", (subset("AG", 41), subset("Kubric", 0, 3))),
    )
    data = ScoreHistograms(variants, "gpt-4o")
    figure = build_histograms(data)
    edges = np.arange(-0.5, 11)
    for block, variant in zip(figure.subfigs, variants, strict=True):
        success, minimality = block.axes[:3], block.axes[3:]
        for number, scores in enumerate(variant.subsets):
            assert heights(success[number]) == list(np.histogram(scores.editing_success, edges)[0])
            assert heights(minimality[number]) == list(np.histogram(scores.minimal_editing, edges)[0])
        pooled = np.concatenate([scores.editing_success for scores in variant.subsets])
        assert heights(success[2]) == list(np.histogram(pooled, edges)[0])
    titles = [axes.get_title() for axes in figure.subfigs[0].axes[:3]]
    assert titles == ["AG\nn 40, 2 unjudged", "Kubric\nn 30", "total\nn 70, 2 unjudged"]
    assert [text.get_text() for text in figure.subfigs[1].axes[1].texts] == ["no score"]
    assert save_svg(figure) == save_svg(build_histograms(data))
    lines = histograms_csv(data).splitlines()
    assert len(lines) == 1 + 2 * 3 * 2 * 11
    assert lines[1] == f"Standard loss: A,AG,editing_success,0,{(variants[0].subsets[0].editing_success < 0.5).sum()}"


def test_one_subset_has_no_total():
    figure = build_histograms(
        ScoreHistograms((JudgedVariant("B", (subset("tabletop", 8),)),), "nano:oracle", is_toy=True)
    )
    assert len(figure.subfigs[0].axes) == 2 and figure.get_suptitle() == "Scores by nano:oracle (toy world)"


def score(system, triplet_id, success, num_candidates=1):
    failed = None if success is not None else "refusal"
    minimality = None if success is None else 8.0
    return ItemScore(triplet_id, "", system, 0, 0, num_candidates, 0, success, minimality, failed)


def test_both_losses_are_read_by_their_names():
    sources = Sources((Source("J", "judge", {"recipe": {"model": "gpt-4o"}}),), {"C-FDM w/o LW": "plain"})
    scores = [
        *(score("C-FDM", key, value) for key, value in (("a", 1.0), ("b", None), ("c", 9.5))),
        score("C-FDM", "a", 10.0, num_candidates=8),
        score("plain", "a", 3.0),
    ]
    subsets = {"a": "kubric", "b": "kubric", "c": "ag"}
    for number, item in enumerate(scores):
        scores[number] = ItemScore(**{**vars(item), "subset": subsets[item.triplet_id]})
    cached = {"judgements": scores, "subsets": subsets, "subset_order": ["ag", "kubric"], "is_toy": False}
    sources.__dict__.update(cached)
    data = read_histograms(sources)
    assert [variant.title for variant in data.variants] == ["Standard loss: C-FDM w/o LW", "Weighted loss: C-FDM"]
    ag, kubric = data.variants[1].subsets
    assert ag.name == "AG" and list(ag.editing_success) == [9.5] and list(ag.minimal_editing) == [8.0]
    assert list(kubric.editing_success) == [1.0] and kubric.unjudged == 1
    assert data.variants[0].subsets[0].unjudged == 0 and data.judge == "gpt-4o"
    sources.__dict__["judgements"] = []
    absent = read_histograms(sources)
    assert isinstance(absent, Absent) and absent.reason == "no judgement of plain and C-FDM"
