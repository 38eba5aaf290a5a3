import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import evaluate
from jobs.evaluate import EvaluateRecipe
from tests.helpers.models_roles import write_roles
from wm.dynamics import Decoder, Sampling, sample_observations, verify
from wm.errors import InputError
from wm.evaluation import units as units_module
from wm.evaluation.heldout import read_held_out, spread_rows
from wm.evaluation.units import Unit, bank_of, load_part
from wm.images import encode_png
from wm.models import checkpoints, load_codec, load_model
from wm.records import TRIPLET_SCHEMA, triplet_row, write_table

ITEMS = 6


def write_triplets(folder, pixels_of, actions, *, codec=None):
    rows = []
    for index, action in enumerate(actions):
        source, target = pixels_of(index)
        codes = {}
        if codec is not None:
            pair = codec.encode(np.stack([source, target])).tolist()
            codes = {
                "codec": codec.codec_id,
                "source_codes": pair[0],
                "target_codes": pair[1],
                "change": [float(index)] * codec.tokens_per_image,
            }
        rows.append(
            triplet_row(
                triplet_id=f"t{index}",
                dataset="even" if index % 2 == 0 else "odd",
                split="test",
                action=action,
                origin="human",
                source_image={"bytes": encode_png(source)},
                target_image={"bytes": encode_png(target)},
                **codes,
            )
        )
    write_table(rows, folder / "part-0.parquet", TRIPLET_SCHEMA)
    return folder


def noise_pair(index):
    rng = np.random.default_rng(index)
    return tuple(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(2))


ACTIONS = [
    "move the red cup",
    "put the blue block",
    "take the cup",
    "move the green cup",
    "put the red block",
    "take",
]


@pytest.fixture(scope="module")
def triplets(tmp_path_factory):
    return write_triplets(tmp_path_factory.mktemp("held_out"), noise_pair, ACTIONS)


def recipe_of(tiny_base, triplets, out, **more):
    fdm = {"path": str(tiny_base), "role": "fdm", "label": "C-FT"}
    values = {
        "triplets": str(triplets),
        "out": str(out),
        "base": str(tiny_base),
        "models": {
            "idm-0": {"path": str(tiny_base), "role": "idm", "label": "IDM"},
            "ft-0": fdm,
            "ft-1": fdm | {"seed": 1, "idm": "zero-shot-idm"},
        },
        "idm": "idm-0",
        "seeds": [0, 1],
        "num_candidates": [1, 2, 4],
        "examples": 3,
    }
    return EvaluateRecipe.parse(values | more, "test")


def test_end_to_end(tiny_base, triplets, tmp_path, capsys):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    record = evaluate.run(recipe)
    assert record["counts"] == {"triplets": ITEMS, "models": 5, "units": 16, "examples": 3}
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {(row["label"], row["choice"], row["k"]): row for row in tables["fdm"]}
    assert rows["Copy", "none", 1]["metrics"]["unchanged_tokens"]["mean"] == 1.0
    gaps = [np.abs(a.astype(float) - b).mean() / 255 for a, b in map(noise_pair, range(ITEMS))]
    assert rows["Copy", "none", 1]["metrics"]["l1"]["mean"] == pytest.approx(np.mean(gaps))
    assert rows["Copy", "none", 1]["by_subset"]["even"]["l1"] == pytest.approx(np.mean(gaps[::2]))
    for k in (1, 2, 4):
        figure = rows["C-FT", "idm", k]["metrics"]["l1"]
        assert (figure["n"], figure["over"], set(figure["runs"])) == (2, "training seeds", {"0", "1"})
    # both runs are the same weights and the same noise: no spread between them
    assert rows["C-FT", "idm", 1]["metrics"]["l1"]["std"] == 0.0
    assert rows["C-ZS", "idm", 1]["metrics"]["l1"]["over"] == "sampling seeds"
    assert rows["C-FT", "oracle", 4]["metrics"]["l1"]["mean"] <= rows["C-FT", "oracle", 2]["metrics"]["l1"]["mean"]
    assert {row["label"] for row in tables["idm"]} == {"C-ZS", "IDM"}
    assert {(row["role"], row["label"]) for row in tables["probe"]} == {
        ("fdm", "C-FT"),
        ("fdm", "C-ZS"),
        ("idm", "C-ZS"),
        ("idm", "IDM"),
    }
    examples = json.loads((tmp_path / "out/examples.json").read_text())
    assert len(examples) == 3
    for example in examples:
        assert len(example["change"]) == 4
        for shown in example["models"]:
            assert sum(one["times"] for one in shown["candidates"]) == 4
            scores = [one["logprob"] for one in shown["candidates"]]
            assert scores == sorted(scores, reverse=True) and shown["chosen"] == 0
            assert (tmp_path / "out" / shown["candidates"][0]["image"]).is_file()
    out = capsys.readouterr().out
    assert "C-FT, K = 4 (oracle best-of-N)" in out and "preference for the truth" in out
    assert evaluate.run(recipe) == record
    assert "nothing to do" in capsys.readouterr().out


def test_choice_agrees_with_verify(tiny_base, triplets, tmp_path):
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", greedy=False, probe=False))
    _, arrays = load_part(Unit("ft-0", "sample", 1).file(tmp_path / "out/parts"))
    bank = bank_of(arrays)
    model, held_out = load_model(tiny_base), read_held_out(triplets, load_codec(tiny_base))
    for item in range(ITEMS):
        ranked = verify(model, held_out.source_codes[item], held_out.actions[item], torch.from_numpy(bank.codes[item]))
        assert int(bank.verifier[item].argmax()) == ranked[0].index


def test_adapters_over_one_base_give_the_same_tables(tiny_base, triplets, tmp_path, monkeypatch):
    """Fewer loads of the base, the same candidates, and scores up to rounding."""
    folders = write_roles(tiny_base, tmp_path)
    models = {
        "inverse": {"path": str(folders / "idm"), "role": "idm", "label": "IDM"},
        "forward": {"path": str(folders / "fdm"), "role": "fdm", "label": "C-FT"},
        "other": {"path": str(folders / "full"), "role": "idm", "label": "Full"},
    }
    read, decoders = [], []
    load_full, ready = checkpoints._load_full, Decoder.__init__

    def counted_load(folder, *how):
        read.append(folder.name)
        return load_full(folder, *how)

    def counted_init(self, vlm, **how):
        decoders.append(how)
        ready(self, vlm, **how)

    monkeypatch.setattr(checkpoints, "_load_full", counted_load)
    monkeypatch.setattr(Decoder, "__init__", counted_init)
    parts, reads = {}, {}
    for weights in ("merged", "shared"):
        units_module._load.cache_clear()
        units_module._load_base.cache_clear()
        read.clear()
        decoders.clear()
        out = tmp_path / weights
        given = {"base": str(folders / "base"), "models": models, "idm": "inverse", "base_sharing": weights}
        evaluate.run(recipe_of(tiny_base, triplets, out, **given))
        parts[weights] = {file.name: load_part(file) for file in sorted((out / "parts").iterdir())}
        reads[weights] = read.copy()
        assert len(decoders) <= len(read) + 4, "one a model, not one a call"
    assert reads["shared"].count("base") == 1 < reads["merged"].count("base")
    assert reads["shared"].count("full") == 1
    for name, (facts, arrays) in parts["merged"].items():
        others, their_arrays = parts["shared"][name]
        for key, values in arrays.items():
            np.testing.assert_allclose(their_arrays[key], values, atol=2e-4, err_msg=f"{name} {key}")
        assert facts.get("texts") == others.get("texts")


def test_an_adapter_that_cannot_share_its_base_is_refused_at_once(tiny_base, triplets, tmp_path):
    folders = write_roles(tiny_base, tmp_path)
    config = folders / "idm" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "olora"}))
    models = {"inverse": {"path": str(folders / "idm"), "role": "idm", "label": "IDM"}}
    given = {"base": str(folders / "base"), "models": models, "idm": "", "base_sharing": "shared"}
    with pytest.raises(InputError, match="begun with init_lora_weights = 'olora'"):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **given))
    assert not list((tmp_path / "out").glob("parts/*"))


def test_goes_on_where_it_stopped(tiny_base, triplets, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", probe=False)
    done = []

    def stop_after_three(bench, unit, parts):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(unit)
        return units_module.run_unit(bench, unit, parts)

    monkeypatch.setattr(evaluate, "run_unit", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(recipe)
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out/parts").iterdir()}
    assert len(kept) == 3 and not (tmp_path / "out/run.json").exists()
    monkeypatch.undo()
    evaluate.run(recipe)
    for name, time in kept.items():
        assert (tmp_path / "out/parts" / name).stat().st_mtime_ns == time


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
        "num_candidates": [1, 2],
    }
    evaluate.run(EvaluateRecipe.parse(recipe, "test"))
    return json.loads((out / "out/tables.json").read_text())


def test_oracle_judges_the_tabletop(nano_base, tmp_path):
    tables = judge_tabletop(nano_base, tmp_path)
    copy = next(row for row in tables["fdm"] if row["label"] == "Copy")["metrics"]
    assert (copy["final"]["mean"], copy["copied"]["mean"], copy["right"]["mean"]) == (0.0, 1.0, 0.0)
    assert copy["minimal_editing"]["mean"] == 10.0
    assert tables["idm"][0]["metrics"]["state_equivalent"]["mean"] == 0.0


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


def test_parts_of_another_seed_scheme_are_not_mixed_in(tiny_base, triplets, tmp_path, monkeypatch):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out")
    monkeypatch.setattr(evaluate, "run_unit", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate.run(recipe)
    path = tmp_path / "out/run.unfinished.json"
    record = json.loads(path.read_text())
    del record["inputs"]["seeds"]  # as before each row had its own
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"another run, unfinished \(inputs seeds = None there, \"of the run's seed"):
        evaluate.run(recipe)


def test_stored_codes_are_taken_only_from_this_codec(tiny_base, tmp_path):
    codec = load_codec(tiny_base)
    stored = read_held_out(write_triplets(tmp_path / "a", noise_pair, ACTIONS, codec=codec), codec)
    made = read_held_out(write_triplets(tmp_path / "b", noise_pair, ACTIONS), codec)
    assert torch.equal(stored.source_codes, made.source_codes)
    assert stored.change[3].tolist() == [3.0] * 4
    assert made.change[3].tolist() != [3.0] * 4


def test_limit_spreads_over_the_set():
    assert spread_rows(10, 4) == [0, 2, 5, 7]
    assert spread_rows(3, 8) == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"idm": "ft-0"}, "verifier 'ft-0' is no IDM of this recipe; those are zero-shot-idm, idm-0"),
        ({"num_candidates": [0, 2]}, "num_candidates = .*expected different whole numbers from 1 up"),
        (
            {"models": {"x": {"path": "/nowhere", "role": "fdm", "label": "X"}}, "idm": ""},
            "no such model folder: /nowhere",
        ),
        ({"models": {}, "base": ""}, "nothing to evaluate"),
        ({"judge": "gpt"}, "judge = 'gpt'"),
    ],
)
def test_bad_recipes(tiny_base, triplets, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_two_entries_of_one_label_need_two_seeds(tiny_base, triplets, tmp_path):
    one = {"path": str(tiny_base), "role": "fdm", "label": "C-FT"}
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", models={"a": one, "b": one}, idm="")
    with pytest.raises(InputError, match=r"models.a and models.b share label 'C-FT' and seed 0"):
        evaluate.run(recipe)


def test_dry_run_writes_nothing(tiny_base, triplets, tmp_path, capsys):
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out"), dry_run=True)
    assert not (tmp_path / "out").exists()
    assert "would evaluate 5 models on 6 triplets in 16 units" in capsys.readouterr().out


def test_another_codec_is_refused_before_models_are_loaded(tiny_base, triplets, tmp_path):
    from wm.nano.preset import write_random_base

    write_random_base(tmp_path / "other", seed=9)
    models = {"x": {"path": str(tmp_path / "other"), "role": "fdm", "label": "X"}}
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", models=models, idm="")
    with pytest.raises(InputError, match=r"models.x: .* speaks codec .*, the evaluation's codec is "):
        evaluate.run(recipe)
    assert not list((tmp_path / "out").glob("parts/*"))


@pytest.mark.slow
def test_ray_gives_the_same_tables(tiny_base, triplets, tmp_path):
    for workers in (0, 2):
        recipe = recipe_of(tiny_base, triplets, tmp_path / str(workers), num_workers=workers, probe=False, examples=0)
        evaluate.run(recipe)
    (tmp_path / "cut").mkdir()
    for file in tiny_base.iterdir():
        data = file.read_bytes()
        (tmp_path / "cut" / file.name).write_bytes(data[:500] if file.suffix == ".safetensors" else data)
    models = {"x": {"path": str(tmp_path / "cut"), "role": "fdm", "label": "X"}}
    bad = recipe_of(tiny_base, triplets, tmp_path / "bad", num_workers=2, models=models, idm="", zero_shot=False)
    with pytest.raises(InputError) as caught:
        evaluate.run(bad)
    assert "\n" not in str(caught.value) and "cut" in str(caught.value)
    here, there = (json.loads((tmp_path / name / "tables.json").read_text()) for name in ("0", "2"))
    for one, other in zip(here["idm"], there["idm"], strict=True):
        for name, figure in one["metrics"].items():
            assert figure["mean"] == pytest.approx(other["metrics"][name]["mean"], abs=1e-5), name
    for one, other in zip(here["fdm"], there["fdm"], strict=True):
        assert one["metrics"]["l1"]["mean"] == pytest.approx(other["metrics"]["l1"]["mean"], abs=1e-6)


def parts_of(recipe):
    evaluate.run(recipe)
    return bank_of(load_part(Unit("ft-0", "sample", 1).file(Path(recipe.out) / "parts"))[1])


def test_speculative_drawing_gives_the_same_candidates_and_guidance_others(tiny_base, triplets, tmp_path):
    quick = {"greedy": False, "probe": False, "examples": 0}
    plain = parts_of(recipe_of(tiny_base, triplets, tmp_path / "plain", **quick))
    drafted = parts_of(recipe_of(tiny_base, triplets, tmp_path / "drafted", num_draft_tokens=2, **quick))
    assert np.array_equal(plain.codes, drafted.codes)
    assert drafted.verifier == pytest.approx(plain.verifier, abs=1e-4)
    sampling = {"guidance_scale": 3.0, "image_guidance_scale": 1.5}
    guided = parts_of(recipe_of(tiny_base, triplets, tmp_path / "guided", sampling=sampling, **quick))
    held_out = read_held_out(triplets, load_codec(tiny_base))
    expected = sample_observations(
        load_model(tiny_base), held_out.source_codes, held_out.actions,
        num_samples=4, seed=held_out.sampling_seeds(1), sampling=Sampling(**sampling),
    )  # fmt: skip
    assert np.array_equal(guided.codes, expected.numpy())
    assert not np.array_equal(guided.codes, plain.codes)


def test_adaptive_n_is_replayed_and_the_guard_chooses(tiny_base, triplets, tmp_path, capsys):
    more = {"min_gains_nats": [0.5, 9.0], "max_unchanged": 0.1, "greedy": False, "probe": False}
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    tables = json.loads((tmp_path / "out/tables.json").read_text())
    rows = {(row["label"], row["margin"]): row for row in tables["adaptive"] if row["margin"] is not None}
    assert set(rows) == {(label, margin) for label in ("C-FT", "C-ZS") for margin in (0.5, 9.0)}
    bank = bank_of(load_part(Unit("ft-0", "sample", 1).file(tmp_path / "out/parts"))[1])
    model, held_out = load_model(tiny_base), read_held_out(triplets, load_codec(tiny_base))
    shares = bank.metrics["unchanged_tokens"]
    assert (shares > 0.1).any() and (shares <= 0.1).any()
    for item in range(ITEMS):
        ranked = verify(model, held_out.source_codes[item], held_out.actions[item], bank.codes[item], max_unchanged=0.1)
        assert bank.action_tokens[item] == ranked[0].score.num_tokens
        guarded = dataclasses.replace(bank, max_unchanged=0.1)
        assert int(guarded.ranking[item].argmax()) == ranked[0].index
    assert "adaptive N, l1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"num_draft_tokens": 4}, r"num_draft_tokens = 4: expected 0 \(off\) to 3, an image has 4 tokens"),
        ({"min_candidates": 2, "min_gains_nats": []}, "min_candidates = 2 is a setting of the replay"),
        ({"min_candidates": 5}, "min_candidates = 5 is more than the largest of num_candidates, 4"),
        ({"min_gains_nats": [-0.5]}, r"min_gains_nats = \[-0.5\]: expected different numbers from 0 up"),
    ],
)
def test_bad_settings_of_the_search(tiny_base, triplets, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()
