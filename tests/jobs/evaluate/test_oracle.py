"""The tabletop's judge in an evaluation: exact where it can read, refused or absent where it cannot."""

import json

import numpy as np
import pytest

from jobs import evaluate
from jobs.evaluate import EvaluateRecipe
from tests.helpers.evaluate_data import write_triplets
from wm.errors import InputError
from wm.evaluation.units import load_part


@pytest.fixture(scope="module")
def nano_base(tmp_path_factory):
    from wm.nano.preset import NanoPreset, write_random_base
    from wm.nano.world.actions import vocabulary

    base = tmp_path_factory.mktemp("nano") / "base"
    preset = NanoPreset(hidden_size=32, num_layers=1, num_heads=2, mlp_size=32)
    write_random_base(base, seed=0, words=vocabulary(), preset=preset)
    return base


def judge_tabletop(base, out, *, pixels_of=None, actions=None):
    from wm.nano.world.triplets import sample_triplet

    rng = np.random.default_rng(5)
    samples = [sample_triplet(rng) for _ in range(4)]
    pixels_of = pixels_of or (lambda i: (samples[i][0], samples[i][2]))
    folder = write_triplets(out / "set", pixels_of, actions or [sample[1] for sample in samples])
    recipe = {
        "triplets": str(folder),
        "out": str(out / "out"),
        "base": str(base),
        "judge": "oracle",
        "search": {"num_candidates": [1, 2]},
    }
    evaluate.run(EvaluateRecipe.parse(recipe, "test"))
    return json.loads((out / "out/tables.json").read_text())


def test_oracle_judges_the_tabletop(nano_base, tmp_path):
    tables = judge_tabletop(nano_base, tmp_path)
    copy = next(row for row in tables["fdm"] if row["label"] == "Copy")["metrics"]
    assert (copy["final"]["mean"], copy["copied"]["mean"], copy["right"]["mean"]) == (0.0, 1.0, 0.0)
    assert copy["minimal_editing"]["mean"] == 10.0
    assert tables["idm"][0]["metrics"]["state_equivalent"]["mean"] == 0.0
    # The opposite of each action follows from the state: no model is asked for it.
    rows = {row["negative"]: row for row in tables["probe"] if row["role"] == "fdm"}
    assert rows["counterfactual_action"]["pairs"] == rows["random_observation"]["pairs"] == 4
    # A random codec sees no change in two of the triplets: their copy is the truth.
    assert rows["copy"]["pairs"] == rows["inverse"]["pairs"] == 2
    part = load_part(tmp_path / "out/parts/zero-shot-fdm.probe.0.npz")[1]
    wins = np.where(part["reference"] > part["negative.counterfactual_action"], 1.0, 0.0)
    assert rows["counterfactual_action"]["metrics"]["share"]["mean"] == wins.mean()


def test_oracle_refuses_images_of_another_world(nano_base, tmp_path):
    """Cells that show nothing known equal each other: noise would be right, 10 of 10."""

    def noise(index):
        return tuple(np.random.default_rng(index).integers(0, 256, (2, 48, 48, 3), dtype=np.uint8))

    with pytest.raises(InputError, match="judge = 'oracle' reads images of the tabletop world; 4 of 4 held-out"):
        judge_tabletop(nano_base, tmp_path, pixels_of=noise)
    assert not (tmp_path / "out").exists()


def test_right_is_absent_where_no_reference_can_be_read(nano_base, tmp_path, capsys):
    """Not 0: the judge knows no such words, so that no answer would be right."""
    (row,) = judge_tabletop(nano_base, tmp_path, actions=["red circle", "blue", "left square", "green"])["idm"]
    assert "state_equivalent" not in row["metrics"]
    assert row["absent"]["state_equivalent"] == "the judge reads none of the reference actions"
    assert "state_equivalent: absent: the judge reads none" in capsys.readouterr().out
