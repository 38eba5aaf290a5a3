"""The selection job, from annotated triplets to ids."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.select import SelectRecipe, run
from wm.datasets.selection import COLUMNS, SELECTION_SCHEMA, select_top_k
from wm.errors import InputError, OtherRunError
from wm.images import encode_png
from wm.records import TRIPLET_SCHEMA, read_table, triplet_row, write_table

IMAGE = {"bytes": encode_png(np.zeros((2, 2, 3), np.uint8)), "path": None}


def triplets(folder: Path, **changes: Any) -> Path:
    rows = [
        triplet_row(
            triplet_id=f"t{number:02d}",
            dataset="d",
            split="train",
            class_label=["run", "jump", None][number % 3],
            source_image=IMAGE,
            target_image=IMAGE,
            action="x",
            **({"origin": "idm", "action_logprob": -1.0 - number // 6, "action_tokens": 2} | changes),
        )
        for number in range(20)
    ]
    for part in range(2):
        write_table(rows[part::2], folder / f"part-{part}.parquet", TRIPLET_SCHEMA)
    return folder


def recipe(tmp_path: Path, **changes: Any) -> SelectRecipe:
    return SelectRecipe(triplets=str(tmp_path / "triplets"), out=str(tmp_path / "out"), **({"k": 7} | changes))


def test_from_triplets_to_ids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    triplets(tmp_path / "triplets")
    assert run(recipe(tmp_path), dry_run=True) == {} and not (tmp_path / "out").exists()
    assert "would choose" in capsys.readouterr().out
    record = run(recipe(tmp_path))
    chosen = read_table(tmp_path / "out" / "selection", SELECTION_SCHEMA)
    assert chosen.equals(select_top_k(read_table(tmp_path / "triplets", columns=COLUMNS), 7))
    # Six rows share each score: the lower id goes first, and classes take turns in the order of their names.
    assert chosen.column("triplet_id").to_pylist() == ["t02", "t01", "t00", "t05", "t04", "t03", "t08"]
    assert chosen.column("score").to_pylist() == [-0.5] * 6 + [-1.0]
    counts = record["counts"]
    assert (counts["triplets"], counts["chosen"]) == (20, 7)
    assert counts["by_class"]["jump"] == {"triplets": 7, "chosen": 2, "lowest": -0.5, "highest": -0.5}
    assert "7 of 20 triplets" in capsys.readouterr().out
    before = (tmp_path / "out" / "run.json").stat().st_mtime_ns
    assert run(recipe(tmp_path)) == record
    assert (tmp_path / "out" / "run.json").stat().st_mtime_ns == before
    with pytest.raises(OtherRunError, match="recipe k = 7 there, 8 here"):
        run(recipe(tmp_path, k=8))


def test_fewer_rows_than_k_and_a_bound(tmp_path: Path) -> None:
    triplets(tmp_path / "triplets")
    record = run(recipe(tmp_path, k=100, score="sum", min_score=-2.0))
    assert record["counts"]["chosen"] == 12


def test_bad_input_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder: .*triplets"):
        run(recipe(tmp_path))
    triplets(tmp_path / "triplets", origin="human", action_logprob=None, action_tokens=None)
    with pytest.raises(InputError, match="t00 has no action_logprob"):
        run(recipe(tmp_path))
    with pytest.raises(InputError, match="k = 0: "):
        SelectRecipe.load(None, ["triplets=x", "out=y", "k=0"])
    assert not (tmp_path / "out").exists()
