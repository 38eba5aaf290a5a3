"""``vqgan.ckpt`` and ``vqgan.yaml``: codes, features and pixels of the plain reference, and decoders from elsewhere."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.helpers.models_release import (
    NUM_CODES,
    PlainVqgan,
    convert,
    random_model,
    random_vqgan,
    vqgan_yaml,
    write_release,
)
from wm.errors import InputError
from wm.models import load_codec, load_model, read_manifest, save_model


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_release(tmp_path_factory.mktemp("release") / "original", random_model())


@pytest.fixture
def release(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "original")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def plain():
    return PlainVqgan(random_vqgan())


@pytest.fixture
def without_decoder(release, tmp_path):
    """The Hugging Face copy as transformers' own conversion leaves it."""
    folder = tmp_path / "hf"
    convert(release, folder)
    edit(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".decoder." in name])
    (folder / "wm_model.json").unlink()
    return folder


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def as_uint8(pixels_BCHW):
    return ((pixels_BCHW.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def test_codes_features_and_pixels_are_the_references(pristine, pixels, plain):
    codec = load_codec(pristine / "tokenizer")
    codes_BN, features_BND = codec.encode_with_features(pixels)
    expected_BND = plain.features(pixels)
    torch.testing.assert_close(features_BND.double(), expected_BND, atol=1e-4, rtol=1e-4)
    assert torch.equal(codes_BN, plain.codes(expected_BND))
    assert len(codes_BN.unique()) > NUM_CODES // 2
    decoded = codec.decode(codes_BN)
    expected = as_uint8(plain.pixels(codes_BN))
    assert expected.std() > 5
    assert np.abs(decoded.astype(int) - expected).max() <= 1  # a value just at a half may fall to either side
    assert (decoded != expected).mean() < 1e-2


def test_in_float64_it_is_the_reference_to_rounding(pristine, pixels, plain):
    codec = load_codec(pristine / "tokenizer")
    codec.vqgan.double()
    scaled = torch.as_tensor(pixels).double().permute(0, 3, 1, 2) / 255 * 2 - 1
    features_BND = codec.vqgan.features(scaled)
    torch.testing.assert_close(features_BND, plain.features(pixels), atol=1e-11, rtol=1e-11)
    codes_BN = codec.vqgan.nearest(features_BND)
    assert torch.equal(codes_BN, plain.codes(features_BND))
    ours = codec.vqgan.decode_features(codec.vqgan.quantize.embedding(codes_BN))
    torch.testing.assert_close(ours, plain.pixels(codes_BN), atol=1e-11, rtol=1e-11)


def test_every_path_to_a_checkpoint_is_the_same_codec(release, tmp_path, pixels):
    codec = load_codec(release / "tokenizer")
    assert load_codec(convert(release, tmp_path / "hf")).codec_id == codec.codec_id
    other = load_codec(release / "tokenizer/vqgan.ckpt")
    assert (other.codec_id, other.decoder_id) == (codec.codec_id, codec.decoder_id)
    assert torch.equal(other.encode(pixels), codec.encode(pixels))
    with pytest.raises(InputError, match=r"is an original release of Chameleon .*run `wm convert release="):
        load_codec(release)
    shutil.rmtree(release / "models")
    (release / "tokenizer/text_tokenizer.json").unlink()
    assert load_codec(release / "tokenizer").codec_id == codec.codec_id
    with pytest.raises(InputError, match=r"no params.json and consolidated\*.pth .*codec alone is .*tokenizer"):
        load_codec(release)


def test_tensors_of_training_are_ignored_by_name(pristine):
    assert load_codec(pristine / "tokenizer").ignored == ("loss.logvar", "loss.perceptual_loss.lin0.model.1.weight")


def test_identities_cover_encoder_codebook_and_decoder(release):
    codec = load_codec(release / "tokenizer")
    file = release / "tokenizer/vqgan.ckpt"
    for name, same_codes in (
        ("encoder.mid.attn_1.k.bias", False),
        ("quantize.embedding.weight", False),
        ("decoder.up.0.block.1.conv2.bias", True),
    ):
        tensors = random_vqgan()
        tensors[name][0] += 1e-3
        torch.save({"state_dict": tensors}, file)
        other = load_codec(release / "tokenizer")
        assert (other.codec_id == codec.codec_id) == same_codes
        assert other.decoder_id != codec.decoder_id


def test_conversion_keeps_the_codec_to_the_bit(release, tmp_path, pixels):
    codec = load_codec(release / "tokenizer")
    copy = load_codec(convert(release, tmp_path / "copy"))
    assert (copy.codec_id, copy.decoder_id) == (codec.codec_id, codec.decoder_id)
    codes_BN, features_BND = codec.encode_with_features(pixels)
    again_BN, again_BND = copy.encode_with_features(pixels)
    assert torch.equal(codes_BN, again_BN)
    assert torch.equal(features_BND, again_BND)
    assert np.array_equal(codec.decode(codes_BN), copy.decode(codes_BN))


def test_a_decoder_from_a_separate_file(without_decoder, release, tmp_path, pixels):
    blind = load_codec(without_decoder)
    complete = load_codec(release / "tokenizer")
    assert (blind.has_decoder, blind.decoder_id) == (False, None)
    codes_BN = blind.encode(pixels)
    message = rf"{without_decoder} holds no model.vqmodel.decoder.* weights.*put the release's tokenizer/vqgan.ckpt"
    with pytest.raises(InputError, match=message):
        blind.decode(codes_BN)
    expected = complete.decode(codes_BN)
    for decoder in (release, release / "tokenizer", release / "tokenizer/vqgan.ckpt"):
        codec = load_codec(without_decoder, decoder=decoder)
        assert (codec.codec_id, codec.decoder_id) == (blind.codec_id, complete.decoder_id)
        assert np.array_equal(codec.decode(codes_BN), expected)
    save_model(load_model(without_decoder), tmp_path / "given", codec=load_codec(without_decoder, decoder=release))
    assert np.array_equal(load_codec(tmp_path / "given").decode(codes_BN), expected)
    shutil.copy(release / "tokenizer/vqgan.ckpt", without_decoder)
    codec_inside = load_codec(without_decoder)
    assert np.array_equal(codec_inside.decode(codes_BN), expected)
    assert load_model(without_decoder).codec_id == blind.codec_id
    save_model(load_model(without_decoder), tmp_path / "complete")
    assert read_manifest(tmp_path / "complete").decoder_id == complete.decoder_id
    assert np.array_equal(load_codec(tmp_path / "complete").decode(codes_BN), expected)


def test_a_decoder_fits_a_folder_rounded_to_a_shorter_type(without_decoder, release, pixels):
    def shorten(tensors):
        for name in tensors:
            if name.startswith("model.vqmodel."):
                tensors[name] = tensors[name].bfloat16()

    edit(without_decoder, shorten)
    rounded = load_codec(without_decoder)
    assert rounded.codec_id != load_codec(release / "tokenizer").codec_id
    codec = load_codec(without_decoder, decoder=release)
    assert codec.codec_id == rounded.codec_id
    codec.decode(codec.encode(pixels))


def test_another_codecs_decoder_is_refused(without_decoder, release):
    other = random_vqgan(seed=1)
    torch.save({"state_dict": other}, release / "tokenizer/vqgan.ckpt")
    message = rf"the decoder in .*vqgan.ckpt belongs to another codec than {without_decoder}: \S+ differs"
    with pytest.raises(InputError, match=message):
        load_codec(without_decoder, decoder=release)
    # Without its encoder, a checkpoint cannot be compared but for the layer between codebook and decoder.
    lone = {name: tensor for name, tensor in other.items() if name.startswith(("decoder.", "post_quant_conv."))}
    torch.save({"state_dict": lone}, release / "tokenizer/vqgan.ckpt")
    with pytest.raises(InputError, match=r"post_quant_conv.\w+ differs"):
        load_codec(without_decoder, decoder=release)
    no_decoder = {name: tensor for name, tensor in random_vqgan().items() if not name.startswith("decoder.")}
    torch.save(no_decoder, release / "tokenizer/vqgan.ckpt")
    with pytest.raises(InputError, match=r"vqgan.ckpt holds no decoder.\* weights"):
        load_codec(without_decoder, decoder=release)
    (release / "tokenizer/vqgan.yaml").write_text(yaml.safe_dump(vqgan_yaml(resolution=32)))
    torch.save({"state_dict": random_vqgan()}, release / "tokenizer/vqgan.ckpt")
    with pytest.raises(InputError, match=r"vqgan.yaml is of another codec than .*: resolution is 32, not 16"):
        load_codec(without_decoder, decoder=release)
    with pytest.raises(InputError, match=r"no vqgan.ckpt in .*hf"):
        load_codec(without_decoder, decoder=without_decoder)
    shutil.copy(release / "tokenizer/vqgan.ckpt", without_decoder)
    (without_decoder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no weights in .*hf: expected one of model.safetensors"):
        load_codec(without_decoder)


def test_a_manifest_binds_the_decoder(release, tmp_path):
    convert(release, tmp_path / "copy")

    def retrain(tensors):
        tensors["model.vqmodel.decoder.conv_out.bias"] += 1

    edit(tmp_path / "copy", retrain)
    with pytest.raises(InputError, match=r"codec and decoder vqd-\w+, but those here are vqd-\w+; give decoder="):
        load_codec(tmp_path / "copy")
    bound = read_manifest(tmp_path / "copy").decoder_id
    assert load_codec(tmp_path / "copy", decoder=release).decoder_id == bound
    edit(tmp_path / "copy", lambda tensors: tensors["model.vqmodel.quant_conv.bias"].add_(1))
    with pytest.raises(InputError, match="was made with image codec"):
        load_codec(tmp_path / "copy")


def test_all_unfitting_tensors_are_one_error(release):
    tensors = random_vqgan()
    del tensors["encoder.mid.attn_1.k.bias"]
    tensors["quant_conv.bias"] = torch.zeros(9)
    tensors["colorize"] = torch.zeros(3, 1)
    torch.save({"state_dict": tensors}, release / "tokenizer/vqgan.ckpt")
    with pytest.raises(InputError) as error:
        load_codec(release / "tokenizer")
    assert str(error.value) == (
        f"{release / 'tokenizer/vqgan.ckpt'}: tensors do not fit the configuration; "
        "1 missing: encoder.mid.attn_1.k.bias (expected (64,)); 1 misshapen: quant_conv.bias (9,) not (8,); "
        "1 extra: colorize (3, 1)"
    )


def test_lightning_checkpoints_say_how_to_rewrite_them(release):
    file = release / "tokenizer/vqgan.ckpt"
    torch.save({"state_dict": random_vqgan(), "callbacks": {"best": np.random.default_rng(0)}}, file)
    with pytest.raises(InputError, match=r"vqgan.ckpt holds Python objects besides tensors.*rewrite it once with `c ="):
        load_codec(release / "tokenizer")
    torch.save({"weights": 3}, file)
    with pytest.raises(InputError, match=r"vqgan.ckpt: expected tensors only, but 'weights' is a int"):
        load_codec(release / "tokenizer")
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, file)
    with pytest.raises(InputError, match=r"is no VQGAN checkpoint: expected state_dict with encoder"):
        load_codec(release / "tokenizer")
    torch.save({"state_dict": [1]}, file)
    with pytest.raises(InputError, match=r"state_dict is a list, expected a dictionary"):
        load_codec(release / "tokenizer")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"double_z": True}, "ddconfig.double_z is True, expected False"),
        ({"out_ch": 1}, "ddconfig.out_ch is 1, expected 3"),
        ({"attn_type": "linear"}, "ddconfig.attn_type is 'linear', expected 'vanilla' or 'none'"),
        ({"ch_mult": "1,1"}, "channel_multiplier is '1,1', expected whole numbers"),
        ({"ch": 0}, "base_channels is 0, expected whole numbers"),
        ({"ch": 48}, r"describes no image codec: num_channels \(48\) must be divisible"),
        ({"ch_mult": []}, "channel_multiplier is .., expected whole numbers"),
        ({"num_res_blocks": 2}, r"48 missing: decoder.up.0.block.2.conv1.bias \(expected \(32,\)\)"),
        ({"ch_mult": [1, 2, 2]}, r"\d+ misshapen"),
        ({"z_channels": 32}, r"misshapen: decoder.conv_in.weight \(64, 64, 3, 3\) not \(64, 32, 3, 3\)"),
        ({"attn_resolutions": [8]}, r"missing: decoder.up.1.attn.0"),
        ({"attn_type": "none"}, r"20 extra: decoder.mid.attn_1"),
    ],
)
def test_the_yaml_is_checked_against_the_tensors(release, changes, message):
    (release / "tokenizer/vqgan.yaml").write_text(yaml.safe_dump(vqgan_yaml(**changes)))
    with pytest.raises(InputError, match=message):
        load_codec(release / "tokenizer")


@pytest.mark.parametrize("text", ["", "model: 3", "model: {params: {}}", "a: [", "model: {params: {embed_dim: 8}}"])
def test_a_yaml_that_is_none(release, text):
    (release / "tokenizer/vqgan.yaml").write_text(text)
    with pytest.raises(InputError, match=r"vqgan.yaml"):
        load_codec(release / "tokenizer")


def test_the_yaml_runs_nothing(release, tmp_path):
    (release / "tokenizer/vqgan.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'sprung'}']")
    with pytest.raises(InputError, match=r"vqgan.yaml: expected model.params"):
        load_codec(release / "tokenizer")
    assert not (tmp_path / "sprung").exists()


def test_a_remapped_codebook_is_not_supported(release):
    values = vqgan_yaml()
    values["model"]["params"]["remap"] = "used.npy"
    (release / "tokenizer/vqgan.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(InputError, match=r"remap is 'used.npy'"):
        load_codec(release / "tokenizer")


def test_a_scale_beside_the_checkpoint_comes_first(release, pixels):
    before = load_codec(release / "tokenizer")
    values = {"rescale_factor": 0.0078, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
    (release / "tokenizer/preprocessor_config.json").write_text(json.dumps(values))
    after = load_codec(release / "tokenizer")
    assert (before.scale.rescale, after.scale.rescale) == (2 / 255, 0.0078)
    assert after.codec_id != before.codec_id


def test_a_scale_as_newer_processors_save_it(without_decoder):
    values = json.loads((without_decoder / "preprocessor_config.json").read_text())
    before = load_codec(without_decoder).codec_id
    (without_decoder / "preprocessor_config.json").unlink()
    assert load_codec(without_decoder).codec_id != before
    (without_decoder / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert load_codec(without_decoder).codec_id == before
