"""What works with what: every kind of forward model verified by every kind of inverse model, and what is refused."""

import json
from dataclasses import replace
from itertools import dropwhile, takewhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.helpers import models_families, models_vlms
from tests.helpers.models_editors import write_pix2pix
from tests.helpers.models_emu3_5 import write_emu3_5
from tests.helpers.models_lumina import write_lumina
from tests.helpers.models_vlms_new import write_qwen3_vl
from wm.dynamics import (
    CodeForward,
    CodeInverse,
    Observation,
    Sampling,
    Search,
    WorldModel,
    load_inverse_model,
    predict_observations,
    roll_out,
)
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.observation import pixels_of
from wm.dynamics.pair_folders import PairFolders
from wm.dynamics.pairs import ModelPair
from wm.dynamics.pixel_settings import PixelsSettings
from wm.errors import InputError
from wm.images import fit_square

ROOT = Path(__file__).resolve().parents[3]
ACTION = "move the red cup"
EDITOR = EditorSettings(settings={"num_inference_steps": 1}, resolution=64)
CODES = ("chameleon", "liquid", "emu3", "lumina", "emu3_5")
FORWARD = (*CODES, "janus", "editor")
INVERSE = (*CODES, "qwen3_vl", "llava_interleave")
SEARCH, SAMPLING = Search(num_candidates=2), Sampling()


@pytest.fixture(scope="module")
def folders(tiny_base, tmp_path_factory):
    """Folder of each kind of model."""
    out = tmp_path_factory.mktemp("pairs")
    for name in ("liquid", "emu3", "janus"):
        getattr(models_families, f"write_{name}")(out / name)
    write_qwen3_vl(out / "qwen3_vl")
    models_vlms.WRITERS["llava_interleave"](out / "llava_interleave")
    write_lumina(out / "lumina")
    write_emu3_5(out / "emu3_5")
    write_pix2pix(out / "editor")
    return {path.name: str(path) for path in out.iterdir()} | {"chameleon": str(tiny_base)}


@pytest.fixture(scope="module")
def models(folders):
    """Each model once: a forward one by the pairs it is in, an inverse one likewise."""
    pairs = {}
    for fdm in FORWARD:
        pairs[fdm] = pair_of(folders, fdm, fdm if fdm in INVERSE else "chameleon")
    forward = {fdm: pairs[fdm].forward for fdm in FORWARD}
    for model in forward.values():
        object.__setattr__(model, "sample", remember(model.sample))
    inverse = {name: pairs[name].inverse for name in FORWARD if name in INVERSE}
    inverse |= {name: pair_of(folders, "editor", name).inverse for name in INVERSE if name not in inverse}
    return SimpleNamespace(forward=forward, inverse=inverse)


def remember(sample):
    """``sample``, which is done once for equal rows: a forward model gives the same whatever verifies it."""
    known = {}

    def sample_once(sources, actions, *, candidates, seeds, **more):
        key = tuple(sources), tuple(actions), candidates, tuple(seeds)
        if key not in known:
            known[key] = sample(sources, actions, candidates=candidates, seeds=seeds, **more)
        return known[key]

    return sample_once


def pair_of(folders, fdm, idm, **more):
    editor = EDITOR if fdm == "editor" else EditorSettings()
    return PairFolders(folders[fdm], folders[idm], editor=editor, **more).load()


@pytest.mark.parametrize("idm", INVERSE)
@pytest.mark.parametrize("fdm", FORWARD)
def test_every_forward_model_is_verified_by_every_inverse_model(models, fdm, idm):
    pair = ModelPair(models.forward[fdm], models.inverse[idm])
    pair.check_actions([ACTION])
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    source = pair.observe(image)
    (prediction,) = predict_observations(pair.forward, pair.inverse, [source], [ACTION], search=SEARCH, seed=2)
    # Codes between two of one codec, else pixels, which the other model reads as it reads a file.
    has_codes = [isinstance(pair.forward, CodeForward), isinstance(pair.inverse, CodeInverse)]
    shown = pixels_of([source, *(candidate.observation for candidate in prediction.candidates)])
    # The verifier is shown the image itself, unless both models have one codec.
    assert source.is_of_pixels is not pair.shares_codec
    assert pair.shares_codec or np.array_equal(shown[0], pair.frame(image))
    before, *after = (Observation.from_pixels(pixels) for pixels in shown)
    if has_codes[1]:
        codec = pair.inverse.codec
        squares = [fit_square(pixels, codec.side_px)[None] for pixels in shown]
        before, *after = (Observation.from_codes(codec.encode(square)[0].tolist(), codec) for square in squares)
    if all(has_codes) and pair.forward.codec.codec_id == pair.inverse.codec.codec_id:
        before, after = source, [candidate.observation for candidate in prediction.candidates]
    expected = pair.inverse.score([before] * 2, after, [ACTION] * 2)
    for candidate, score in zip(prediction.candidates, expected, strict=True):
        assert candidate.observation.is_of_pixels != has_codes[0]
        assert candidate.score.logprob == pytest.approx(score.logprob, abs=1e-3)
    scores = [candidate.score.logprob for candidate in prediction.candidates]
    assert scores == sorted(scores, reverse=True)


def test_the_table_of_the_docs_is_what_was_tried():
    page = (ROOT / "docs/pages/models.md").read_text()
    table = page.split("## What works with what", 1)[1]
    lines = takewhile(lambda line: line[:1] == "|", dropwhile(lambda line: line[:1] != "|", table.splitlines()))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    names = dict(zip(("Chameleon", "Liquid", "Emu3", "Lumina-mGPT 2.0", "Emu3.5"), CODES, strict=True))
    forward = {**names, "Janus-Pro": "janus", "image editors of diffusers": "editor"}
    inverse = {**names, "Qwen3-VL": "qwen3_vl", "LLaVA-Interleave": "llava_interleave"}
    assert tuple(inverse[name] for name in rows[0][1:]) == INVERSE
    assert tuple(forward[row[0].strip("*")] for row in rows[2:]) == FORWARD
    for fdm, row in zip(FORWARD, rows[2:], strict=True):
        assert row[1:] == ["codes" if fdm == idm else "pixels" for idm in INVERSE]


def test_two_steps_and_failures_of_an_editor(models):
    pair = ModelPair(models.forward["editor"], models.inverse["qwen3_vl"])
    image = np.random.default_rng(1).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    # Neither has a codec: the full frame, and no square of it.
    source = pair.observe(image)
    assert pair.frame(image).shape == image.shape and np.array_equal(pixels_of([source])[0], image)
    (rollout,) = roll_out(pair.forward, pair.inverse, [source], [[ACTION, "put"]], search=SEARCH, seed=1)
    first, second = (candidate.observation for candidate in rollout.best.candidates)
    assert all(pixels.shape == image.shape for pixels in pixels_of([first, second]))
    again = pair.forward.sample(
        [first], ["put"], candidates=range(2), sampling=SAMPLING, seeds=[rollout.steps[1].predictions[0].best.seed]
    ).candidates[0]
    assert second in again
    steps = []
    listening = pair.listen(lambda *step: steps.append(step))
    listening.forward.sample([first], ["put"], candidates=range(2), sampling=SAMPLING, seeds=[0])
    codes = ModelPair(models.forward["chameleon"], pair.inverse)
    assert steps == [(2, 2), (2, 2)] and codes.listen(steps.append) is codes
    world = WorldModel(pair)
    assert world.roll_out(image, [ACTION, "put"], num_candidates=2, seed=1).rollout == rollout
    proposal = world.propose(image, image)
    assert proposal == pair.inverse.propose([source], [source], sampling=Sampling(greedy=True), seeds=[0])[0]
    with pytest.raises(InputError, match="the forward model is an image editor: its images have no codes"):
        world.encode(image)
    # Where one of the models has codes, both see the square that it encodes.
    square = ModelPair(models.forward["editor"], models.inverse["chameleon"]).frame(image)
    assert np.array_equal(square, image[:, 8:48])


def test_what_does_not_go_together_is_refused_unread(folders, tmp_path, monkeypatch):
    for fdm, idm, more, message in (
        ("qwen3_vl", "chameleon", {}, "fdm = .* reads images and makes none"),
        ("chameleon", "editor", {}, "idm = .* is an image editor: it makes images and says no action"),
        ("editor", "janus", {}, "idm = .*: janus cannot serve as an inverse model: it understands images by SigLIP"),
        ("editor", "chameleon", {"base_sharing": "shared"}, "base_sharing = shared .* fdm = .* is an image editor"),
        ("chameleon", "llava_interleave", {"base_sharing": "shared"}, "idm = .* is a model that reads pixels"),
        ("chameleon", "liquid", {"base_sharing": "shared"}, "sharing weights needs both roles over one base"),
        ("chameleon", "chameleon", {"editor": EDITOR}, "editor.resolution = 64, but fdm = .* is no image editor"),
        (
            "editor", "chameleon", {"pixels": PixelsSettings(prompt="What?")},
            r"pixels.prompt = 'What\?', but idm = .* is no model that reads pixels",
        ),
        ("editor", "chameleon", {"editor": EditorSettings(pipeline="X")}, "names the pipeline 'StableDiff.*, not X"),
        ("editor", "chameleon", {"editor": EditorSettings(settings={"x": 1})}, "settings.x: Stable.* takes no such"),
        ("editor", "chameleon", {"editor": EditorSettings(scheduler="X")}, "scheduler = 'X': diffusers .* has no such"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            PairFolders(folders[fdm], folders[idm], **more).check()
    (tmp_path / "wm_model.json").write_text(
        json.dumps({"kind": "full", "task": "idm", "codec_id": "x", "base_id": "y", "family": "z"})
    )
    with pytest.raises(InputError, match=r"fdm = .* was trained as idm"):
        PairFolders(str(tmp_path), folders["chameleon"]).check()
    monkeypatch.setattr("wm.models.pipelines.import_module", _refuse)
    with pytest.raises(InputError, match=r"image editors need diffusers: pip install 'wm\[baselines\]'"):
        PairFolders(folders["editor"], folders["chameleon"]).check()


def test_an_adapter_of_pixels_has_a_base_of_its_own(folders, models, tmp_path):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folders["llava_interleave"])
    settings = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        # As any program writes it: nothing in the folder says what its base is.
        get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    pixels = PixelsSettings(base=folders["llava_interleave"], prompt="move the cup", image_cache_mb=0)
    pair = PairFolders(folders["editor"], str(tmp_path / "adapter"), pixels=pixels, editor=EDITOR)
    pair.check()
    # The only adapter reads pixels: a base of image codes would be nobody's.
    with pytest.raises(InputError, match=r"base = .*, but neither fdm nor idm is an adapter of a model with image"):
        replace(pair, base=folders["chameleon"]).check()
    inverse = pair.load().inverse
    image = Observation.from_pixels(np.zeros((16, 16, 3), np.uint8))
    arguments = {"base": folders["llava_interleave"], "prompt": "move the cup", "image_cache_mb": 0}
    expected = load_inverse_model(tmp_path / "adapter", **arguments)
    scores = [model.score([image], [image], [ACTION])[0].logprob for model in (inverse, expected)]
    assert scores[0] == scores[1] != models.inverse["llava_interleave"].score([image], [image], [ACTION])[0].logprob
    with pytest.raises(InputError, match=r"adapter .* has no wm_model.json|does not say where its base is"):
        PairFolders(folders["editor"], str(tmp_path / "adapter"), editor=EDITOR).check()


def _refuse(name):
    raise ImportError(name)
