"""Table 1: text metrics of the scoring where it has them, else of the evaluation."""

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paper_results import judged, write_judging, write_scoring, write_stage
from wm.errors import InputError
from wm.evaluation.paper.measured import Measured
from wm.evaluation.paper.sources import read_sources
from wm.evaluation.paper.tables import TABLES
from wm.evaluation.paper.tables.common import Layout
from wm.runs import write_json


def figure(mean: float, **more: Any) -> dict[str, Any]:
    """A metric as ``scores.json`` has it."""
    row = {"micro_mean": mean, "macro_mean": None, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "by_subset": {}}
    return {**row, "std": None, "num_values": 1, "num_items": 5, **more}


def test_actions_of_scoring_and_evaluation_are_in_one_table(results: dict[str, Path], tmp_path: Path) -> None:
    rows = [
        {"system": "C-IDM", "metrics": {"rouge1": figure(0.5, std=0.02, num_values=3), "bertscore": figure(0.45)}},
        {"system": "VILA-U", "metrics": {"rouge1": figure(0.4, num_items=3)}},
    ]
    rows = [{**row, "choice": "none", "k": 1, "num_items": 5, "num_missing": 0} for row in rows]
    actions = {"rows": rows, "corpus_bleu": {"C-IDM": {"0": 0.1, "1": 0.3}}, "notes": {}}
    scored = write_scoring(tmp_path / "scored", results["bench"], [], actions)
    evaluated = write_stage(tmp_path / "evaluated", "evaluate", {"triplets": str(results["bench"])})
    own = {"mean": 0.6, "std": None, "n": 1, "over": "sampling seeds", "ci_low": 0.5, "ci_high": 0.7, "runs": {}}
    inverse = [{"label": label, "metrics": {"rouge1": own, "bleu": own}} for label in ("C-IDM", "mine")]
    write_json(evaluated / "tables.json", {"items": 5, "fdm": [], "idm": inverse, "probe": []})
    table = TABLES["1"](Layout(Measured(read_sources([str(scored), str(evaluated)]))))
    assert [row.title for row in table.rows] == ["Chameleon IDM", "VILA-U", "mine"]
    idm, vila, mine = (
        dict(zip([column.name for column in table.columns], row.cells, strict=True)) for row in table.rows
    )
    # The scoring's figure, not the evaluation's; BLEU is a mean over the runs' corpora.
    assert (
        idm["R-1"].mean == 0.5
        and idm["R-1"].spread_text() == "± 0.02 (3 training seeds)"
        and idm["BS"].is_best is False
    )
    assert idm["BLEU"].mean == pytest.approx(0.2) and idm["BLEU"].std == pytest.approx(0.1 * 2**0.5)
    assert vila["R-1"].spread_text() == "(n 3 of 5)" and vila["BS"].absent is not None
    assert vila["BS"].absent.command.endswith("bertscore.model=ROBERTA")
    # The best of a column, which is that of a system of one's own.
    assert mine["R-1"].is_best and mine["BLEU"].is_best and not idm["R-1"].is_best


def test_rows_are_named_as_the_results_are_in_the_toy_world(results: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"system": "IDM", "metrics": {"rouge1": figure(0.5)}, "choice": "none", "k": 1, "num_items": 5}]
    actions = {"rows": rows, "corpus_bleu": {}, "notes": {}}
    folders = [write_scoring(tmp_path / name, results["bench"], [], actions) for name in ("first", "second")]
    judging = write_judging(tmp_path / "judge", results["bench"], judged("C-FT", [1] * 5), "nano:oracle")
    evaluated = write_stage(tmp_path / "evaluated", "evaluate", {"triplets": str(results["bench"])})
    inverse = [{"label": "IDM", "metrics": {}}]
    write_json(evaluated / "tables.json", {"items": 5, "fdm": [], "idm": inverse, "probe": []})
    given = [str(evaluated), str(folders[0]), str(judging)]
    table = TABLES["1"](Layout(Measured(read_sources(given, names={"C-IDM": "IDM"}))))
    assert [row.title for row in table.rows] == ["IDM"]
    # Of two scorings of one system's actions none is taken in silence, unless they are equal.
    both = [str(folder) for folder in folders]
    assert TABLES["1"](Layout(Measured(read_sources(both)))).rows[0].cells[1].mean == 0.5
    # As an earlier version wrote it, with the number of values under another name.
    other = [{**rows[0], "metrics": {"rouge1": {**figure(0.4), "num_runs": 1}}}]
    del other[0]["metrics"]["rouge1"]["num_values"]
    write_json(folders[1] / "scores.json", {"rows": [], "actions": {**actions, "rows": other}})
    assert TABLES["1"](Layout(Measured(read_sources(both[1:])))).rows[0].cells[1].mean == 0.4
    with pytest.raises(InputError, match=r"first and .*second both hold a system named 'IDM', .*rouge1 0.5 and 0.4"):
        TABLES["1"](Layout(Measured(read_sources(both))))
