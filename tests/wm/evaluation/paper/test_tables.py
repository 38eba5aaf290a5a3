"""The paper's tables of results made by hand: every figure is computed here again, from the numbers themselves."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.helpers.paper_results import IDS, judged, scored, write_judging, write_scoring, write_stage
from wm.evaluation.metrics.stats import stratified_interval
from wm.evaluation.paper.cells import Cell, Table
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.paper.tables.common import Layout
from wm.evaluation.paper.tables.motion import flow_magnitude, measure_motion

MB, ST, KU = "magicbrush", "something", "kubric"


def cell(table: Table, row: str, column: str, group: str = "") -> Cell:
    """The cell at a place of a table."""
    columns = [entry.name for entry in table.columns]
    [entry] = [entry for entry in table.rows if entry.title == row and entry.group == group]
    return entry.cells[columns.index(column)]


def as_aurora(layout: Layout) -> Layout:
    """The same results as of a bench with the paper's five subsets, so that published numbers are shown."""
    rows = [
        dataclasses.replace(row, class_label=name)
        for row, name in zip(layout.sources.rows, [MB, "ag", ST, "whatsup", KU], strict=True)
    ]
    return Layout(Measured(dataclasses.replace(layout.sources, rows=tuple(rows))), layout.version)


def test_judge_table_has_means_by_subset_and_the_macro_average(layout: Layout) -> None:
    table = TABLES["2"](layout)
    # Nothing of the paper's is shown beside another bench, so that its systems without results are gone.
    assert [column.name for column in table.columns] == ["C-FT", "C-FDM", "Copy", "mine"]
    assert [row.title for row in table.rows] == ["MagicBrush", "Something", "Kubric", "Avg."] and table.source == ""
    mine = cell(table, "MagicBrush", "C-FDM")
    # Items 2, 3, 4 and 4: means 3 and 4; runs 3, 3.5, 4.
    assert mine.mean == pytest.approx(3.5) and mine.std == pytest.approx(0.5) and mine.num_values == 3
    assert (mine.n, mine.expected) == (6, 6) and mine.is_best is False and mine.ci_low is not None
    average = cell(table, "Avg.", "C-FDM")
    assert average.mean == pytest.approx((3.5 + 4 + 6) / 3) and average.is_best
    # Half of the judgements failed: the mean says of how many it is.
    partial = cell(table, "MagicBrush", "mine")
    assert partial.mean == 9 and partial.spread_text() == "(n 1 of 2)" and partial.is_best
    assert cell(table, "Avg.", "Copy").mean == 0 and not cell(table, "Avg.", "Copy").is_best


def test_v1_has_the_best_of_three_samples_as_an_oracle(layout: Layout) -> None:
    table = TABLES["2"](dataclasses.replace(layout, version="v1"))
    kinds = {column.name: column.kind for column in table.columns}
    assert kinds["C-FT +Best-of-3"] == "oracle" and kinds["Copy"] == "reference"
    best = cell(table, "Kubric", "C-FT +Best-of-3")
    assert best.mean == 6 and cell(table, "Kubric", "C-FT").mean == 5 and best.n == 1
    assert cell(table, "MagicBrush", "C-FDM +Best-of-3").mean == 4 and not best.is_best


def test_best_of_three_needs_three_judged_samples(results: dict[str, Path], tmp_path: Path) -> None:
    rows = [row for seed in range(2) for row in judged("C-FT", [1, 1, 1, 1, 1], seed=seed)]
    folder = write_judging(tmp_path / "two", results["bench"], rows)
    layout = Layout(Measured(read_sources([str(folder)])), version="v1")
    assert layout.measured.best_judge_cell("C-FT", MB) is None
    # Three runs of one seed will do as well; a failure of one leaves the item out.
    rows = [row for run in range(3) for row in judged("C-FT", [run, 2 - run, None if run else 1, 1, 1], run=run)]
    folder = write_judging(tmp_path / "three", results["bench"], rows)
    measured = Measured(read_sources([str(folder)]))
    assert measured.best_judge_cell("C-FT", MB).mean == 2  # type: ignore[union-attr]
    something = measured.best_judge_cell("C-FT", ST)
    assert something is not None and (something.mean, something.n, something.expected) == (1, 1, 2)
    # Three runs of two seeds each are three samples, not six: the first seed's.
    rows = [
        row for run in range(3) for seed in range(2) for row in judged("C-FT", [run + 4 * seed] * 5, run=run, seed=seed)
    ]
    folder = write_judging(tmp_path / "six", results["bench"], rows)
    best = Measured(read_sources([str(folder)])).best_judge_cell("C-FT", MB)
    assert best is not None and (best.mean, best.num_values, best.n) == (2, 1, 2)


def test_ablations_are_paired_differences(layout: Layout) -> None:
    table = TABLES["4"](layout)
    difference = cell(table, "MB", "Δ w/o LW")
    # Items: 2 - 3 and 3 - 4, in every run alike.
    assert difference.mean == pytest.approx(-1) and difference.std == 0 and difference.num_values == 3
    assert difference.text() == "-1.00" and (difference.n, difference.expected) == (2, 2)
    assert cell(table, "KU", "Δ w/o LW").text() == "+1.00" and cell(table, "KU", "Δ w/o LW").ci_low is None
    assert cell(table, "All", "Δ w/o LW").mean == pytest.approx((-1 - 0.5 + 1) / 3)
    empty = cell(table, "MB", "Δ w/o Synth.")
    assert empty.mean is None and empty.absent is not None and "paper/c-fdm-no-synthetic" in empty.absent.command


def test_a_failure_of_one_run_leaves_its_item_out(results: dict[str, Path], tmp_path: Path) -> None:
    rows = judged("C-FDM", [10, 2, 1, 1, 1]) + judged("C-FDM", [10, 2, 1, 1, 1], run=1)
    rows += judged("C-FDM w/o LW", [None, 1, 1, 1, 1]) + judged("C-FDM w/o LW", [9, 1, 1, 1, 1], run=1)
    folder = write_judging(tmp_path / "judge", results["bench"], rows)
    table = TABLES["4"](Layout(Measured(read_sources([str(folder)]))))
    # Run 0: 1 - 2 alone; with the first item of one side it would be 1 - 6.
    difference = cell(table, "MB", "Δ w/o LW")
    assert (difference.mean, difference.std, difference.num_values, difference.n) == (-1, 0, 2, 2)


def test_criteria_table_has_both_losses(layout: Layout) -> None:
    table = TABLES["3"](layout)
    assert cell(table, "MB", "Weighted ME").mean == pytest.approx(3.5)
    assert cell(table, "MB", "Weighted ES").mean == pytest.approx(4.5)
    assert cell(table, "Avg.", "Standard ES").mean == pytest.approx((3.5 + 4.5 + 8) / 3)
    assert cell(table, "GPT-4o (final)", "Weighted ES").mean == pytest.approx(4.5)
    assert cell(table, "GPT-4o (final)", "Weighted ME").is_blank


def test_metrics_of_best_of_three_are_of_the_judge_s_choice(layout: Layout) -> None:
    table = TABLES["6"](layout)
    ours = cell(table, "L1", "C-FT", "Kubric")
    assert ours.mean == pytest.approx(0.11) and ours.std == pytest.approx(0.01) and ours.text() == "0.110"
    # The judge likes the last of the three samples on kubric, and the first of equal ones elsewhere.
    assert cell(table, "L1", "C-FT +Best-of-3", "Kubric").mean == pytest.approx(0.12)
    assert cell(table, "L1", "C-FT +Best-of-3", "MagicBrush").mean == pytest.approx(0.3)
    # The lowest L1 of a model is the best; Copy is none.
    assert ours.is_best and not cell(table, "L1", "Copy", "MagicBrush").is_best
    assert cell(table, "L1", "C-FT", "MagicBrush").is_best
    assert cell(table, "GPT-4o", "C-FDM", "All").mean == pytest.approx(4.5)
    clip = cell(table, "CLIP-T", "C-FT", "MagicBrush").absent
    assert clip is not None and clip.reason == "scored without clip or blip"
    assert clip.command.endswith("clip=CLIP blip=BLIP dino=DINO")
    unscored = cell(table, "L1", "C-FDM", "MagicBrush").absent
    assert unscored is not None and "wm evaluate paper/evaluate-aurora-bench" in unscored.command


def test_published_numbers_stand_beside_the_five_subsets_alone(layout: Layout) -> None:
    table = TABLES["2"](as_aurora(layout))
    assert table.source == "ACL, Table 2" and len(table.columns) == 11
    assert cell(table, "Avg.", "L-FT").published_text() == "4.04" and cell(table, "Avg.", "L-FT").text() == "–"
    assert cell(table, "AG", "C-FDM").published == 3.64 and cell(table, "AG", "C-FDM").is_published_best
    assert cell(table, "AG", "C-FDM").mean == 4 and cell(table, "AG", "mine").absent.reason.startswith(
        "no judgement of mine"
    )
    assert cell(table, "SpatialMQA", "L-FT").published_text() == "28.0" and cell(table, "SpatialMQA", "GoT").is_blank
    assert any("4.01" in note for note in table.notes) and not any("4.01" in note for note in TABLES["2"](layout).notes)
    votes = TABLES["5"](as_aurora(layout))
    assert cell(votes, "MB", "SE").published_text() == "0.29†" and votes.absent is not None
    assert cell(TABLES["7"](as_aurora(layout)), "MIT", "#Samples").published_text() == "19,658"


@pytest.mark.parametrize(
    ("model", "name"), [("gpt-4o", "GPT-4o"), ("gpt-4o-2024-11-20", "GPT-4o"), ("gpt-4o-mini", "Judge"), ("x", "Judge")]
)
def test_only_the_paper_s_judge_is_called_so(results: dict[str, Path], tmp_path: Path, model: str, name: str) -> None:
    folder = write_judging(tmp_path / "judged", results["bench"], judged("C-FT", [1] * 5), model)
    assert TABLES["2"](Layout(Measured(read_sources([str(folder)])))).title.startswith(f"{name} score")


def test_a_subset_without_scored_predictions_asks_for_no_models(results: dict[str, Path], tmp_path: Path) -> None:
    rows = scored("C-FT", [0.1] * 5)[:4] + scored("Copy", [0.1] * 5)
    table = TABLES["6"](Layout(Measured(read_sources([str(write_scoring(tmp_path / "s", results["bench"], rows))]))))
    empty = cell(table, "L1", "C-FT", "Kubric").absent
    assert empty is not None and empty.reason == "no prediction of C-FT on a subset was scored" and not empty.command
    assert cell(table, "L1", "C-FT", "MagicBrush").mean == pytest.approx(0.1)


def test_empty_cells_of_the_toy_world_name_its_own_loop(results: dict[str, Path], tmp_path: Path) -> None:
    folder = write_judging(tmp_path / "nano", results["bench"], judged("C-FDM", [1] * 5), "nano:oracle")
    table = TABLES["4"](Layout(Measured(read_sources([str(folder)]))))
    synthetic, weights = cell(table, "MB", "Δ w/o Synth.").absent, cell(table, "MB", "Δ w/o LW").absent
    # The loop trains no model without synthetic triplets but with weights.
    assert synthetic is not None and synthetic.command == "" and "does not make" in synthetic.reason
    assert weights is not None and weights.command == "wm bootstrap nano/full"


def test_win_rates_of_the_judge_count_no_ties(layout: Layout) -> None:
    table = TABLES["v3-6"](layout)
    # C-FDM is above C-FT on all five items.
    assert cell(table, "C-FDM", "C-FT", "GPT-4o").mean == 1 and cell(table, "C-FT", "C-FDM", "GPT-4o").mean == 0
    assert cell(table, "C-FDM", "C-FDM", "GPT-4o").is_blank
    assert cell(table, "C-FDM", "C-FT", "Human").mean is None and cell(table, "GoT", "C-FT", "GPT-4o").absent


def test_video_table_has_a_row_a_set(tmp_path: Path) -> None:
    columns = {
        "mean_length_s": 7.5, "total_length_h": 1.25, "samples": 1200, "observations_per_video": 3.0,
        "actions_per_video": 2.0, "words_per_action": None,
    }  # fmt: skip
    folders = [
        write_stage(tmp_path / name, "annotate", {"dataset": dataset}, counts={"table7": columns})
        for name, dataset in (("a", "ucf101"), ("b", "kitchen"), ("c", "kitchen"))
    ]
    table = TABLES["7"](Layout(Measured(read_sources([str(folder) for folder in folders]))))
    assert [row.title for row in table.rows] == ["MIT", "UCF-101", "Kinetics700", "kitchen (b)", "kitchen (c)"]
    assert [entry.text() for entry in table.rows[1].cells] == ["7.50", "1.25", "1,200", "3.00", "2.00", "–"]
    assert table.rows[1].cells[0].published == 7.24 and table.rows[3].cells[0].published is None
    mit = table.rows[0].cells[0].absent
    assert mit is not None and mit.command.startswith("wm annotate paper/annotate-moments videos=VIDEOS")
    # What an earlier version did not count is counted from its tables; those of a selection are no annotation's.
    old = [write_stage(tmp_path / stage, stage, {"dataset": "old"}) for stage in ("annotate", "select")]
    sources = read_sources([str(folder) for folder in old])
    table = TABLES["7"](Layout(Measured(sources), count_videos=lambda folder: {"samples": len(folder.name)}))
    assert [row.title for row in table.rows][3:] == ["old"] and cell(table, "old", "#Samples").mean == 8


def test_motion_splits_the_bench_at_its_median(layout: Layout) -> None:
    motion = measure_motion(layout.sources)
    assert list(motion) == IDS
    middle = sorted(motion.values())[2]
    finals = {label: layout.measured.finals_by_item(label) for label in ("C-FT", "C-FDM")}
    high = [key for key in IDS if motion[key] > middle]
    table = TABLES["v3-7"](layout)
    row = "High motion (top 50 %)"
    assert cell(table, row, "C-FT").mean == pytest.approx(np.mean([finals["C-FT"][key] for key in high]))
    difference = np.mean([finals["C-FDM"][key] - finals["C-FT"][key] for key in high])
    assert cell(table, row, "Δ").mean == pytest.approx(difference) and cell(table, row, "Δ").n == 2
    # Two scores of 1 and 4 or so would bound their mean far outside of the scale.
    bounds = [(entry.ci_low, entry.ci_high) for line in table.rows for entry in line.cells[:2]]
    assert all(low is not None and high is not None and 0 <= low <= high <= 10 for low, high in bounds)


def test_flow_magnitude_is_how_far_pixels_move() -> None:
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (128, 300, 3), dtype=np.uint8), (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    source, target = texture[:, 20:276], texture[:, 16:272]
    # By 4 of 256 pixels; the borders know less.
    assert flow_magnitude(source, target) == pytest.approx(4 / 256, rel=0.1)
    assert flow_magnitude(source, source) < 0.05 / 256


def test_stratified_interval_is_that_of_a_mean_of_means() -> None:
    groups = [[1.0, 2.0, 3.0], [2.0, 6.0]]
    low, high = stratified_interval(groups)
    assert low is not None and high is not None and (low + high) / 2 == pytest.approx(3.0)
    # Variances of the means 1/3 and 4; degrees of freedom (13/3)² / (1/18 + 16) = 1.17, cut to 1: 12.706.
    assert high - 3.0 == pytest.approx(12.7062 * np.sqrt(1 / 3 + 4) / 2, rel=1e-4)
    assert stratified_interval([[1.0, 2.0], [1.0]]) == (None, None)
    assert stratified_interval([[1.0, 1.0], [3.0, 3.0]]) == (None, None)
