"""Image editors as forward models: candidates that depend on nothing but source, action, seed and number."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tests.helpers.models_editors import PIPELINE, write_pix2pix
from tests.helpers.models_pipelines import build_glm_image, build_kontext, build_qwen_edit
from wm.dynamics import Sampling, Search
from wm.dynamics.editor import ImageEditor, candidate_seed, fit_resolution, fit_to_source
from wm.dynamics.editor_forward import EditorForward, load_editor_forward
from wm.dynamics.loading import kind_of, load_forward_model, load_inverse_model
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.protocols import SampleFailure
from wm.errors import InputError
from wm.models.pipeline_folders import fingerprint_pipeline

ACTIONS = ["move the red cup", "add a blue bowl"]
QUICK = {"num_inference_steps": 2}
DEFAULTS = {"sampling": Sampling(), "seeds": [3, 4]}


def images_of(count, side=32):
    noise = np.random.default_rng(0)
    return [noise.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(count)]


def sample(forward, sources, actions=ACTIONS, **changes):
    """Pixels (B, K) of two rows."""
    observations = [Observation.from_pixels(source) for source in sources]
    samples = forward.sample(observations, actions, **{"candidates": range(3), **DEFAULTS, **changes})
    assert samples.passes is None
    return [pixels_of(row) for row in samples.candidates]


def are_near(some, others):
    """Whether images are equal up to rounding of float32."""
    return all(
        np.abs(one.astype(int) - other).max() <= 1
        for row, others_row in zip(some, others, strict=True)
        for one, other in zip(row, others_row, strict=True)
    )


@pytest.fixture(scope="module")
def pix2pix(tmp_path_factory):
    return write_pix2pix(tmp_path_factory.mktemp("pix2pix") / "model")


def forward_of(name, monkeypatch, folder):
    """A tiny editor; of Qwen in memory, as its processor cannot be saved without torchvision."""
    if name.startswith("Qwen"):
        module = "pipeline_qwenimage_edit" + ("_plus" if "Plus" in name else "")
        sizes = (32, 32) if "Plus" in name else (32, 32, None)
        path = f"diffusers.pipelines.qwenimage.{module}.calculate_dimensions"
        monkeypatch.setattr(path, lambda area, ratio: sizes)
        settings = QUICK | {"true_cfg_scale": 1.5, "negative_prompt": "the"}
        return EditorForward(ImageEditor(build_qwen_edit(name), settings, 0, batch_size=8))
    if name == "FluxKontext":
        build_kontext().save_pretrained(folder)
        return load_editor_forward(folder, settings=QUICK | {"max_area": 32 * 32, "_auto_resize": False})
    saved = build_glm_image()
    saved.save_pretrained(folder)
    forward = load_editor_forward(folder, settings=QUICK)
    generation = saved.vision_language_encoder.generation_config
    forward.editor.pipeline.vision_language_encoder.generation_config = generation
    return forward


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "QwenImageEditPlusPipeline", "FluxKontext", "GlmImage"])
def test_batches_change_nothing_of_any_editor(name, monkeypatch, tmp_path):
    forward = forward_of(name, monkeypatch, tmp_path)
    sources = images_of(2, side=64 if name == "GlmImage" else 32)
    calls = []
    call = type(forward.editor.pipeline).__call__
    counted = lambda self, **given: calls.append(given) or call(self, **given)  # noqa: E731
    with monkeypatch.context() as patch:
        # Settings are read from the call's signature, which a wrapper has not.
        counted.__wrapped__ = call
        patch.setattr(type(forward.editor.pipeline), "__call__", counted)
        images = sample(forward, sources)
    # The candidates of a row in one call, where the pipeline makes several.
    assert [given.get("num_images_per_prompt", 1) for given in calls] == ([1] * 6 if name == "GlmImage" else [3, 3])
    single = sample(forward, sources, candidates=range(1, 3), batch_size=1)
    assert are_near([row[1:] for row in images], single)
    turned = sample(forward, sources[::-1], ACTIONS[::-1], seeds=[4, 3], candidates=range(2, 3))[::-1]
    assert are_near([row[2:] for row in images], turned)
    # Candidates, and rows, differ by more than rounding.
    flat = [image for row in images for image in row]
    assert all(np.abs(flat[0].astype(int) - other).max() > 8 for other in flat[1:])


def test_candidates_are_those_of_diffusers(pix2pix):
    forward = load_forward_model(
        pix2pix, pipeline="", settings=QUICK, resolution=64, scheduler="DDIMScheduler", safety_checker=False
    )
    assert kind_of(pix2pix) == forward.kind == "editor" and forward.editor.batch_size == 8
    assert forward.model_id.startswith("StableDiffusionInstructPix2PixPipeline-") and len(forward.model_id) == 55
    sources = images_of(2, side=48)
    steps = []
    images = sample(forward, sources, on_progress=lambda *step: steps.append(step))
    # Six images of two steps each, in one call.
    assert steps == [(6, 12), (12, 12), (12, 12)]
    from diffusers import DDIMScheduler, StableDiffusionInstructPix2PixPipeline

    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(pix2pix)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(candidate_seed(4, "", 2))
    shown = Image.fromarray(sources[1]).resize((64, 64), Image.Resampling.LANCZOS)
    expected = pipeline(ACTIONS[1], image=shown, generator=noise, **QUICK).images[0].resize((48, 48), 1)
    assert are_near([[images[1][2]]], [[np.array(expected)]])
    # In rounds, in other batches, in another order, with the noise of the process in another state.
    torch.manual_seed(5)
    state = torch.get_rng_state()
    rounds = [sample(forward, sources, candidates=numbers, batch_size=2) for numbers in (range(1), range(1, 3))]
    assert are_near(images, [first + second for first, second in zip(*rounds, strict=True)])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_fingerprint_counts_the_scheduler_not_its_version(pix2pix, tmp_path):
    ids = [fingerprint_pipeline(pix2pix, PIPELINE)]
    folder = shutil.copytree(pix2pix, tmp_path / "model")
    file = folder / "scheduler/scheduler_config.json"
    config = json.loads(file.read_text())
    for change in ({"_diffusers_version": "0.1"}, {"beta_end": 0.02}, {"prediction_type": "v_prediction"}):
        file.write_text(json.dumps(config | change))
        ids.append(fingerprint_pipeline(folder, PIPELINE))
    assert ids[0] == ids[1] and len(set(ids)) == 3


def test_a_safety_checker_that_is_not_loaded_need_not_be_there(tmp_path):
    folder = write_pix2pix(tmp_path / "model", checked=True)
    shutil.rmtree(folder / "safety_checker")
    with pytest.raises(InputError, match="names safety_checker, and there is no folder"):
        load_editor_forward(folder)
    assert load_editor_forward(folder, safety_checker=False).editor.pipeline.safety_checker is None


def test_settings_of_codes_are_refused_by_name(pix2pix):
    forward = load_editor_forward(pix2pix, settings=QUICK, resolution=64)
    forward.check_search(Search(num_candidates=4, min_gain_nats=0.1, max_unchanged=0.9), Sampling())
    for search, sampling, message in (
        ({"num_draft_tokens": 2}, {}, "search.num_draft_tokens = 2: an image editor has no tokens"),
        ({}, {"greedy": True}, "sampling.greedy = True: it is for models of image codes"),
        ({}, {"guidance_scale": 3.0}, r"sampling.guidance_scale = 3.0: .*editor.settings.guidance_scale"),
        ({}, {"top_k": 5}, "sampling.top_k = 5"),
        ({}, {"temperature": 0.5}, "sampling.temperature = 0.5"),
    ):
        with pytest.raises(InputError, match=message):
            forward.check_search(Search(**search), Sampling(**sampling))
    with pytest.raises(InputError, match=r"sampling.top_p = 0\.5"):
        sample(forward, images_of(2), sampling=Sampling(top_p=0.5))
    forward.check_action("abc def")
    for action, message in ((" ", "action = ' ': expected some words"), ("abcdef " * 5, "has 32 tokens .* reads 16")):
        with pytest.raises(InputError, match=message):
            forward.check_action(action)


def test_bad_folders_and_settings_are_one_line(pix2pix, tmp_path):
    for changes, message in (
        ({"settings": {"strength": 1}}, "settings.strength: StableDiffusionInstruct.* takes no such argument"),
        ({"pipeline": "QwenImageEditPipeline"}, "names the pipeline 'StableDiffusionInst.*, not QwenImageEditPipeline"),
        ({"scheduler": "NoScheduler"}, "scheduler = 'NoScheduler': diffusers .* has no such scheduler"),
        ({"dtype": torch.float64}, r"dtype = torch.float64: expected one of float32, bfloat16, float16"),
    ):
        with pytest.raises(InputError, match=message):
            load_forward_model(pix2pix, **changes)
    with pytest.raises(InputError, match="is an image editor: it makes images and says no action"):
        load_inverse_model(pix2pix)
    with pytest.raises(InputError, match=r"no model_index.json in .*; expected an image editor"):
        load_editor_forward(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": ["my", "Own"]}')
    with pytest.raises(InputError, match=r"names the pipeline \['my', 'Own'\]; expected a class of diffusers"):
        load_editor_forward(tmp_path)


class SizedEditor:
    """Gives images of one size, black where asked for it, or one image too few."""

    def __init__(self, size, count=1):
        self.size, self.count = size, count

    def __call__(self, image=None, prompt=None, generator=None, output_type="pil"):
        pixels = np.zeros((*self.size[::-1], 3), np.uint8) + ("black" not in prompt) * np.uint8(200)
        return type("Output", (), {"images": [Image.fromarray(pixels)] * self.count})


def test_images_get_the_frame_of_their_source():
    source = images_of(1)[0][:16, :24]
    fitted = lambda fit: fit_resolution(Image.fromarray(source), 64, fit)  # noqa: E731
    for size, resolution, fit, expected in (
        # Another size of the same aspect, and of one that is 8 % off, as FLUX Kontext makes.
        ((96, 64), 0, "crop", slice(0, 24)),
        ((104, 64), 0, "crop", slice(0, 24)),
        # 24 x 16 pixels are shown as 64 x 64: a square of them, or all, out of shape.
        ((64, 64), 64, "crop", slice(4, 20)),
        ((64, 64), 64, "stretch", slice(0, 24)),
    ):
        editor = ImageEditor(SizedEditor(size), {}, resolution, fit=fit)
        (image,), (failure,) = (
            EditorForward(editor)
            .sample([Observation.from_pixels(source)] * 2, ["red", "black"], candidates=range(1), **DEFAULTS)
            .candidates
        )
        (pixels,) = pixels_of([image])
        rest = np.delete(pixels, expected, axis=1)
        assert pixels.shape == source.shape and (pixels[:, expected] == 200).all()
        assert np.array_equal(rest, np.delete(source, expected, axis=1))
        assert isinstance(failure, SampleFailure) and failure.reason == "black_image"
    # Put back into the box that it was cropped from; images are noise, of which scaling keeps the most part.
    box = fit_to_source(np.array(fitted("crop")), source, fitted("crop"), "crop")
    near = np.array(ImageOps.fit(Image.fromarray(source), (64, 64), Image.Resampling.LANCZOS).resize((16, 16), 1))
    assert np.array_equal(box[:, 4:20], near) and np.abs(box.astype(int) - source).mean() < 20


def test_other_sizes_and_fewer_images_are_errors():
    source = Observation.from_pixels(images_of(1)[0])
    for pipeline, message in (
        (SizedEditor((64, 48)), "made an image of 64 x 48 pixels of one of 32 x 32: another aspect"),
        (SizedEditor((32, 32), count=0), "SizedEditor gave 0 images for 1"),
    ):
        forward = EditorForward(ImageEditor(pipeline, {}, 0))
        with pytest.raises(InputError, match=message):
            forward.sample([source], ["red"], candidates=range(2), sampling=Sampling(), seeds=[0])


def test_an_exception_of_a_listener_is_the_callers(pix2pix):
    forward = load_editor_forward(pix2pix, settings=QUICK, resolution=64)

    def leave(done, total):
        raise TimeoutError(f"{done} of {total}")

    with pytest.raises(TimeoutError, match="6 of 12"):
        sample(forward, images_of(2), on_progress=leave)
