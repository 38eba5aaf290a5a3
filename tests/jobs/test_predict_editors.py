"""An image editor as the forward model of ``wm predict`` and ``wm imagine``, verified by models of either kind."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.imagine import ImagineRecipe
from jobs.imagine import job as imagine
from jobs.predict import job as predict
from jobs.predict import triplets as predict_triplets
from jobs.predict.recipe import PredictRecipe
from tests.helpers.models_editors import write_pix2pix
from tests.helpers.models_vlms import WRITERS
from tests.helpers.training_data import random_rows, write_triplets
from wm.dynamics import Search, WorldModel, editor_calls, predict_observations
from wm.dynamics.editor_forward import EditorForward
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.observation import pixels_of
from wm.dynamics.pixel_inverse import PixelInverse
from wm.dynamics.protocols import SampleFailure, Samples
from wm.errors import InputError
from wm.evaluation.paper.figures.action_tree import load_action_tree
from wm.images import decode_image, encode_png, fit_square
from wm.models import load_codec
from wm.nano.preset import TINY_WORDS
from wm.records import REJECT_SCHEMA, row_seeds
from wm.tables import read_table

EDITOR = {"settings": {"num_inference_steps": 1}, "resolution": 64}
ACTIONS = ["move the cup", "put it"]


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    """An editor, a model that reads pixels, a base that reads codes."""
    out = tmp_path_factory.mktemp("models")
    WRITERS["qwen2_5_vl"](out / "reader")
    editor = write_pix2pix(out / "editor")
    return SimpleNamespace(editor=str(editor), reader=str(out / "reader"), base=str(tiny_base))


@pytest.fixture(scope="module")
def world(folders):
    return WorldModel.load(folders.editor, "nano:idm", editor=EditorSettings(**EDITOR))


@pytest.fixture
def image_file(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


@pytest.fixture(scope="module")
def triplets(tiny_base, tmp_path_factory):
    """Four rows with images of noise."""
    noise, rows = np.random.default_rng(1), random_rows(tiny_base, 4)
    for number, row in enumerate(rows):
        pixels = noise.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        row["source_image"] = row["target_image"] = {"bytes": encode_png(pixels), "path": None}
        row["action"] = " ".join(sorted(TINY_WORDS)[number : number + 2])
    return write_triplets(rows, tmp_path_factory.mktemp("triplets") / "triplets")


def recipe_of(editor, out, idm="nano:idm", **more):
    values = {"fdm": editor, "idm": idm, "out": str(out), "editor": EDITOR, "search": {"num_candidates": 3}, "seed": 4}
    return PredictRecipe.parse(values | more, "test")


def read_png(path):
    return decode_image(path.read_bytes(), str(path))


def withhold_some(monkeypatch):
    """Images of which the left half is brighter are withheld, whatever a batch rounds: about half of them."""
    check = editor_calls._check_image
    withheld = SampleFailure("safety_checker", "withheld")
    halves = lambda image: (image[:, :32].mean(), image[:, 32:].mean())  # noqa: E731
    is_lit = lambda image: halves(image)[0] > halves(image)[1]  # noqa: E731
    monkeypatch.setattr(editor_calls, "_check_image", lambda image, _: withheld if is_lit(image) else check(image, _))


def test_a_rollout_is_written_as_images(folders, world, image_file, tmp_path):
    record = predict.run(recipe_of(folders.editor, tmp_path / "out", image=str(image_file), actions=ACTIONS))
    assert record["counts"] == {"steps": 2, "draws": 6, "sequences": 1}
    # The middle square of the image in its own resolution: what the verifier's codec encodes.
    source = read_png(tmp_path / "out/source.png")
    assert np.array_equal(source, read_png(image_file)[:, 8:56]) and not (tmp_path / "out/source-codes.png").exists()
    expected = world.roll_out(image_file, ACTIONS, num_candidates=3, seed=4)
    written = json.loads((tmp_path / "out/prediction.json").read_text())
    assert written["source"] == {"image": "source.png"} and '"codes"' not in json.dumps(written)
    for name, image, step in zip(written["images"], expected.images, written["steps"], strict=True):
        assert np.array_equal(read_png(tmp_path / "out" / name), np.asarray(image)) and image.size == (48, 48)
        # Without codes every candidate is kept as an image.
        (expansion,) = step["expansions"]
        assert expansion["draws"] == 3 and all(
            read_png(tmp_path / "out" / item["image"]).shape == (48, 48, 3) for item in expansion["candidates"]
        )
    logprobs = [candidate.score.logprob for candidate in expected.rollout.best.candidates]
    assert [step["logprob"] for step in written["steps"]] == pytest.approx(logprobs, abs=1e-4)
    assert (tmp_path / "out/storyboard.png").exists()


def test_a_tree_ends_where_an_image_is_withheld(folders, image_file, tmp_path, capsys, monkeypatch):
    sample = EditorForward.sample

    def withhold(self, sources, actions, **options):
        rows, withheld = sample(self, sources, actions, **options).candidates, SampleFailure("safety_checker", "unsafe")
        shown = zip(rows, actions, strict=True)
        return Samples([[withheld] * len(row) if action == "take the cup" else row for row, action in shown])

    monkeypatch.setattr(EditorForward, "sample", withhold)
    tree = [["put the cup", "take the cup"], ["put the cup"]]
    record = predict.run(recipe_of(folders.editor, tmp_path / "out", folders.reader, image=str(image_file), tree=tree))
    assert record["counts"] == {"levels": 2, "branches": 3, "draws": 9, "withheld": 3}
    written = json.loads((tmp_path / "out/tree.json").read_text())
    # Neither model has a codec: all of the image.
    (first, second), (third,) = written["levels"]
    shapes = {read_png(tmp_path / "out" / branch["image"]).shape for branch in (first, third)}
    assert shapes == {(48, 64, 3)} and "codes" not in first and third["parent"] == 0
    failures = [{"candidate": number, "reason": "safety_checker"} for number in range(3)]
    assert second == {"parent": 0, "action": "take the cup", "image": None, "withheld": failures}
    root = load_action_tree(tmp_path / "out").root
    assert [(node.below, len(node.children)) for node in root.children][1] == ("no image", 0)
    output = capsys.readouterr().out
    assert "  take the cup (none of 3 candidates has an image: unsafe)\n" in output
    assert "predict: 2 images, 9 candidates" in output
    with pytest.raises(InputError, match="step 2, 'take the cup': none of 3 candidates has an image: unsafe"):
        actions = ["put the cup", "take the cup"]
        predict.run(recipe_of(folders.editor, tmp_path / "no", folders.reader, image=str(image_file), actions=actions))


def test_a_reader_of_pixels_is_shown_the_true_source(folders, image_file, triplets, tmp_path, monkeypatch):
    shown, score = [], PixelInverse.score

    def remember(self, sources, targets, actions, **more):
        shown.extend(pixels_of(sources))
        return score(self, sources, targets, actions, **more)

    monkeypatch.setattr(PixelInverse, "score", remember)
    models = {"fdm": folders.base, "idm": folders.reader, "search": {"num_candidates": 2}}
    values = {"image": str(image_file), "actions": ["put the cup"], "out": str(tmp_path / "image")}
    predict.run(PredictRecipe.parse(models | values, "test"))
    predict.run(PredictRecipe.parse(models | {"triplets": str(triplets), "out": str(tmp_path / "table")}, "test"))
    values = {"sources": str(triplets), "actions": str(triplets), "actions_each": 1, "out": str(tmp_path / "imagined")}
    imagine.run(ImagineRecipe.parse(models | values | {"filters": {"min_score": -50.0}}, "test"))
    files = [decode_image(row["source_image"]["bytes"], "source") for row in read_table(triplets).to_pylist()]
    squares = [fit_square(pixels, 16) for pixels in (read_png(image_file), *files)]
    # Two candidates of the image, of each triplet, and of each source that is imagined from.
    assert len(shown) == 2 * 9 and {image.tobytes() for image in shown} == {image.tobytes() for image in squares}
    # What the forward model reads of it is recorded as before.
    codec = load_codec(folders.base)
    written = json.loads((tmp_path / "image/prediction.json").read_text())
    assert written["source"]["codes"] == codec.encode(squares[0][None])[0].tolist()
    assert np.array_equal(
        read_png(tmp_path / "image/source-codes.png"), codec.decode(np.array([written["source"]["codes"]]))[0]
    )
    stored = {row["triplet_id"]: row["source_codes"] for row in read_table(triplets).to_pylist()}
    imagined = read_table(tmp_path / "imagined/triplets").to_pylist()
    assert {tuple(row["source_codes"]) for row in imagined} <= set(map(tuple, stored.values())) and imagined


def test_triplets_resume_and_withheld_images_are_rejects(folders, world, triplets, tmp_path, monkeypatch):
    withhold_some(monkeypatch)
    monkeypatch.setattr(predict_triplets, "ROWS_PER_PART", 2)
    more = {"triplets": str(triplets), "search": {"num_candidates": 2, "num_return": 2}, "storyboard_triplets": 4}
    recipe = recipe_of(folders.editor, tmp_path / "out", **more)
    counts = predict.run(recipe)["counts"]
    rows = read_table(triplets).to_pylist()
    sources = [world.observe(row["source_image"]["bytes"]) for row in rows]
    predictions = predict_observations(
        world.forward, world.inverse, sources, [row["action"] for row in rows], search=Search(num_candidates=2),
        seed=row_seeds(4, [row["triplet_id"] for row in rows]),
    )  # fmt: skip
    expected = {
        (row["triplet_id"], candidate.rank): pixels_of([candidate.observation])[0]
        for row, prediction in zip(rows, predictions, strict=True)
        for candidate in prediction.distinct
    }
    withheld = [len(prediction.failures) for prediction in predictions]
    # Some have no image at all, some one: the noise is fixed.
    assert 0 < sum(withheld) < 8 and 2 in withheld
    written = pq.read_table(tmp_path / "out/predictions").to_pylist()
    images = {(row["triplet_id"], row["rank"]): decode_image(row["image"]["bytes"], "image") for row in written}
    assert images.keys() == expected.keys()
    assert all(np.abs(images[key].astype(int) - expected[key]).max() <= 1 for key in expected)
    assert {(row["codec"], row["codes"], row["draws"]) for row in written} == {(None, None, 2)}
    assert counts["withheld"] == {"safety_checker": sum(withheld)} and counts["triplets"] + withheld.count(2) == 4
    assert counts["triplets_without_image"] == withheld.count(2) and counts["draws"] == 4 * 2
    rejects = read_table(tmp_path / "out/rejects", REJECT_SCHEMA).to_pylist()
    assert len(rejects) == sum(withheld) and {row["stage"] for row in rejects} == {"predict"}
    assert (tmp_path / "out/storyboard.png").exists()
    # A killed run: the part that is missing is made again.
    out = tmp_path / "out"
    (out / "run.json").rename(out / "run.unfinished.json")
    (out / "predictions/part-00001.parquet").unlink()
    assert predict.run(recipe)["counts"] == counts


@pytest.mark.parametrize("has_codec", [True, False])
def test_imagined_triplets_have_the_codes_of_the_verifier(folders, triplets, tmp_path, monkeypatch, has_codec):
    withhold_some(monkeypatch)
    values = {
        "fdm": folders.editor, "idm": folders.base if has_codec else folders.reader, "editor": EDITOR,
        "sources": str(triplets), "actions": str(triplets), "out": str(tmp_path / "out"),
        "actions_each": 1, "search": {"num_candidates": 2}, "filters": {"min_score": -50.0, "max_unchanged": 1.0},
    }  # fmt: skip
    counts = imagine.run(ImagineRecipe.parse(values, "test"))["counts"]
    rows = read_table(tmp_path / "out/triplets").to_pylist()
    rejects = read_table(tmp_path / "out/rejects", REJECT_SCHEMA).to_pylist()
    assert counts["tries"] == 4 == len(rows) + len(rejects) and rows
    assert {(row["reason"], row["outcome"]) for row in rejects} <= {("safety_checker", "failed")}
    codec = load_codec(folders.base)
    for row in rows:
        image = decode_image(row["target_image"]["bytes"], "target")
        # The frame of the source: its middle square where the verifier has a codec, else all of it.
        assert image.shape == ((32, 32, 3) if has_codec else (32, 40, 3))
        if not has_codec:
            assert row["codec"] is row["target_codes"] is row["change"] is None
            continue
        squares = [
            fit_square(pixels, 16)[None] for pixels in (decode_image(row["source_image"]["bytes"], "s")[:, 4:36], image)
        ]
        codes, features = zip(*map(codec.encode_with_features, squares), strict=True)
        assert [row["source_codes"], row["target_codes"]] == [item[0].tolist() for item in codes]
        expected = (features[0] - features[1]).square().sum(-1)[0]
        assert row["change"] == pytest.approx(expected.tolist(), rel=1e-4) and row["codec"] == codec.codec_id
    assert counts.get("without_codes", 0) == (0 if has_codec else len(rows))
    assert ("unchanged_codes" in counts) == has_codec


def test_bad_input_is_one_line_before_weights(folders, image_file, tmp_path, monkeypatch):
    monkeypatch.setattr("wm.dynamics.editor_forward.load_editor_forward", lambda *_, **__: pytest.fail("was read"))
    given = {"image": str(image_file), "actions": ["put"]}
    for more, message in (
        ({"search": {"num_draft_tokens": 2}}, "search.num_draft_tokens = 2: an image editor has no tokens to draft"),
        ({"sampling": {"top_k": 3}}, "sampling.top_k = 3: it is for models of image codes"),
        ({"editor": {"settings": {"strength": 0.5}}}, "^editor.settings.strength: StableDiff.* takes no such argument"),
        ({"resources": {"base_sharing": "shared"}}, "base_sharing = shared is for two adapters"),
        ({"fdm": folders.reader}, "fdm = .* reads images and makes none; expected a unified model or an editor"),
        ({"idm": folders.editor}, "idm = .* is an image editor: it makes images and says no action"),
        ({"fdm": folders.base}, "editor.resolution = 64, but fdm = .* is no image editor"),
        ({"idm": folders.reader, "pixels": {"base": folders.reader}}, "pixels.base = .* idm = .* is no adapter; leave"),
        ({"idm": folders.reader, "pixels": {"prompt": "</s>"}}, "prompt '</s>' holds a special token of the model"),
        ({"pixels": {"prompt": "What?"}}, "pixels.prompt = 'What?', but idm = .* is no model that reads pixels"),
    ):
        values = {"fdm": folders.editor, "idm": "nano:idm", "out": str(tmp_path / "out")}
        values |= {"editor": EDITOR} | given | more
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            predict.run(PredictRecipe.parse(values, "test"), dry_run=True)
    assert predict.run(recipe_of(folders.editor, tmp_path / "out", **given), dry_run=True) == {}
    assert not (tmp_path / "out").exists()
