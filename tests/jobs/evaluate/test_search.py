"""Candidates of an evaluation: chosen as the library chooses, sampled speculatively and guided, replayed adaptively."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import evaluate
from tests.helpers.code_calls import verify
from tests.helpers.evaluate_data import ITEMS, recipe_of
from wm.dynamics import Sampling, sample_observations
from wm.evaluation.heldout import read_held_out
from wm.evaluation.units import Unit, build_bank, load_part
from wm.models import load_codec, load_model


def test_the_banks_choice_is_that_of_verify(tiny_base, triplets, tmp_path):
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", greedy=False, probe=False))
    _, arrays = load_part(Unit("ft-0", "sample", 1).file(tmp_path / "out/parts"))
    bank = build_bank(arrays)
    model, held_out = load_model(tiny_base), read_held_out(triplets, load_codec(tiny_base))
    for item in range(ITEMS):
        ranked = verify(model, held_out.source_codes[item], held_out.actions[item], torch.from_numpy(bank.codes[item]))
        assert int(bank.verifier[item].argmax()) == ranked[0].index


def parts_of(recipe):
    evaluate.run(recipe)
    return build_bank(load_part(Unit("ft-0", "sample", 1).file(Path(recipe.out) / "parts"))[1])


def test_speculative_sampling_gives_the_same_candidates(tiny_base, triplets, tmp_path):
    quick = {"greedy": False, "probe": False, "examples": 0}
    plain = parts_of(recipe_of(tiny_base, triplets, tmp_path / "plain", **quick))
    drafted = parts_of(recipe_of(tiny_base, triplets, tmp_path / "drafted", search={"num_draft_tokens": 2}, **quick))
    assert np.array_equal(plain.codes, drafted.codes)
    assert drafted.verifier == pytest.approx(plain.verifier, abs=1e-4)
    sampling = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    guided = parts_of(recipe_of(tiny_base, triplets, tmp_path / "guided", sampling=sampling, **quick))
    held_out = read_held_out(triplets, load_codec(tiny_base))
    expected = sample_observations(
        load_model(tiny_base), held_out.source_codes, held_out.actions,
        num_candidates=4, seed=held_out.sampling_seeds(1), sampling=Sampling(**sampling),
    )  # fmt: skip
    assert np.array_equal(guided.codes, expected.numpy())
    assert not np.array_equal(guided.codes, plain.codes)


def test_adaptive_n_is_replayed_and_the_guard_chooses(tiny_base, triplets, tmp_path, capsys):
    more = {"search": {"min_gains_nats": [0.5, 9.0], "max_unchanged": 0.1}, "greedy": False, "probe": False}
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {(row["label"], row["margin"]): row for row in tables["adaptive"] if row["margin"] is not None}
    assert set(rows) == {(label, margin) for label in ("C-FT", "C-ZS") for margin in (0.5, 9.0)}
    bank = build_bank(load_part(Unit("ft-0", "sample", 1).file(tmp_path / "out/parts"))[1])
    model, held_out = load_model(tiny_base), read_held_out(triplets, load_codec(tiny_base))
    shares = bank.metrics["unchanged_tokens"]
    assert (shares > 0.1).any() and (shares <= 0.1).any()
    for item in range(ITEMS):
        ranked = verify(model, held_out.source_codes[item], held_out.actions[item], bank.codes[item], max_unchanged=0.1)
        assert bank.action_tokens[item] == ranked[0].score.num_tokens
        guarded = dataclasses.replace(bank, max_unchanged=0.1)
        assert int(guarded.ranking[item].argmax()) == ranked[0].index
    assert "adaptive N, l1" in capsys.readouterr().out
