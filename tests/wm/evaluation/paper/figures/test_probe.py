"""Figures 2, 7 and 8: what is drawn is what the evaluation's files hold, and what they lack is said."""

import json
from pathlib import Path

import numpy as np

from wm.evaluation.metrics.stats import pearson
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.drawing import save_png, save_svg
from wm.evaluation.paper.figures.probe import (
    PANELS,
    HeatCell,
    HeatData,
    Scatter,
    ScatterData,
    build_probe_heatmap,
    build_probe_scatter,
    heatmap_csv,
    scatter_csv,
)
from wm.evaluation.paper.figures.read_probe import read_finetuned_scatter, read_heatmap, read_zero_shot_scatter
from wm.evaluation.paper.sources import Source, Sources
from wm.evaluation.probe import NEGATIVES, Likelihoods, Pairs, ProbeScores, compare_all
from wm.evaluation.probe_arrays import to_arrays

ITEMS = 6


def scores_of(seed: int, kinds: tuple[str, ...] = NEGATIVES) -> ProbeScores:
    rng = np.random.default_rng(seed)
    rows = {kind: np.arange(ITEMS if kind != "random_action" else ITEMS - 1) for kind in kinds}
    tokens = np.full(ITEMS, 3.0)
    negatives = {
        kind: Pairs(members, Likelihoods(-rng.uniform(5, 20, len(members)), tokens[members]))
        for kind, members in rows.items()
    }
    return ProbeScores(Likelihoods(-rng.uniform(5, 20, ITEMS), tokens), negatives)


def sources_of(
    folder: Path, scores: dict[tuple[str, str, str], ProbeScores], *, is_toy: bool = False, is_old: bool = False
) -> Sources:
    """An evaluation with a part for each (entry, role, label)."""
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    probe, models = [], {}
    for (name, role, label), one in scores.items():
        preferences = compare_all(one)
        facts = np.array(json.dumps({kind: vars(value) for kind, value in preferences.items()}))
        np.savez(folder / "parts" / f"{name}.probe.4.npz", facts=facts, **({} if is_old else to_arrays(one)))
        for kind, value in preferences.items():
            metrics = {"share": {"mean": value.share}}
            probe.append({"role": role, "label": label, "negative": kind, "pairs": value.pairs, "metrics": metrics})
        if not name.startswith("zero-shot"):
            models[name] = {"role": role, "label": label, "path": "m"}
    tables = {"items": ITEMS, "fdm": [], "idm": [], "probe": probe}
    record = {"recipe": {"base": "b", "zero_shot_label": "C-ZS", "models": models, "seeds": [4, 5]}}
    source = Source(folder, "evaluate", record)
    sources = Sources((source,), {})
    sources.__dict__.update({"tables": [(source, tables)], "is_toy": is_toy})
    return sources


ZERO_SHOT = {("zero-shot-idm", "idm", "C-ZS"): scores_of(1), ("zero-shot-fdm", "fdm", "C-ZS"): scores_of(2)}


def test_panels_hold_every_pair_with_share_and_correlation(tmp_path: Path) -> None:
    data = read_zero_shot_scatter(sources_of(tmp_path, ZERO_SHOT))
    assert isinstance(data, ScatterData) and list(data.rows) == ["Action", "Next observation"]
    figure = build_probe_scatter(data)
    assert len(figure.axes) == 2 * len(PANELS)
    for (role, seed), row in zip((("Action", 1), ("Next observation", 2)), range(2), strict=True):
        scores = scores_of(seed)
        for axes, (kind, name) in zip(figure.axes[row * len(PANELS) :], PANELS.items(), strict=False):
            # 1. Points: x the negative, y the reference, as negative log-likelihoods.
            reference, negative = (-side.sums for side in scores.pairs(kind))
            points = np.concatenate([part.get_offsets() for part in axes.collections if len(part.get_offsets())])
            assert sorted(points.tolist()) == sorted(np.stack([negative, reference], 1).tolist()), (role, kind)
            # 2. The legend: shares of both sides and Pearson's r.
            share, r = 100 * np.mean(reference < negative), np.corrcoef(reference, negative)[0, 1]
            texts = [text.get_text() for text in axes.get_legend().get_texts()]
            assert texts == [f"Ref: {share:.1f} %", f"NEG: {100 - share:.1f} %  Corr: {r:.2f}"]
            # 3. Fewer pairs than the bench say so.
            part = f"\n(n {ITEMS - 1} of {ITEMS})" if kind == "random_action" else ""
            assert axes.get_title() == name + part
            assert axes.get_xlim() == axes.get_ylim()
    assert figure.get_suptitle() == "C-ZS, zero-shot"


def test_absent_panels_and_figures_name_their_command(tmp_path: Path) -> None:
    few = {("inverse", "idm", "IDM"): scores_of(3, ("copy", "inverse"))}
    sources = sources_of(tmp_path / "few", few, is_toy=True)
    data = read_finetuned_scatter(sources)
    assert isinstance(data, ScatterData) and list(data.rows) == ["Action"]
    absent = data.rows["Action"]["counterfactual_action"]
    assert isinstance(absent, Absent) and "wm contradict" in absent.reason
    figure = build_probe_scatter(data)
    assert "toy world" in figure.get_suptitle() and "no triplet has one" in figure.axes[3].texts[0].get_text()
    assert "`" not in figure.axes[3].texts[0].get_text()
    missing = read_zero_shot_scatter(sources)
    assert missing == Absent("no preference probe of C-ZS", "wm evaluate paper/evaluate-aurora-bench")
    # Outside of the toy world nothing else is taken for the paper's model.
    real = read_finetuned_scatter(sources_of(tmp_path / "real", few))
    assert isinstance(real, Absent) and real.command.startswith("wm train paper/c-idm")
    old = read_zero_shot_scatter(sources_of(tmp_path / "old", ZERO_SHOT, is_old=True))
    assert isinstance(old, Absent) and "an earlier version kept shares alone" in old.reason


def test_the_heat_map_has_the_papers_columns_and_ours(tmp_path: Path) -> None:
    scores = ZERO_SHOT | {("q", "idm", "Qwen2-VL-2B"): scores_of(5), ("c", "idm", "C-IDM"): scores_of(6)}
    data = read_heatmap(sources_of(tmp_path, scores))
    assert isinstance(data, HeatData)
    forward, inverse = data.panels.values()
    assert list(forward) == list(inverse) == ["Rand. Act.", "Inv. Obs.", "Copy. Obs.", "Rand. Obs.", "Count. Act."]
    assert [*inverse["Inv. Obs."]][:2] == ["Qwen2-VL-2B", "Qwen2-VL-7B"]
    assert [*inverse["Inv. Obs."]][-3:] == ["Chameleon-7B", "Liquid-8B", "C-IDM"]
    share = 100 * compare_all(scores_of(1))["copy"].share
    assert inverse["Copy. Obs."]["Chameleon-7B"] == HeatCell(share, 42.7, ITEMS, ITEMS)
    assert inverse["Rand. Act."]["Qwen2-VL-2B"].pairs == ITEMS - 1
    assert forward["Rand. Act."]["Qwen2-VL-2B"] == HeatCell(None, 36.7, 0, ITEMS)
    assert inverse["Count. Act."]["Liquid-8B"] == HeatCell(None, None, 0, ITEMS)
    figure = build_probe_heatmap(data)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert f"{share:.1f}" in texts and "42.7" in texts and "–" in texts
    assert any(text.endswith("*") for text in texts)
    drawn = np.ma.filled(figure.axes[1].images[0].get_array(), np.nan)
    expected = [[np.nan if cell.share is None else cell.share for cell in row.values()] for row in inverse.values()]
    np.testing.assert_array_equal(drawn, np.array(expected, dtype=float))
    assert (figure.axes[1].images[0].norm.vmin, figure.axes[1].images[0].norm.vmax) == (0, 100)


def test_wide_heat_maps_are_stacked_and_split() -> None:
    """No wider than 14 columns; every cell is drawn once, under its model's name."""
    rows = {
        kind: {f"m{number}": HeatCell(float(number + shift)) for number in range(17)}
        for kind, shift in (("Rand. Act.", 0), ("Inv. Obs.", 40))
    }
    narrow = {kind: dict(list(cells.items())[:3]) for kind, cells in rows.items()}
    figure = build_probe_heatmap(HeatData({"Forward": rows, "Inverse": narrow}))
    panels = figure.axes[:3]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert titles == ["Forward", "Forward (continued)", "Inverse"]
    names = [[label.get_text() for label in axes.get_xticklabels()] for axes in panels]
    assert names == [[f"m{n}" for n in range(9)], [f"m{n}" for n in range(9, 17)], ["m0", "m1", "m2"]]
    drawn = np.concatenate([axes.images[0].get_array() for axes in panels[:2]], axis=1)
    assert drawn.tolist() == [[n + shift for n in range(17)] for shift in (0, 40)]
    # Below each other, cells of one width, and no wider than a page.
    assert {axes.get_xlim() for axes in panels} == {(-0.5, 8.5)} and figure.get_figwidth() < 11
    beside = build_probe_heatmap(HeatData({"Forward": narrow, "Inverse": narrow}))
    assert [axes.get_title() for axes in beside.axes[:2]] == ["Forward", "Inverse"]


def test_a_toy_world_stands_alone(tmp_path: Path) -> None:
    data = read_heatmap(sources_of(tmp_path, ZERO_SHOT, is_toy=True))
    assert isinstance(data, HeatData)
    cells = [cell for rows in data.panels.values() for row in rows.values() for cell in row.values()]
    assert len(cells) == 2 * 5 and all(cell.published is None for cell in cells)
    assert "toy world" in build_probe_heatmap(data).get_suptitle()
    empty = Sources(())
    empty.__dict__.update({"tables": [], "is_toy": False})
    assert read_heatmap(empty) == Absent("no evaluation with the preference probe", "wm evaluate paper/probe-vlms")


def test_ties_count_half_and_constants_have_no_correlation() -> None:
    pairs = Scatter(np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 2.0, 2.0]), 4)
    assert pairs.share == (1 + 0.5) / 4
    assert pairs.pearson_r is None is pearson(pairs.reference, pairs.negative)
    figure = build_probe_scatter(ScatterData("x", {"Action": {"copy": pairs}}))
    texts = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert texts == ["Ref: 37.5 %", "NEG: 62.5 %  Corr: –"]


def test_bytes_and_csv_depend_on_the_data_alone(tmp_path: Path) -> None:
    sources = sources_of(tmp_path, ZERO_SHOT, is_toy=True)
    data, heat = read_zero_shot_scatter(sources), read_heatmap(sources)
    assert isinstance(data, ScatterData) and isinstance(heat, HeatData)
    lines = scatter_csv(data).splitlines()
    assert lines[0] == "scored,negative,nll_reference,nll_negative"
    assert len(lines) == 1 + 2 * (5 * ITEMS - 1)
    reference, negative = scores_of(1).pairs("inverse")
    assert f"Action,inverse,{float(-reference.sums[0])!r},{float(-negative.sums[0])!r}" in lines
    cells = heatmap_csv(heat).splitlines()
    assert cells[0] == "panel,negative,model,share,published,pairs" and len(cells) == 1 + 2 * 5
    # One row of panels is enough, drawn twice.
    few = ScatterData("x", {"Action": {"copy": data.rows["Action"]["copy"]}})
    assert save_svg(build_probe_scatter(few)) == save_svg(build_probe_scatter(few))
    assert save_svg(build_probe_heatmap(heat)) == save_svg(build_probe_heatmap(heat))
    assert save_png(build_probe_scatter(few)).startswith(b"\x89PNG")
