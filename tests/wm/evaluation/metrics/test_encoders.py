"""CLIP, DINO and BLIP against transformers' own forward, on tiny checkpoints in the released form."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, BlipForConditionalGeneration, CLIPModel, ViTModel

from tests.helpers.models_encoders import SIDE_PX, write_blip, write_clip, write_dino
from wm.errors import InputError
from wm.evaluation.metrics.encoders import load_blip, load_clip, load_dino

TEXTS = ["put the red cup on the table", "move a block", "take the blue cup " * 9]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "clip": write_clip(folder / "clip"),
        "dino": write_dino(folder / "dino"),
        "blip": write_blip(folder / "blip"),
    }


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(3)
    sizes = [(40, 60), (64, 48), (32, 32), (50, 33), (35, 90)]
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def check_batches(function, items):
    """Whatever the batches and the order, each item gets the same."""
    together, backwards = np.asarray(function(items)), np.asarray(function(items[::-1]))
    alone = np.concatenate([np.asarray(function([item])) for item in items])
    if together.dtype.kind == "f":
        np.testing.assert_allclose(backwards[::-1], together, atol=1e-6)
        np.testing.assert_allclose(alone, together, atol=1e-6)
    else:
        assert backwards[::-1].tolist() == alone.tolist() == together.tolist()


@torch.no_grad()
def test_clip_is_transformers_own(folders, images):
    encoder = load_clip(folders["clip"], batch_size=2)
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    pixels = AutoImageProcessor.from_pretrained(folders["clip"], backend="pil")(images=images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folders["clip"])(
        TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    result = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], **pixels)
    np.testing.assert_allclose(encoder.embed_images(images), result.image_embeds.numpy(), atol=1e-6)
    np.testing.assert_allclose(encoder.embed_texts(TEXTS), result.text_embeds.numpy(), atol=1e-6)
    check_batches(encoder.embed_images, images)
    check_batches(encoder.embed_texts, TEXTS)


@torch.no_grad()
def test_dino_is_transformers_own(folders, images):
    encoder = load_dino(folders["dino"], batch_size=2)
    model = ViTModel.from_pretrained(folders["dino"], add_pooling_layer=False).eval()
    # MagicBrush's protocol by hand: short side to 8/7 of the model's, bicubic, centre crop, ImageNet's figures.
    rows = []
    for image in images:
        short = round(SIDE_PX * 8 / 7)
        height, width = image.shape[:2]
        scaled = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        resized = np.array(Image.fromarray(image).resize(scaled, Image.Resampling.BICUBIC), np.float32) / 255
        top, left = (resized.shape[0] - SIDE_PX) // 2, (resized.shape[1] - SIDE_PX) // 2
        crop = resized[top : top + SIDE_PX, left : left + SIDE_PX]
        rows.append(((crop - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1))
    token = model(pixel_values=torch.tensor(np.stack(rows), dtype=torch.float32)).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(token, dim=-1).numpy()
    np.testing.assert_allclose(encoder.embed_images(images), expected, atol=1e-5)
    check_batches(encoder.embed_images, images)
    own = load_dino(folders["dino"], preparation="processor")
    pixels = AutoImageProcessor.from_pretrained(folders["dino"], backend="pil")(images=images, return_tensors="pt")
    token = model(**pixels).last_hidden_state[:, 0]
    expected = torch.nn.functional.normalize(token, dim=-1).numpy()
    np.testing.assert_allclose(own.embed_images(images), expected, atol=1e-6)
    assert own.digest != encoder.digest


@torch.no_grad()
def test_blip_captions_are_transformers_own(folders, images):
    captioner = load_blip(folders["blip"], batch_size=2)
    model = BlipForConditionalGeneration.from_pretrained(folders["blip"]).eval()
    processor = AutoImageProcessor.from_pretrained(folders["blip"], backend="pil")
    tokenizer = AutoTokenizer.from_pretrained(folders["blip"])
    expected = []
    for image in images:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"]
        tokens = model.generate(pixel_values=pixels, max_new_tokens=15, do_sample=False)
        expected.append(tokenizer.decode(tokens[0], skip_special_tokens=True).strip())
    captions = captioner.caption(images)
    assert captions == expected and all(captions)
    check_batches(captioner.caption, images)


def test_folders_of_another_kind_are_one_line(folders, tmp_path):
    for load, name, message in (
        (load_clip, "openai/clip-vit-base-patch32", "no such model folder: .*hf download openai/clip-vit-base-patch32"),
        (load_clip, folders["dino"], "holds a model of type 'vit'; expected clip"),
        (load_dino, folders["blip"], "holds a model of type 'blip'; expected vit or dinov2"),
        (load_blip, tmp_path, "no config.json in"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)


def test_code_missing_tensors_and_huge_sizes_are_refused(folders, tmp_path):
    for name, change, message in (
        ("code", {"auto_map": {"AutoModel": "model.Evil"}}, "auto_map"),
        ("huge", {"hidden_size": 1 << 14, "num_hidden_layers": 64}, "huge"),
        ("more", {"num_hidden_layers": 3}, "missing"),
    ):
        folder = tmp_path / name
        shutil.copytree(folders["dino"], folder)
        config = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message):
            load_dino(folder)
