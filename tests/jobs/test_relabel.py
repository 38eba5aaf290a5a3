"""Controls: true and shuffled labels of the chosen triplets."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.relabel import RelabelRecipe, run
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.errors import InputError
from wm.images import encode_png
from wm.nano.world.actions import Action, action_between, actions_of, parse_action, random_action
from wm.nano.world.oracle import action_is_right
from wm.nano.world.scenes import Camera, State, random_state, render
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, triplet_row
from wm.tables import read_table, write_table


def _row(number: int, source: State, target: State, action: str) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    images = [{"bytes": encode_png(render(state, Camera(), rng)), "path": None} for state in (source, target)]
    return triplet_row(
        triplet_id=f"t{number:03d}",
        dataset="d",
        split="train",
        source_image=images[0],
        target_image=images[1],
        action=action,
        origin="idm",
        action_logprob=-1.0,
        action_tokens=4,
    )


@pytest.fixture
def annotated(tmp_path: Path) -> Path:
    """Twelve rows labelled wrongly: ten with one action, one still, one with two actions; eleven are chosen."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(12):
        state = random_state(rng)
        after = state if number == 10 else random_action(state, rng, "move").apply(state)
        assert after is not None
        if number == 11:
            later = next(a for a in actions_of(after, "remove")).apply(after)
            assert later is not None
            after = actions_of(later, "add")[0].apply(later) or later
        rows.append(_row(number, state, after, f"remove the red circle {number}"))
    write_table(rows, tmp_path / "triplets" / "part.parquet", TRIPLET_SCHEMA)
    chosen = [
        {"triplet_id": row["triplet_id"], "class_label": "", "score": 0.0, "rank_in_class": i, "order": i}
        for i, row in enumerate(rows)
        if i != 0
    ]
    write_table(chosen, tmp_path / "selection" / "part.parquet", SELECTION_SCHEMA)
    return tmp_path


def _recipe(root: Path, labels: str, seed: int = 0) -> RelabelRecipe:
    values = {"triplets": str(root / "triplets"), "selection": str(root / "selection"), "labels": labels, "seed": seed}
    return RelabelRecipe.parse(values | {"out": str(root / f"{labels}-{seed}")}, "test")


def test_truth_names_the_action_that_happened(annotated: Path) -> None:
    recipe = _recipe(annotated, "truth")
    record = run(recipe)
    rows = read_table(Path(recipe.out) / "triplets").to_pylist()
    from wm.images import decode_image

    assert {row["triplet_id"] for row in rows} == {f"t{number:03d}" for number in range(1, 10)}
    for row in rows:
        images = [decode_image(row[name]["bytes"], name) for name in ("source_image", "target_image")]
        assert action_is_right(images[0], images[1], row["action"])
        assert row["origin"] == "human" and row["action_logprob"] is None and row["action_tokens"] is None
    assert record["counts"] == {"rows": 11, "triplets": 9, "rejects": 2, "same_words": 0}
    rejects = read_table(Path(recipe.out) / "rejects", REJECT_SCHEMA).to_pylist()
    assert {row["uri"] for row in rejects} == {"t010", "t011"}
    assert {(row["outcome"], row["reason"]) for row in rejects} == {("filtered", "no_single_action")}


def test_shuffled_deals_out_the_same_labels(annotated: Path) -> None:
    outs = []
    for seed in (0, 1):
        recipe = _recipe(annotated, "shuffled", seed)
        run(recipe)
        outs.append(read_table(Path(recipe.out) / "triplets").to_pylist())
    given = Counter(f"remove the red circle {number}" for number in range(1, 12))
    assert [Counter(row["action"] for row in rows) for rows in outs] == [given, given]
    assert [row["action"] for row in outs[0]] != [row["action"] for row in outs[1]]


def test_the_annotations_own_folder_is_read_by_its_triplets(annotated: Path) -> None:
    recipe = _recipe(annotated, "shuffled")
    run(recipe)
    # The selection's table is beside the triplets.
    of_folder = recipe.model_copy(update={"triplets": str(annotated), "out": str(annotated / "of-folder")})
    run(of_folder)
    rows = [read_table(Path(each.out) / "triplets").to_pylist() for each in (recipe, of_folder)]
    assert len(rows[0]) == 11 and rows[0] == rows[1]


def test_a_selection_of_other_triplets_is_refused(annotated: Path) -> None:
    alien = [{"triplet_id": "zzz", "class_label": "", "score": 0.0, "rank_in_class": 0, "order": 0}]
    write_table(alien, annotated / "selection" / "part.parquet", SELECTION_SCHEMA)
    with pytest.raises(InputError, match="names 1 triplets"):
        run(_recipe(annotated, "truth"))


def test_action_between_finds_every_single_action() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        state = random_state(rng)
        action = random_action(state, rng)
        after = action.apply(state)
        assert after is not None
        assert action_between(state, after) == action == parse_action(action.text())
    assert action_between(state, state) is None
    assert action_between(State(0, (-1,) + (0,) * 8), State(0, (0,) * 9)) is None
    assert Action("remove", 1).apply(State(0, (0,) * 9)) is None
