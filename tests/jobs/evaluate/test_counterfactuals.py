"""The probe's fifth negative from a file, and subsets that no negative crosses unless one asks for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import evaluate
from tests.helpers.evaluate_data import ACTIONS, recipe_of
from wm.errors import InputError, OtherRunError
from wm.evaluation.units import load_part


@pytest.fixture(scope="module")
def two_tasks(triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The triplets with two classes, which the column of the data sets does not tell apart."""
    folder = tmp_path_factory.mktemp("two_tasks")
    table = pq.read_table(triplets / "part-0.parquet")
    labels = pa.array(["a"] * 3 + ["b"] * 3)
    pq.write_table(
        table.set_column(table.schema.names.index("class_label"), "class_label", labels), folder / "p.parquet"
    )
    return folder


def probe_recipe(model: Path, triplets: Path, out: Path, **keys: Any) -> evaluate.EvaluateRecipe:
    models = {"idm": {"path": str(model), "role": "idm", "label": "IDM"}}
    return recipe_of(model, triplets, out, models=models, zero_shot=False, idm="", examples=0, **keys)


def test_a_file_of_contradictions_and_the_subsets(
    tiny_base: Path, two_tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"triplet_id": f"t{row}", "action": f"undo {ACTIONS[row]}"} for row in (0, 2, 5)]
    lines.append({"triplet_id": "t3", "action": ACTIONS[3].upper()})
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    settings = {"counterfactuals": str(tmp_path / "c.jsonl")}
    record = evaluate.run(probe_recipe(tiny_base, two_tasks, tmp_path / "out", **settings))
    # 1. Rows without one are left out and counted; of one triplet the codes of source and target are equal.
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {row["negative"]: row for row in tables["probe"]}
    assert (rows["counterfactual_action"]["pairs"], rows["copy"]["pairs"]) == (3, 5)
    printed = capsys.readouterr().out
    assert "3 of 6 triplets have no counterfactual action (1 because theirs reads as the true action)" in printed
    arrays = load_part(tmp_path / "out/parts/idm.probe.0.npz")[1]
    assert arrays["rows.counterfactual_action"].tolist() == [0, 2, 5]
    assert arrays["tokens.counterfactual_action"].shape == arrays["negative.counterfactual_action"].shape == (3,)
    wins = arrays["reference"][[0, 2, 5]] > arrays["negative.counterfactual_action"]
    assert rows["counterfactual_action"]["metrics"]["share"]["mean"] == np.mean(wins)
    # 2. The column that keeps the tasks apart was chosen, and is recorded.
    assert record["recipe"]["subset"] == "class_label" and tables["subsets"] == ["a", "b"]
    # 3. A run under another column is another run: its figures are not taken for these.
    with pytest.raises(OtherRunError, match="subset"):
        evaluate.run(probe_recipe(tiny_base, two_tasks, tmp_path / "out", subset="dataset", **settings))
    # 4. Another file, other figures.
    (tmp_path / "c.jsonl").write_text(json.dumps(lines[0] | {"action": "stay"}))
    with pytest.raises(OtherRunError, match="counterfactuals"):
        evaluate.run(probe_recipe(tiny_base, two_tasks, tmp_path / "out", **settings))


def test_one_class_keeps_the_column_of_before(
    tiny_base: Path, triplets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = probe_recipe(tiny_base, triplets, tmp_path / "out", probe=False)
    record = evaluate.run(recipe.model_copy(update={"subset": "dataset"}))
    assert evaluate.run(recipe) == record
    assert "nothing to do" in capsys.readouterr().out


def test_another_benchs_file_is_refused(tiny_base: Path, triplets: Path, tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text('{"triplet_id": "x", "action": "y"}')
    recipe = probe_recipe(tiny_base, triplets, tmp_path / "out", counterfactuals=str(tmp_path / "c.jsonl"))
    with pytest.raises(InputError, match="none of its 1 counterfactual actions"):
        evaluate.run(recipe)
    assert not (tmp_path / "out").exists()
