"""The world model in images against the functions on codes that it stands for."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.code_calls import predict_observations, roll_out
from wm.dynamics import CodeForward, Sampling, Search, WorldModel, load_role, propose_actions, score_actions
from wm.errors import InputError
from wm.models import load_codec
from wm.packaged import resolve_packaged

IMAGE = "nano:images/four-objects.png"
ACTION = "move the blue circle to the center"
HOT = Sampling(temperature=2.0)


@pytest.fixture(scope="module")
def world():
    return WorldModel.load("nano:fdm", "nano:idm")


@pytest.fixture(scope="module")
def source(world):
    return world.encode(IMAGE)


@pytest.fixture(scope="module")
def models(world):
    return world.forward.role.model, world.inverse.role.model


def pixels(image):
    return np.asarray(image)


def test_a_prediction_is_that_of_the_codes_decoded(world, models, source):
    prediction = world.predict(IMAGE, ACTION, num_candidates=4, sampling=HOT, seed=3)
    search = Search(num_candidates=4)
    with torch.inference_mode():
        expected = predict_observations(*models, [source], [ACTION], search=search, sampling=HOT, seed=3)[0]
    assert [item.candidate for item in prediction.candidates] == list(expected.distinct)
    assert prediction.prediction == expected
    best = world.codec.decode(torch.tensor([expected.best.codes]))[0]
    assert np.array_equal(pixels(prediction.image), best) and prediction.best.logprob == expected.best.score.logprob
    assert np.array_equal(pixels(prediction.source), world.codec.decode(torch.tensor([source]))[0])
    assert prediction.best.unchanged_share == expected.best.unchanged_share


def test_a_rollout_is_that_of_the_codes_decoded(world, models, source):
    actions = [ACTION, "remove the yellow triangle"]
    rollout = world.roll_out(IMAGE, actions, num_candidates=2, num_beams=2, sampling=HOT, seed=1)
    search = Search(num_candidates=2, num_beams=2)
    with torch.inference_mode():
        expected = roll_out(*models, [source], [actions], search=search, sampling=HOT, seed=1)[0]
    assert rollout.rollout == expected and rollout.actions == tuple(actions)
    codes = torch.tensor([candidate.codes for candidate in expected.best.candidates])
    assert np.array_equal(np.stack([pixels(image) for image in rollout.images]), world.codec.decode(codes))
    assert rollout.logprob == expected.best.logprob


def test_actions_between_images_are_those_between_codes(world, models, source):
    target = world.predict(IMAGE, ACTION, num_candidates=1).image
    codes, actions = world.encode(target), [ACTION, "remove the red triangle"]
    with torch.inference_mode():
        assert world.propose(IMAGE, target) == propose_actions(models[1], [source], [codes])[0]
        assert world.score(IMAGE, target, actions) == score_actions(models[1], [source] * 2, [codes] * 2, actions)


def test_images_of_every_kind_are_read_alike(world, source):
    path = resolve_packaged(IMAGE)
    image = Image.open(path)
    clear = Image.merge("RGBA", [*image.convert("RGB").split(), Image.new("L", image.size, 255)])
    kinds = [path, Path(path), Path(path).read_bytes(), image, clear, np.array(image.convert("RGB"))]
    assert [world.encode(kind) for kind in kinds] == [source] * len(kinds)
    # Transparent pixels are white, as in a file.
    blank = Image.new("RGBA", (48, 48), (0, 0, 0, 0))
    assert world.encode(blank) == world.encode(Image.new("RGB", (48, 48), "white"))


def test_notebooks_get_images_with_their_scores(world):
    prediction = world.predict(IMAGE, "<b>", num_candidates=2)
    shown = prediction._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert shown.count("data:image/png;base64,") == 1 + len(prediction.candidates)
    assert f"{prediction.best.logprob:.2f} nats" in shown
    png = Image.open(io.BytesIO(prediction.best._repr_png_()))
    assert np.array_equal(pixels(png), pixels(prediction.image))
    rollout = world.roll_out(IMAGE, [ACTION], num_candidates=1)
    assert f"{ACTION}: {rollout.logprob:.2f} nats" in rollout._repr_html_()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("no.png", "no such file"),
        ("nano:images/no.png", "nothing is shipped as"),
        (b"no image", "no readable image"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
    ],
)
def test_what_is_no_image_is_refused(world, image, words):
    with pytest.raises(InputError, match=words):
        world.predict(image, ACTION)


def test_models_in_the_wrong_role_are_refused(tiny_base):
    with pytest.raises(InputError, match="fdm = 'nano:idm' was trained as idm"):
        WorldModel.load("nano:idm", "nano:fdm")
    with pytest.raises(InputError, match="image codec"):
        CodeForward(load_role("nano:fdm"), load_codec(tiny_base))
