"""Calls of an editing pipeline: sizes, batches, seeds, settings, and images that are none."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from wm.dynamics.editor import ImageEditor, candidate_seed, fit_resolution
from wm.dynamics.editor_calls import StepMeter, call_pipeline
from wm.dynamics.protocols import SampleFailure
from wm.errors import InputError


class ReferencesEditPipeline:
    """Adds noise of the generator to the image; withholds secrets, and turns black where asked for it."""

    def __init__(self):
        self.calls = []

    def __call__(  # noqa: PLR0917 - as pipelines of diffusers have it
        self, image=None, prompt=None, num_inference_steps=50, true_cfg_scale=4.0, height=None, generator=None,
        output_type="pil", callback_on_step_end=None, prompt_embeds=None,
    ):  # fmt: skip
        single = not isinstance(image, list)
        self.calls.append(prompt)
        images, prompts, generators = ([value] if single else value for value in (image, prompt, generator))
        assert len({image.size for image in images}) == 1 and output_type == "pil"
        edited = []
        for source, text, noise in zip(images, prompts, generators, strict=True):
            pixels = np.array(source).astype(int) + torch.randint(1, 50, (1,), generator=noise).item()
            edited.append(Image.fromarray((pixels * ("black" not in text)).clip(0, 255).astype(np.uint8)))
        return SimpleNamespace(images=edited, nsfw_content_detected=["secret" in text for text in prompts])


class StableDiffusionInstructPix2PixPipeline(ReferencesEditPipeline):
    pass


def image_of(width, height, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_sizes_are_those_of_the_authors_command():
    # By hand: 640 x 480 to 512 x 384; 500 x 333: the short side's 341.0 goes up to 384, the long one's 576.6 down.
    sizes = {(640, 480): (512, 384), (500, 333): (576, 384), (480, 640): (384, 512), (512, 512): (512, 512)}
    for size, expected in sizes.items():
        assert fit_resolution(Image.new("RGB", size), 512).size == expected
    assert fit_resolution(Image.new("RGB", (33, 7)), 0).size == (33, 7)
    # Black on one side of a wide image: cropped away, or in it.
    wide = Image.new("RGB", (96, 64), "white")
    wide.paste("black", (0, 0, 8, 64))
    cropped, stretched = (np.array(fit_resolution(wide, 64, fit)) for fit in ("crop", "stretch"))
    assert cropped.shape == stretched.shape == (64, 64, 3) and cropped.min() == 255 and stretched[:, 0].max() == 0


def test_batches_and_order_change_nothing():
    sources = [image_of(64, 64, value) if value % 2 else image_of(128, 64, value) for value in range(10, 17)]
    actions, seeds = [f"do {row}" for row in range(7)], [*range(7)]
    single = ImageEditor(StableDiffusionInstructPix2PixPipeline(), {}, 64)
    batched = ImageEditor(StableDiffusionInstructPix2PixPipeline(), {}, 64, batch_size=3)
    expected, images = single.edit(sources, actions, seeds), batched.edit(sources, actions, seeds)
    turned = batched.edit(sources[::-1], actions[::-1], seeds[::-1])[::-1]
    for row in range(7):
        assert np.array_equal(expected[row], images[row]) and np.array_equal(expected[row], turned[row])
    # Even rows are of one size, odd rows of another.
    assert batched.pipeline.calls[:3] == [["do 0", "do 2", "do 4"], "do 6", ["do 1", "do 3", "do 5"]]
    assert single.pipeline.calls[0] == "do 0" and expected[1].shape == (64, 64, 3)


def test_withheld_and_black_images_are_named():
    editor = ImageEditor(ReferencesEditPipeline(), {}, 0)
    images = editor.edit([image_of(8, 8)] * 3, ["secret", "black", "red"], [0, 1, 2])
    assert [getattr(image, "reason", None) for image in images] == ["safety_checker", "black_image", None]
    assert isinstance(images[0], SampleFailure) and "withheld" in images[0].detail


def test_settings_are_those_of_the_call():
    editor = ImageEditor(ReferencesEditPipeline(), {"true_cfg_scale": 2.5}, 0)
    assert editor.list_settings() == {"num_inference_steps": 50, "true_cfg_scale": 2.5, "height": None}
    for settings, batch_size, message in (
        ({"strength": 1}, 1, "settings.strength: References.*expected one of height, num_inference_steps, true_cfg"),
        ({"prompt": "a"}, 1, "settings.prompt: Ref.* takes no such argument"),
        ({}, 2, "batch_size = 2: ReferencesEditPipeline takes one image a call"),
    ):
        with pytest.raises(InputError, match=message):
            ImageEditor(ReferencesEditPipeline(), settings, 0, batch_size)
    with pytest.raises(InputError, match=r"ReferencesEditPipeline with settings \{\}: .*no attribute"):
        call_pipeline(ReferencesEditPipeline(), {}, [object()], ["a"], [0], meter=StepMeter(None, 1))


def test_every_image_has_a_seed_of_its_own():
    seeds = {candidate_seed(*key) for key in ((0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0), (0, "0\na", 1))}
    assert len(seeds) == 5 and all(0 <= seed < 2**63 for seed in seeds)
    assert candidate_seed(0, "a", 0) == candidate_seed(0, "a", 0)
