"""The codec: its encoder against transformers', its decoder against one written out by tensor names."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.chameleon.image_processing_pil_chameleon import ChameleonImageProcessorPil

from wm.errors import InputError
from wm.models import change_map, load_codec
from wm.models.codec.codec import ImageCodec, PixelScale
from wm.models.codec.vqgan import VQGAN, ChannelNorm
from wm.nano.preset import TINY, build_codec

CONFIG = {
    "embed_dim": 8,
    "num_embeddings": 16,
    "latent_channels": 12,
    "resolution": 16,
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
}
"""Small, but with everything the released architecture has, and attention at one resolution besides."""


def randomise(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            elif "embedding" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return module


@pytest.fixture(scope="module")
def codec():
    torch.manual_seed(3)
    return ImageCodec(randomise(VQGAN(ChameleonVQVAEConfig(**CONFIG)), 3), PixelScale())


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (21, 16, 16, 3), dtype=np.uint8)


def reference_decode(weights, latent):
    """Taming's decoder from named tensors alone: conv_in, mid, then up levels from the last to the first."""

    def conv(name, x, padding=1):
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=padding)

    def norm(name, x):
        return F.group_norm(x, 32, weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)

    def swish(x):
        return x * torch.sigmoid(x)

    def resnet(name, x):
        h = conv(f"{name}.conv1", swish(norm(f"{name}.norm1", x)))
        h = conv(f"{name}.conv2", swish(norm(f"{name}.norm2", h)))
        return (conv(f"{name}.nin_shortcut", x, 0) if f"{name}.nin_shortcut.weight" in weights else x) + h

    def attend(name, x):
        q, k, v = (conv(f"{name}.{part}", norm(f"{name}.norm", x), 0).flatten(2) for part in "qkv")
        weight = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / x.shape[1] ** 0.5, -1)
        mixed = torch.einsum("bij,bcj->bci", weight, v).view_as(x)
        return x + conv(f"{name}.proj_out", mixed, 0)

    h = conv("decoder.conv_in", conv("post_quant_conv", latent, 0))
    h = resnet("decoder.mid.block_2", attend("decoder.mid.attn_1", resnet("decoder.mid.block_1", h)))
    for level in (2, 1, 0):
        for block in (0, 1):
            h = resnet(f"decoder.up.{level}.block.{block}", h)
            if level == 1:
                h = attend(f"decoder.up.1.attn.{block}", h)
        if level:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            h = conv(f"decoder.up.{level}.upsample.conv", h)
    return conv("decoder.conv_out", swish(norm("decoder.norm_out", h)))


def test_pixel_scale_is_transformers_own(pixels):
    processor = ChameleonImageProcessorPil(do_resize=False, do_center_crop=False)
    theirs = processor(list(pixels), return_tensors="pt")["pixel_values"]
    ours = PixelScale().apply(torch.as_tensor(pixels))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    assert float(PixelScale().apply(torch.full((1, 1, 1, 3), 255, dtype=torch.uint8)).max()) == pytest.approx(0.989)


def test_encoder_is_transformers_own(codec, pixels):
    released = ChameleonVQVAE(ChameleonVQVAEConfig(**CONFIG))
    report = released.load_state_dict(codec.vqgan.state_dict(), strict=False)
    assert report.missing_keys == []
    assert all(name.startswith("decoder.") for name in report.unexpected_keys)
    with torch.no_grad():
        output = released.encode(PixelScale().apply(torch.as_tensor(pixels)), return_dict=True)
        theirs_BDHW = released.quant_conv(output.last_hidden_state)
    codes_BN, features_BND = codec.encode_with_features(pixels)
    assert len(codes_BN.unique()) > 4
    assert torch.equal(codes_BN.flatten(), output.image_tokens.flatten())
    torch.testing.assert_close(features_BND, theirs_BDHW.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_codes_are_the_nearest_of_the_codebook(codec, pixels):
    codes_BN, features_BND = codec.encode_with_features(pixels)
    book_VD = codec.vqgan.quantize.embedding.weight.double()
    distance_BNV = (features_BND.double()[:, :, None] - book_VD).square().sum(-1)
    assert torch.equal(codes_BN, distance_BNV.argmin(-1))


def test_decoder_is_the_released_architecture(codec):
    codes_BN = torch.randint(0, 16, (3, 16), generator=torch.Generator().manual_seed(1))
    weights = {name: tensor.double() for name, tensor in codec.vqgan.state_dict().items()}
    latent = weights["quantize.embedding.weight"][codes_BN].transpose(1, 2).reshape(3, 8, 4, 4)
    expected = reference_decode(weights, latent)
    with torch.no_grad():
        ours = codec.vqgan.decode_features(codec.vqgan.quantize.embedding(codes_BN))
    torch.testing.assert_close(ours.double(), expected, atol=1e-4, rtol=1e-4)
    bytes_BHWC = ((expected.clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(codec.decode(codes_BN).astype(int) - bytes_BHWC).max() <= 1
    assert bytes_BHWC.std() > 5


def test_released_sizes_give_the_released_tensor_names():
    with torch.device("meta"):
        vqgan = VQGAN(ChameleonVQVAEConfig())
    shapes = {name: tuple(tensor.shape) for name, tensor in vqgan.state_dict().items()}
    assert shapes["decoder.conv_in.weight"] == (512, 256, 3, 3)
    assert shapes["decoder.mid.attn_1.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["decoder.up.4.upsample.conv.weight"] == (512, 512, 3, 3)
    assert shapes["decoder.up.0.block.2.conv2.weight"] == (128, 128, 3, 3)
    assert shapes["decoder.norm_out.weight"] == (128,)
    assert shapes["decoder.conv_out.weight"] == (3, 128, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert vqgan.side_tokens**2 == 1024


def test_codes_and_features_do_not_depend_on_the_company(codec, pixels):
    codes_BN, features_BND = codec.encode_with_features(pixels)
    for rows in ([4], [20, 4, 0], list(range(20, -1, -1))):
        codes, features = codec.encode_with_features(pixels[rows])
        assert torch.equal(codes, codes_BN[rows])
        assert torch.equal(features, features_BND[rows])


def test_empty_batches(codec):
    codes, features = codec.encode_with_features(np.zeros((0, 16, 16, 3), np.uint8))
    assert (codes.shape, features.shape) == ((0, 16), (0, 16, 8))
    assert codec.decode(codes).shape == (0, 16, 16, 3)


def test_change_is_the_squared_distance():
    source, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    brute = [[sum((t - s) ** 2 for s, t in zip(a, b, strict=True)) for a, b in zip(x, y, strict=True)]
             for x, y in zip(source.tolist(), target.tolist(), strict=True)]  # fmt: skip
    torch.testing.assert_close(change_map(source, target), torch.tensor(brute))
    with pytest.raises(InputError, match="differ in shape"):
        change_map(source, target[:1])


def test_channel_norm_looks_at_one_place(codec):
    norm = ChannelNorm(5)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5) + 1.0)
        norm.bias.copy_(torch.arange(5) - 2.0)
    hidden = torch.randn(2, 5, 3, 4)
    out = norm(hidden)
    for b, y, x in np.ndindex(2, 3, 4):
        vector = hidden[b, :, y, x].double()
        expected = (vector - vector.mean()) / (vector.var(unbiased=False) + 1e-6).sqrt()
        expected = expected * (torch.arange(5) + 1) + torch.arange(5) - 2
        torch.testing.assert_close(out[b, :, y, x].double(), expected, atol=1e-5, rtol=1e-5)
    local = VQGAN(ChameleonVQVAEConfig(**CONFIG, norm_over="channels"))
    local.load_state_dict(codec.vqgan.state_dict())  # same names, same shapes
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in local.modules())
    assert ImageCodec(local, PixelScale()).codec_id != codec.codec_id


def test_identity_follows_encoder_and_scale_but_not_decoder(codec):
    def identity(scale=None, **changes):
        vqgan = VQGAN(codec.vqgan.config)
        vqgan.load_state_dict(codec.vqgan.state_dict() | changes)
        return ImageCodec(vqgan, scale or PixelScale()).codec_id

    assert identity() == codec.codec_id
    assert identity(**{"decoder.conv_out.bias": torch.ones(3)}) == codec.codec_id
    assert identity(**{"quant_conv.bias": torch.ones(8)}) != codec.codec_id
    assert identity(PixelScale(rescale=2 / 255)) != codec.codec_id


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.full((1, 16), 16), r"code 16 is outside the codebook \[0, 16\)"),
        (np.full((1, 16), -1), "code -1 is outside"),
        (np.zeros((1, 15), np.uint16), r"expected integer codes \(B, 16\), got torch.uint16 \(1, 15\)"),
        (torch.zeros(1, 16), "expected integer codes"),
        (np.zeros(16, np.int64), r"got torch.int64 \(16,\)"),
        (np.zeros((1, 16)), "expected integer codes"),
    ],
)
def test_decode_refuses_bad_codes(codec, codes, message):
    with pytest.raises(InputError, match=message):
        codec.decode(codes)


@pytest.mark.parametrize("pixels", [np.zeros((1, 16, 15, 3), np.uint8), np.zeros((1, 16, 16, 3), np.float32),
                                    np.zeros((16, 16, 3), np.uint8)])  # fmt: skip
def test_encode_refuses_other_pixels(codec, pixels):
    with pytest.raises(InputError, match=r"expected uint8 pixels \(B, 16, 16, 3\)"):
        codec.encode(pixels)


def test_codec_loads_from_a_folder_what_was_saved(tiny_base):
    torch.manual_seed(1)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    first, second = load_codec(tiny_base), load_codec(tiny_base)
    assert first.codec_id == second.codec_id != build_codec(TINY).codec_id
    assert torch.equal(first.encode(pixels), second.encode(pixels))
    assert first.scale.rescale == 2 / 255
