"""wm gate between models that read pixels, and between one that does and one that reads codes."""

from pathlib import Path

import numpy as np
import pytest

from jobs import gate as gate_job
from jobs.gate import GateRecipe
from tests.helpers.pixel_training import write_pixel_triplets
from wm.dynamics.vlm_scorer import load_vlm_scorer
from wm.errors import InputError
from wm.evaluation.gates import Gate
from wm.evaluation.pixel_gates import read_pixel_gate_set
from wm.nano.pixel_preset import write_random_pixel_base


def test_the_likelier_of_two_replaces_the_other(tiny_base: Path, tmp_path: Path) -> None:
    triplets = write_pixel_triplets(tmp_path / "triplets", 4)
    held_out = read_pixel_gate_set(triplets)
    nats = {}
    for name in ("one", "two"):
        write_random_pixel_base(tmp_path / name, seed=len(nats))
        scorer = load_vlm_scorer(tmp_path / name)
        scores = scorer.score_actions(held_out.sources(), held_out.targets(), held_out.actions)
        nats[name] = np.mean([-score.logprob / score.num_tokens for score in scores])
    better, worse = sorted(nats, key=lambda name: nats[name])
    values = {"champion": str(tmp_path / worse), "challenger": str(tmp_path / better), "role": "idm"}
    recipe = GateRecipe(**values, triplets=str(triplets), out=str(tmp_path / "out"))
    record = gate_job.run(recipe)
    assert record["summary"]["promoted"] == "challenger"
    assert record["summary"]["gain"] == pytest.approx(nats[worse] - nats[better], rel=1e-4)
    assert (tmp_path / "out" / "model").resolve() == (tmp_path / better).resolve()
    # Tokens of two vocabularies are no common unit, and such a model makes no images.
    for update, message in (
        (
            {"challenger": str(tiny_base)},
            "champion reads pixels, challenger codes, whose tokens differ",
        ),
        ({"base": str(tiny_base)}, "base = .*, but neither champion nor challenger is an adapter; leave it out"),
        ({"role": "fdm"}, "reads images and makes none: it has no likelihoods as fdm"),
    ):
        wrong = recipe.model_copy(update={**update, "out": str(tmp_path / "wrong")})
        with pytest.raises(InputError, match=message):
            gate_job.run(wrong)
    assert not (tmp_path / "wrong").exists()


def test_nats_of_other_tokens_do_not_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triplets = write_pixel_triplets(tmp_path / "triplets", 4)
    for seed, name in enumerate(("one", "two")):
        write_random_pixel_base(tmp_path / name, seed=seed)
    gates = {
        str(tmp_path / name): Gate(np.ones(4), {}, tokens_B=np.full(4, count))
        for name, count in (("one", 3.0), ("two", 4.0))
    }
    monkeypatch.setattr(gate_job, "_evaluate", lambda recipe, path: gates[path])
    values = {"champion": str(tmp_path / "one"), "challenger": str(tmp_path / "two"), "role": "idm"}
    recipe = GateRecipe(**values, triplets=str(triplets), out=str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"cut the actions into other tokens, .*; choose metric = 'preference'"):
        gate_job.run(recipe)
    assert not (tmp_path / "out" / "model").exists() and not (tmp_path / "out" / "run.json").exists()
