"""GLM-Image from its folder: the pipeline is loaded as an editor, its halves are explained."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.models_pipelines import build_glm_image
from wm.dynamics.loading import kind_of, load_inverse_model
from wm.errors import InputError
from wm.models import load_model
from wm.models.pipelines import load_pipeline


@pytest.fixture(scope="module")
def glm(tmp_path_factory):
    """A pipeline, and its folder with the index of the release, which names transformers for its two parts."""
    folder, pipeline = tmp_path_factory.mktemp("glm") / "model", build_glm_image()
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"glm_image"', '"transformers"'))
    return folder, pipeline


def test_the_folder_makes_the_pipelines_images(glm):
    folder, pipeline = glm
    # Tokenizers write this number where they bound no length: no reason to refuse a folder.
    words = json.loads((folder / "processor" / "tokenizer_config.json").read_text())
    assert words["model_max_length"] > 10**29
    assert kind_of(folder) == "editor"
    loaded = load_pipeline(folder, "GlmImagePipeline")

    def edit(editor, colour):
        with torch.random.fork_rng(devices=[]):
            return editor(
                prompt="put the red cup",
                image=[Image.new("RGB", (64, 64), colour)],
                height=64,
                width=64,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(3),
                output_type="np",
            ).images[0]

    expected = edit(pipeline, "red")
    assert expected.shape == (64, 64, 3)
    np.testing.assert_allclose(edit(loaded, "red"), expected, atol=1e-4)
    assert np.abs(edit(loaded, "blue") - expected).max() > 1e-3


def test_the_half_that_samples_tokens_is_no_model_of_its_own(glm):
    folder, _ = glm
    for load in (load_model, load_inverse_model):
        with pytest.raises(InputError, match=r"is the autoregressive half of GLM-Image, .* as an editor"):
            load(folder / "vision_language_encoder")
    with pytest.raises(InputError, match=r"is an image editor: it makes images and says no action"):
        load_inverse_model(folder)
    with pytest.raises(InputError, match=r"is a pipeline of diffusers, which has no language model over image codes"):
        load_model(folder)
