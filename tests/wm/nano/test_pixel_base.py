"""The nano base that reads pixels: a real folder with the release's chat, trained to caption pairs of images."""

from pathlib import Path

import numpy as np
import torch

from jobs.pretrain import PretrainRecipe, run
from wm.dynamics.loading import load_inverse_model
from wm.dynamics.observation import Observation
from wm.models import base_id_of, read_manifest
from wm.models.kinds import kind_of, reads_pixels
from wm.models.pixels.chats import PROMPT, process
from wm.models.pixels.model import load_pixel_base
from wm.nano.pixel_preset import PixelPreset
from wm.nano.train_language_model import PretrainSettings, sample_picks
from wm.nano.train_pixel_model import sample_captioned_pairs


def test_the_base_is_a_folder_as_any_other(tmp_path: Path) -> None:
    recipe = PretrainRecipe(out=str(tmp_path / "run"), reads="pixels", num_documents=64, max_steps=2, batch_size=4)
    record = run(recipe)
    folder = tmp_path / "run" / "model"
    manifest = read_manifest(folder)
    assert manifest is not None and (manifest.kind, manifest.codec_id, manifest.family) == ("base", "", "qwen3_vl")
    assert manifest.base_id == base_id_of(folder) and kind_of(folder) == "pixels" and reads_pixels(folder)
    assert (folder / "README.md").is_file() and not list((tmp_path / "run").glob("tmp*"))
    model = load_pixel_base(folder)
    assert record["counts"]["parameters"] == sum(weight.numel() for weight in model.module.parameters())
    # The chat of Qwen's release, with two images before the question.
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    assert model.prefix == f"<|im_start|>user\n{image}{image}{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    # A token a cell of the world, and no word that the vocabulary lacks.
    blank = np.zeros((48, 48, 3), np.uint8)
    ids = process(model.processor, [model.prefix], [[blank, blank]], padding_side="right")["input_ids"][0]
    tokenizer = model.processor.tokenizer
    assert (ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum() == 2 * 9
    assert tokenizer.unk_token_id not in ids and PixelPreset().side_px == 48
    inverse = load_inverse_model(folder)
    pair = [Observation.from_pixels(blank)]
    assert inverse.score(pair, pair, ["remove the red circle"])[0].num_tokens == 5


def test_documents_are_captioned_pairs_of_the_seed() -> None:
    ticks: list[int] = []
    documents = sample_captioned_pairs(5, 3, lambda: ticks.append(1))
    again = sample_captioned_pairs(3, 3, lambda: None)
    assert len(documents) == len(ticks) == 5
    for (first, second, text), (other, another, words) in zip(documents, again, strict=False):
        assert first.shape == second.shape == (48, 48, 3)
        assert np.array_equal(first, other) and np.array_equal(second, another) and text == words


def test_picks_are_those_of_the_seed() -> None:
    picks = torch.stack(list(sample_picks(10, PretrainSettings(steps=3, batch=4, seed=5))))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(picks, torch.stack([torch.randint(10, (4,), generator=generator) for _ in range(3)]))
