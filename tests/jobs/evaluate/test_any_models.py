"""An evaluation in which inverse models read pixels and forward models edit them, beside models of one codec."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import evaluate
from jobs.evaluate import job as evaluate_job
from jobs.evaluate.entries import build_entries, record_kinds
from tests.helpers.evaluate_data import ACTIONS as ALL_ACTIONS
from tests.helpers.evaluate_data import noise_pair, recipe_of, write_triplets
from tests.helpers.models_editors import write_pix2pix
from tests.helpers.models_vlms_new import write_qwen3_vl
from wm.dynamics import CodeInverse, Observation, load_role
from wm.dynamics.editor_forward import load_editor_forward
from wm.dynamics.observation import unchanged_share
from wm.dynamics.pixel_inverse import load_pixel_inverse
from wm.errors import InputError
from wm.evaluation.bench import Entry
from wm.evaluation.heldout import read_held_out
from wm.evaluation.predictions import list_predictions, read_image_bytes
from wm.evaluation.units import Unit, load_bank, load_part
from wm.images import decode_image
from wm.models import load_codec
from wm.sampling import Sampling
from wm.sampling.texts import GREEDY

ACTIONS = ALL_ACTIONS[:3]
ITEMS = len(ACTIONS)
EDITOR = {"settings": {"num_inference_steps": 1}, "resolution": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("any")
    write_qwen3_vl(folder / "qwen")
    write_pix2pix(folder / "editor")
    return folder


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_triplets(tmp_path_factory.mktemp("held_out"), noise_pair, ACTIONS)


def any_recipe(base: Path, folders: Path, triplets: Path, out: Path, **changes: Any) -> evaluate.EvaluateRecipe:
    models = {
        "qwen": {"path": str(folders / "qwen"), "role": "idm", "label": "Qwen"},
        "codes": {"path": str(base), "role": "idm", "label": "IDM"},
        "fdm": {"path": str(base), "role": "fdm", "label": "C-FT"},
        "edit": {"path": str(folders / "editor"), "role": "fdm", "label": "Editor", "editor": EDITOR},
        "edit-codes": {
            "path": str(folders / "editor"),
            "role": "fdm",
            "label": "Editor 2",
            "editor": EDITOR,
            "idm": "codes",
        },
    }
    settings = {"models": models, "idm": "qwen", "base": "", "seeds": [0], "search": {"num_candidates": [1, 2]}}
    return recipe_of(base, triplets, out, **(settings | {"subset": "split", "examples": 2} | changes))


@pytest.fixture(scope="module")
def run(tiny_base: Path, folders: Path, triplets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated") / "out"
    evaluate.run(any_recipe(tiny_base, folders, triplets, out))
    return out


def tables_of(out: Path) -> dict[str, Any]:
    tables: dict[str, Any] = json.loads((out / "tables.json").read_text())
    return tables


def test_every_model_is_asked_what_it_can_answer(run):
    parts = {path.name for path in (run / "parts").iterdir()}
    asked = {"qwen.propose", "qwen.probe", "codes.propose", "codes.probe", "fdm.sample", "fdm.greedy", "fdm.probe"}
    editors = {f"{name}.{ask}" for name in ("edit", "edit-codes") for ask in ("sample", "margin")}
    assert parts == {f"{name}.0.npz" for name in asked | editors}
    tables = tables_of(run)
    assert {row["label"] for row in tables["idm"]} == {"Qwen", "IDM"}
    assert {(row["role"], row["label"]) for row in tables["probe"]} == {
        ("idm", "Qwen"),
        ("idm", "IDM"),
        ("fdm", "C-FT"),
    }
    choices = {(row["label"], row["choice"], row["k"]) for row in tables["fdm"]}
    for label in ("C-FT", "Editor", "Editor 2"):
        assert {(label, "idm", 1), (label, "idm", 2), (label, "oracle", 2)} <= choices
    assert ("Editor", "greedy", 1) not in choices
    assert {row["label"] for row in tables["adaptive"]} == {"C-FT", "Editor", "Editor 2"}


def test_a_model_that_reads_pixels_has_text_figures(run, tiny_base, folders, triplets):
    held_out = read_held_out(triplets, load_codec(tiny_base))
    idm = load_pixel_inverse(folders / "qwen")
    sources, targets = held_out.observe("source", None), held_out.observe("target", None)
    proposed = idm.propose(sources, targets, sampling=GREEDY, seeds=[0] * ITEMS, max_new_tokens=32)
    facts, arrays = load_part(run / "parts/qwen.propose.0.npz")
    assert facts["texts"] == [answer.text for answer in proposed]
    np.testing.assert_allclose(arrays["mean_logprob"], [answer.mean_logprob for answer in proposed], atol=1e-4)


def test_it_verifies_candidates_of_codes_by_their_pixels(run, tiny_base, folders, triplets):
    codec, idm = load_codec(tiny_base), load_pixel_inverse(folders / "qwen")
    held_out = read_held_out(triplets, codec)
    _, arrays = load_part(run / "parts/fdm.sample.0.npz")
    for item, action in enumerate(ACTIONS):
        images = [Observation.from_pixels(image) for image in codec.decode(arrays["codes"][item])]
        source = Observation.from_pixels(held_out.source_pixels[item])
        scores = idm.score([source] * len(images), images, [action] * len(images))
        np.testing.assert_allclose(arrays["verifier"][item], [score.logprob for score in scores], atol=1e-4)
        assert arrays["action_tokens"][item] == scores[0].num_tokens


def test_an_editors_images_are_scored_as_they_are(run, tiny_base, folders, triplets):
    codec = load_codec(tiny_base)
    held_out = read_held_out(triplets, codec)
    sources, seeds = held_out.observe("source", None), held_out.sampling_seeds(0)
    editor = load_editor_forward(folders / "editor", **EDITOR)
    samples = editor.sample(
        sources, ACTIONS, candidates=range(2), sampling=Sampling(), seeds=seeds, batch_size=64
    ).candidates
    idms = {"edit": load_pixel_inverse(folders / "qwen"), "edit-codes": CodeInverse(load_role(tiny_base), codec)}
    for name, idm in idms.items():
        bank = load_bank(run / f"parts/{name}.sample.0.npz")
        assert bank.codes.shape == (ITEMS, 2, 1) and len(bank.images) == len(
            {image for row in samples for image in row}
        )
        for item, of_item in enumerate(samples):
            shown = sources[item] if name == "edit" else held_out.observe("source", codec)[item]
            scores = idm.score([shown] * 2, of_item, [ACTIONS[item]] * 2)
            np.testing.assert_allclose(bank.verifier[item], [score.logprob for score in scores], atol=1e-3)
            for number, image in enumerate(of_item):
                (pixels,) = bank.decode(bank.codes[item, number : number + 1], codec)
                assert Observation.from_pixels(pixels) == image
                gap = np.abs(held_out.target_pixels[item].astype(float) - pixels).mean() / 255
                assert bank.metrics["l1"][item, number] == pytest.approx(gap)
                assert bank.metrics["unchanged_tokens"][item, number] == unchanged_share(sources[item], image)


def test_an_editors_images_are_in_the_prediction_set(run):
    facts = [row for row in list_predictions(run) if row["system"] == "Editor"]
    bank = load_bank(run / "parts/edit.sample.0.npz")
    assert sum(len(row["candidates"]) for row in facts) == 2 * ITEMS
    for row in facts:
        (data,) = read_image_bytes(row["file"], [row["row"]])
        item, candidate = int(row["triplet_id"].removeprefix("t")), row["candidates"][0]
        (pixels,) = bank.decode(bank.codes[item, candidate : candidate + 1], None)
        assert np.array_equal(decode_image(data, "image"), pixels)
        assert row["verifier_logprob"] == pytest.approx(bank.verifier[item, candidate])
    examples = json.loads((run / "examples.json").read_text())
    shown = [model for model in examples[0]["models"] if model["label"] == "Editor"]
    assert sum(candidate["times"] for candidate in shown[0]["candidates"]) == 2


def test_what_folders_are_is_recorded_as_it_always_was(run, tiny_base, folders, triplets):
    recipe = any_recipe(tiny_base, folders, triplets, run)
    reads = {
        name: model["reads"] for name, model in json.loads((run / "run.json").read_text())["recipe"]["models"].items()
    }
    assert reads == {"qwen": "pixels", "codes": "codes", "fdm": "codes", "edit": "pixels", "edit-codes": "pixels"}
    settled = record_kinds(recipe, build_entries(recipe))
    assert evaluate.run(settled)["recipe"] == settled.model_dump(mode="json") | {"subset": "split"}
    # A record of the version before has "codes" for what was not given, and neither table nor size.
    old = recipe.identity_settings(settled.model_dump(mode="json"))
    assert "image_side_px" not in old and "prompt" not in old["models"]["qwen"] and "editor" not in old["models"]["fdm"]


def test_no_model_needs_a_codec_where_all_exchange_pixels(tiny_base, folders, triplets, tmp_path):
    recipe = any_recipe(tiny_base, folders, triplets, tmp_path / "out", image_side_px=32, examples=1)
    models = {name: recipe.models[name] for name in ("qwen", "edit")}
    evaluate.run(recipe.model_copy(update={"models": models, "codec": ""}))
    tables = tables_of(tmp_path / "out")
    assert {row["label"] for row in tables["fdm"]} == {"Copy", "Editor"}
    assert {row["negative"] for row in tables["probe"]} == {"random_action", "random_observation", "copy", "inverse"}
    assert all(row["pairs"] == ITEMS for row in tables["probe"])
    (example,) = json.loads((tmp_path / "out/examples.json").read_text())
    assert example["change"] == []
    image = decode_image((tmp_path / "out" / example["models"][0]["candidates"][0]["image"]).read_bytes(), "image")
    assert image.shape == (32, 32, 3)


WRONG = [
    ("qwen", {"role": "fdm"}, "reads pixels and makes none: such a model is an idm"),
    ("qwen", {"reads": "codes"}, "models.qwen.reads = 'codes', but .*qwen reads pixels; expected a model with image"),
    ("edit", {"role": "idm"}, "is an image editor: it says no action"),
    ("edit", {"reads": "codes"}, "models.edit.reads = 'codes', but .*editor is an image editor; expected a model"),
    ("fdm", {"editor": EDITOR}, "models.fdm.editor: .* is no image editor; leave it out"),
    ("codes", {"prompt": "what?"}, "models.codes.prompt: .* reads no pixels, and is asked no question"),
    ("edit", {"editor": {"pipeline": "FluxKontextPipeline"}}, "names the pipeline"),
    ("edit", {"editor": {"settings": {"steps": 3}}}, "models.edit.editor.settings.steps: .* takes no such argument"),
    ("qwen", {"prompt": "<|image_pad|>?"}, "special token of the model"),
    ("qwen", {"base": "elsewhere"}, "is no adapter, so that base = '.*elsewhere' has no effect"),
    ("edit", {"base": "elsewhere"}, "models.edit: .* is no adapter, so that base = '.*elsewhere' has no effect"),
    ("fdm", {"idm": "edit"}, "verifier 'edit' is no IDM of this recipe; those are qwen, codes"),
]


def test_what_does_not_fit_is_refused_by_name(tiny_base, folders, triplets, tmp_path):
    for name, change, message in WRONG:
        values = any_recipe(tiny_base, folders, triplets, tmp_path / "out").model_dump(exclude_none=True)
        values["models"][name] |= change
        with pytest.raises(InputError, match=message):
            evaluate.run(evaluate.EvaluateRecipe.parse(values, "test"), dry_run=True)
    assert not (tmp_path / "out").exists()


def test_a_base_that_nobody_needs_is_refused(tiny_base, folders, triplets, tmp_path):
    recipe = any_recipe(tiny_base, folders, triplets, tmp_path / "out")
    needless = recipe.model_copy(update={"base": str(tiny_base), "codec": str(tiny_base), "zero_shot": False})
    with pytest.raises(InputError, match=r"base = .*: no model is an adapter of it, codec is another folder's, and"):
        build_entries(needless)
    # Its codec decodes the predictions.
    assert build_entries(needless.model_copy(update={"codec": ""})).keys() == recipe.models.keys()


def test_editors_have_opposites_without_a_probe(tiny_base, folders, triplets, tmp_path):
    (tmp_path / "opposites.jsonl").write_text('{"triplet_id": "elsewhere", "action": "stay"}\n')
    changes = {"probe": False, "counterfactuals": str(tmp_path / "opposites.jsonl")}
    with pytest.raises(InputError, match="none of its 1 counterfactual actions is of one of the 3 triplets"):
        evaluate.run(any_recipe(tiny_base, folders, triplets, tmp_path / "out", **changes), dry_run=True)
    # Nobody reads them where nothing is compared.
    evaluate.run(
        any_recipe(tiny_base, folders, triplets, tmp_path / "out", action_margins=False, **changes), dry_run=True
    )


def test_the_oracles_size_is_asked_for_without_a_codec(tiny_base, folders, triplets, tmp_path):
    recipe = any_recipe(tiny_base, folders, triplets, tmp_path / "out", judge="oracle")
    pixels = recipe.model_copy(update={"models": {name: recipe.models[name] for name in ("qwen", "edit")}, "codec": ""})
    with pytest.raises(InputError, match=r"image_side_px = 512: judge = 'oracle' reads .*; give image_side_px=48"):
        evaluate.run(pixels, dry_run=True)


def test_margins_without_a_verifier_are_refused(tiny_base, folders, triplets, tmp_path):
    recipe = any_recipe(tiny_base, folders, triplets, tmp_path / "out", idm="", action_margins=True)
    models = {name: recipe.models[name] for name in ("codes", "fdm", "edit")}
    with pytest.raises(InputError, match="action_margins = true measures forward models by their verifier, and none"):
        build_entries(recipe.model_copy(update={"models": models}))


def test_withheld_images_are_counted_by_their_use(monkeypatch, capsys):
    facts = {
        "sample": {"withheld": {"safety_checker": 2}, "cut_actions": 4},
        "margin": {"withheld": {"safety_checker": 1, "black": 1}},
    }
    units = [Unit("edit", "sample", 0), Unit("edit", "sample", 1), Unit("edit", "margin", 0)]
    monkeypatch.setattr(evaluate_job, "load_part", lambda path: (facts[path.name.split(".")[1]], {}))
    entries = {"edit": Entry("edit", "folder", "fdm", "Editor", kind="editor")}
    # An action that is cut is one, however many seeds there are.
    assert evaluate_job._count_editor_failures(entries, units, Path()) == {"withheld": 6, "cut_actions": 4}
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "models.edit withheld images (safety_checker 4); further candidates took their places"
    assert second.startswith("models.edit withheld images (black 1, safety_checker 1); under other actions; action")
    assert "does not read 4 actions to their end" in third
