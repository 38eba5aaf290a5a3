"""Recipes of ``evaluate`` that are refused before any model is loaded."""

import json

import pytest

from jobs import evaluate
from jobs.evaluate import EvaluateRecipe
from tests.helpers.evaluate_data import recipe_of
from tests.helpers.models_roles import write_roles
from wm.errors import InputError


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"idm": "ft-0"}, "verifier 'ft-0' is no IDM of this recipe; those are zero-shot-idm, idm-0"),
        (
            {"search": {"num_candidates": [0, 2]}},
            r"search\.num_candidates = .*expected different whole numbers from 1 up",
        ),
        (
            {"models": {"x": {"path": "/nowhere", "role": "fdm", "label": "X"}}, "idm": ""},
            "no such model folder: /nowhere",
        ),
        ({"models": {}, "base": ""}, "nothing to evaluate"),
        ({"models": {"x": {"path": "m", "role": "fdm", "label": "Copy"}}}, "label.* is what every bench measures"),
        ({"zero_shot_label": "True target through the codec"}, "zero_shot_label.* is what every bench measures"),
        ({"judge": "gpt"}, "judge = 'gpt'"),
    ],
)
def test_a_wrong_recipe_is_refused_in_one_line(tiny_base, triplets, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"search": {"num_draft_tokens": 4}}, r"num_draft_tokens = 4: expected 0 \(off\) to 3, an image has 4 tokens"),
        ({"search": {"min_candidates": 2, "min_gains_nats": []}}, "min_candidates = 2 is a setting of the replay"),
        ({"search": {"min_candidates": 5}}, "min_candidates = 5 is more than the largest of num_candidates, 4"),
        (
            {"search": {"min_gains_nats": [-0.5]}},
            r"search\.min_gains_nats = \[-0.5\]: expected different numbers from 0 up",
        ),
    ],
)
def test_wrong_settings_of_the_search_are_refused(tiny_base, triplets, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **more))
    assert not (tmp_path / "out").exists()


def test_two_entries_of_one_label_need_two_seeds(tiny_base, triplets, tmp_path):
    entry = {"path": str(tiny_base), "role": "fdm", "label": "C-FT"}
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", models={"a": entry, "b": entry}, idm="")
    with pytest.raises(InputError, match=r"models.a and models.b share label 'C-FT' and seed 0"):
        evaluate.run(recipe)


def test_another_codec_is_refused_before_models_are_loaded(tiny_base, triplets, tmp_path):
    from wm.nano.preset import write_random_base

    write_random_base(tmp_path / "other", seed=9)
    models = {"x": {"path": str(tmp_path / "other"), "role": "fdm", "label": "X"}}
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", models=models, idm="")
    with pytest.raises(InputError, match=r"models.x: .* speaks codec .*, the evaluation's codec is "):
        evaluate.run(recipe)
    assert not list((tmp_path / "out").glob("parts/*"))


def test_an_adapter_that_cannot_share_its_base_is_refused(tiny_base, triplets, tmp_path):
    folders = write_roles(tiny_base, tmp_path)
    config = folders / "idm" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"init_lora_weights": "olora"}))
    models = {"inverse": {"path": str(folders / "idm"), "role": "idm", "label": "IDM"}}
    settings = {"base": str(folders / "base"), "models": models, "idm": "", "resources": {"base_sharing": "shared"}}
    with pytest.raises(InputError, match="begun with init_lora_weights = 'olora'"):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **settings))
    assert not list((tmp_path / "out").glob("parts/*"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("k=[1, 2]", "search.num_candidates"),
        ("margins=[0.5]", "search.min_gains_nats"),
        ("block=2", "search.num_draft_tokens"),
        ("weights=shared", "resources.base_sharing"),
        ("num_workers=2", "resources.num_workers"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(old, new):
    with pytest.raises(InputError, match=f"unknown key '{old.partition('=')[0]}': it is called {new} now"):
        EvaluateRecipe.load(None, ["triplets=t", "out=o", old])


def test_a_record_under_old_keys_is_of_the_same_run(tiny_base, triplets, tmp_path, capsys):
    recipe = recipe_of(tiny_base, triplets, tmp_path / "out", probe=False, search={"max_unchanged": 0.5})
    evaluate.run(recipe)
    path = tmp_path / "out/run.json"
    record = json.loads(path.read_text())
    values = record["recipe"]
    search, resources = values.pop("search"), values.pop("resources")
    old = {"num_candidates": "k", "min_gains_nats": "margins", "min_candidates": "at_least"}
    old |= {"num_draft_tokens": "block", "base_sharing": "weights"}
    values |= {old.get(name, name): value for name, value in (search | resources).items()}
    path.write_text(json.dumps(record))
    assert evaluate.run(recipe)["recipe"] == values
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(InputError, match="holds another run"):
        evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", probe=False, search={"max_unchanged": 0.25}))


def test_other_workers_resume_a_run(tiny_base, triplets, tmp_path, capsys):
    settings = {"probe": False, "greedy": False, "examples": 0}
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", **settings))
    evaluate.run(recipe_of(tiny_base, triplets, tmp_path / "out", resources={"num_workers": 2}, **settings))
    assert "nothing to do" in capsys.readouterr().out
