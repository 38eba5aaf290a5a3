"""Folders of pixel-reading inverse models: adapters of their base, and what is refused before the weights are read."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Qwen3VLForConditionalGeneration

from tests.helpers.models_vlms import write_llava
from tests.helpers.models_vlms_new import write_qwen3_vl
from wm.dynamics.loading import kind_of, load_inverse_model
from wm.dynamics.observation import Observation, pixels_of
from wm.dynamics.pixel_inverse import PixelInverse, load_pixel_inverse
from wm.errors import InputError
from wm.models import Manifest, base_id_of
from wm.models.identity import fingerprint_of
from wm.models.manifest import name_base
from wm.sampling.texts import GREEDY

ACTIONS = ["move", "put the cup down"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "base"
    write_qwen3_vl(folder)
    return folder


@pytest.fixture(scope="module")
def images():
    generator = np.random.default_rng(3)
    return [Observation.from_pixels(generator.integers(0, 256, (24, 16, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def foreign(base):
    """An adapter as plain PEFT writes it, of the decoder and the vision encoder."""
    folder = base.parent / "foreign"
    model = Qwen3VLForConditionalGeneration.from_pretrained(base)
    # Seeded, and away from its start, where it adds nothing.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "qkv"], init_lora_weights=False)
        get_peft_model(model, settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, foreign):
    """The same as training writes it, with a manifest."""
    folder = base.parent / "adapter"
    shutil.copytree(foreign, folder)
    Manifest(
        family="qwen3_vl", kind="adapter", base_id=base_id_of(base), codec_id="", task="idm", recipe_digest="abc",
        base_path=name_base(base, folder),
    ).write(folder)  # fmt: skip
    return folder


def test_an_adapter_scores_as_in_plain_peft(base, adapter, foreign, images):
    inverse = load_pixel_inverse(adapter, dtype=torch.float64)
    scores = [score.logprob for score in inverse.score([images[0]] * 2, images[1:], ACTIONS)]
    plain = load_pixel_inverse(base, dtype=torch.float64)
    bare = [score.logprob for score in plain.score([images[0]] * 2, images[1:], ACTIONS)]
    adapted = PeftModel.from_pretrained(plain.scorer.model, foreign).double().eval()
    for score, target, action in zip(scores, images[1:], ACTIONS, strict=True):
        text = f"{plain.scorer.prefix}{action}</s>"
        inputs = plain.scorer.processor(text=[text], images=[pixels_of([images[0], target])], return_tensors="pt")
        count = len(action.split()) + 1
        with torch.no_grad():
            logits_TV = adapted(**inputs | {"pixel_values": inputs["pixel_values"].double()}).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits_TV[-count - 1 : -1], inputs["input_ids"][0, -count:], reduction="sum"
        )
        assert score == pytest.approx(-float(loss), abs=1e-9)
    assert abs(scores[0] - bare[0]) > 1e-3
    # Merged: nothing of PEFT is left in the way.
    assert type(inverse.scorer.model) is Qwen3VLForConditionalGeneration
    assert inverse.model_id == f"{base_id_of(base)}/abc"
    assert plain.model_id == base_id_of(base)


def test_an_adapter_of_another_program_needs_its_base(base, adapter, foreign, images):
    assert (kind_of(adapter), kind_of(foreign, base), kind_of(base)) == ("pixels", "pixels", "pixels")
    ours = load_inverse_model(adapter, dtype=torch.float64)
    theirs = load_inverse_model(foreign, base=base, dtype=torch.float64)
    assert isinstance(theirs, PixelInverse)
    first, second = (model.score(images[:1], images[1:2], ["move"])[0].logprob for model in (ours, theirs))
    assert first == pytest.approx(second, abs=1e-12)
    # Named by its weights, as it has no recipe.
    assert theirs.model_id.startswith(f"{base_id_of(base)}/")
    assert theirs.model_id != ours.model_id
    with pytest.raises(InputError, match=r"adapter .*foreign does not say where its base is; give base="):
        load_pixel_inverse(foreign)
    with pytest.raises(InputError, match="is an adapter itself, expected a full model folder"):
        load_pixel_inverse(foreign, base=adapter)
    with pytest.raises(InputError, match=r"base is no adapter .*, so base=.*adapter cannot be used"):
        load_pixel_inverse(base, base=adapter)


def test_an_adapter_of_another_base_is_refused_with_both_names(base, adapter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    tensors = load_file(other / "model.safetensors")
    tensors["lm_head.weight"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"trained on base {base_id_of(base)}, but .*other is {base_id_of(other)}"):
        load_pixel_inverse(adapter, base=other)
    assert len(fingerprint_of({}, {})) == 16
    # Half of an adapter would be started at random.
    half = tmp_path / "half"
    shutil.copytree(adapter, half)
    tensors = load_file(half / "adapter_model.safetensors")
    save_file(dict(list(tensors.items())[1:]), half / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"tensors do not fit the (adapter's )?configuration; (1 )?missing"):
        load_pixel_inverse(half, base=base)
    (half / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no adapter_model\.safetensors in .*half \(pickled weights are never read\)"):
        load_pixel_inverse(half, base=base)


def broken(base, tmp_path, change):
    """A copy without weights: what is refused is refused before they are read."""
    folder = tmp_path / "broken"
    shutil.copytree(base, folder)
    (folder / "model.safetensors").unlink()
    change(folder)
    return folder


def edit(name, **values):
    def change(folder):
        file = folder / name
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def write_template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template, which the question"),
        (write_template("one <|image_pad|>"), r"the chat template writes 1 of the two images \(as '<\|image_pad\|>'\)"),
        (write_template("{{ messages[0].content[2].text }}"), "the chat template writes 0 of the two images"),
        (edit("config.json", auto_map={"AutoModel": "m.M"}), "auto_map = .* names code of the folder's own"),
        (edit("preprocessor_config.json", auto_map={"A": "m.M"}), "auto_map = .* names code of the folder's own"),
        (edit("tokenizer_config.json", eos_token=None), "the tokenizer names no end-of-sequence token"),
        (edit("preprocessor_config.json", size={"shortest_edge": 0, "longest_edge": 0}), "does not take two images"),
    ],
)
def test_unusable_folders_are_refused_before_their_weights(base, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_pixel_inverse(broken(base, tmp_path, change))


def test_another_models_processor_is_refused(base, tmp_path):
    for number, values in enumerate(({"patch_size": 8}, {"merge_size": 1})):
        folder = tmp_path / str(number)
        shutil.copytree(base, folder)
        edit("preprocessor_config.json", **values)(folder)
        with pytest.raises(InputError, match=r"cannot read what its processor makes of two images .*another model's"):
            load_pixel_inverse(folder)


def test_chats_longer_than_the_models_positions_are_refused(base, images, tmp_path):
    inverse = load_pixel_inverse(base)
    fitting = inverse.score(images[:1], images[1:2], ["move " * 300])[0]
    assert fitting.num_tokens == 301
    with pytest.raises(InputError, match=r"an action of 501 tokens: .* the model has 512 positions"):
        inverse.score(images[:1], images[1:2], ["move " * 500])
    with pytest.raises(InputError, match=r"an action of 500 tokens: .* 5\d\d positions are needed, .* has 512"):
        inverse.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0], max_new_tokens=500)
    shutil.copytree(base, tmp_path / "short")
    config = json.loads((base / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 32
    (tmp_path / "short" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"both images and the question are 5\d tokens, .* 32 positions"):
        load_pixel_inverse(tmp_path / "short")
    # As with larger images than those that it was tried with; the plain way too.
    inverse.scorer.model.config.text_config.max_position_embeddings = 40
    for model in (inverse, PixelInverse(inverse.scorer)):
        with pytest.raises(InputError, match="no action fits behind them; give smaller images"):
            model.propose(images[:1], images[1:2], sampling=GREEDY, seeds=[0])
        with pytest.raises(InputError, match="no action fits behind them; give smaller images"):
            model.score(images[:1], images[1:2], ["move"])


def test_images_that_the_processor_does_not_take_are_named(base, images):
    inverse = load_pixel_inverse(base)
    strip = Observation.from_pixels(np.zeros((400, 1, 3), np.uint8))
    for model in (inverse, PixelInverse(inverse.scorer)):
        with pytest.raises(InputError, match="images of 1 x 400, 16 x 24 pixels: the processor does not take"):
            model.score(images[:1], [strip], ["move"])
        with pytest.raises(InputError, match="the processor does not take them"):
            model.propose([strip], images[:1], sampling=GREEDY, seeds=[0])
    # What was asked before is answered as before.
    assert inverse.score(images[:1], images[1:2], ["move"])[0].num_tokens == 2


def test_devices_and_types_are_checked_first(tmp_path):
    folder = tmp_path / "nothing"
    with pytest.raises(InputError, match="device = 'gpu'"):
        load_pixel_inverse(folder, device="gpu")
    with pytest.raises(InputError, match=r"dtype = torch\.int8: expected float32, bfloat16 or float16"):
        load_pixel_inverse(folder, dtype=torch.int8)
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="device = 'cuda': there is no GPU here"):
            load_pixel_inverse(folder, device="cuda")


def test_bad_actions_and_numbers_are_named(base, images, tmp_path):
    inverse = load_pixel_inverse(base)
    for action, message in ((" ", "action ' ' is empty"), ("put </s> down", "holds a special token of the model")):
        with pytest.raises(InputError, match=message):
            inverse.check_action(action)
        with pytest.raises(InputError, match=message):
            inverse.score(images[:2], images[1:], ["move", action])
    inverse.check_action("move the cup")
    with pytest.raises(InputError, match="2 sources, 1 targets, 2 actions"):
        inverse.score(images[:2], images[1:2], ACTIONS)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        inverse.score(images[:1], images[1:2], ["move"], batch_size=0)
    assert inverse.score([], [], []) == []
    # Weights of NaN are found while the folder is tried.
    folder = tmp_path / "nan"
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].fill_(float("nan"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="log-probabilities are nan or infinite; its weights are damaged"):
        load_pixel_inverse(folder)


def test_other_types_of_weights_score_alike(base, images):
    exact = load_pixel_inverse(base, dtype=torch.float64).score([images[0]] * 2, images[1:], ACTIONS)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.5)):
        inverse = load_pixel_inverse(base, dtype=dtype)
        assert inverse.shortcuts.shares_prefix
        scores = inverse.score([images[0]] * 2, images[1:], ACTIONS)
        for score, expected in zip(scores, exact, strict=True):
            assert score.logprob == pytest.approx(expected.logprob, abs=tolerance)


@pytest.mark.soak  # the folders of all classes are read in test_pixel_inverse
def test_a_model_whose_folder_is_llavas_is_read_alike(tmp_path, images):
    write_llava(tmp_path / "llava")
    inverse = load_inverse_model(tmp_path / "llava")
    assert (inverse.kind, inverse.model_id.split("-")[0]) == ("pixels", "llava")
    assert inverse.score(images[:1], images[1:2], ["move"])[0].num_tokens == 2
