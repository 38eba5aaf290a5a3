"""Emu3 (arXiv 2409.18869): one transformer over text and the codes of its own VQ model, which has a decoder.

An image is ``<|image start|> H*W <|image token|>``, H rows of W codes with ``<|extra_200|>`` after each,
``<|extra_201|> <|image end|>`` (transformers' ``Emu3Processor`` and ``Emu3ImageVocabularyMapping``, as the authors'
own processor). Size and row ends are given, neither learned nor sampled. Emu3 takes images of any size; a world model
needs one: the square of ``min_pixels`` in ``preprocessor_config.json`` (512 x 512 pixels, 64 x 64 codes in
transformers' defaults).
"""

import re
from collections.abc import Mapping
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from transformers import Emu3Config, Emu3ForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.emu3.configuration_emu3 import Emu3VQVAEConfig
from transformers.models.emu3.modeling_emu3 import Emu3VQVAE

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec, read_image_processor
from wm.models.codec.files import read_own_codec
from wm.models.codec.vqgan import VQModel
from wm.models.config_bounds import MAX_SIDE_PX
from wm.models.folder_writing import codec_tensors, write_image_processor, write_weights
from wm.models.folders import (
    Device,
    Family,
    read_config,
    read_module,
    read_tokenizer,
)
from wm.models.prompts import ImageFrame, SpecialIds
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import check_vocabulary, code_rows, text_rows, token_ids
from wm.models.weights import CODEC_PREFIX

RENAMES = (
    ("text_model.lm_head.", "lm_head."),
    ("text_model.model.", "model.text_model."),
    ("text_model.", "model.text_model."),
    ("vqmodel.", CODEC_PREFIX),
)
"""Names in folders written by older versions of transformers, the released ones among them."""
_RELEASED_NAMES = {
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "pad": "<|endoftext|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
    "image_wrapper": "<|image token|>",
    "eof": "<|extra_201|>",
    "eol": "<|extra_200|>",
}
_VISUAL = re.compile(r"<\|visual token (\d{6})\|>")


class Emu3VLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; both directions are supported."""

    family = "emu3"

    def __init__(self, module: Emu3ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, facts: Facts) -> None:
        where = str(facts.folder or "this tokenizer")
        vocabulary: dict[str, int] = dict(module.config.vocabulary_map or {}) or tokenizer.get_vocab()
        check_vocabulary(tokenizer, vocabulary, module.config.text_config.vocab_size)
        # By name: each release numbers its tokens anew.
        ids = token_ids(tokenizer, vocabulary, where, _RELEASED_NAMES)
        special = SpecialIds(**{role: ids[role] for role in ("bos", "eos", "pad", "boi", "eoi")})
        # Emu3 writes the size of an image before its codes, as text.
        side = isqrt(facts.tokens_per_image)
        size: list[int] = tokenizer(f"{side}*{side}", add_special_tokens=False)["input_ids"]
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=code_rows(vocabulary, facts.num_codes, _code_of, where),
            text_rows=text_rows(
                tokenizer, tokenizer.get_vocab(), special, module.config.text_config.vocab_size, ("<|",)
            ),
            frame=ImageFrame(
                opening=(special.boi, *size, ids["image_wrapper"]),
                closing=(ids["eol"], ids["eof"], special.eoi),
                row_tokens=side,
                row_end=ids["eol"],
            ),
        )

    @property
    def decoder(self) -> PreTrainedModel:
        """The text model, through which image codes pass as well."""
        return self.inner.model.text_model


def _code_of(name: str) -> int | None:
    match = _VISUAL.fullmatch(name)
    return int(match[1]) if match else None


class Emu3VQ(VQModel):
    """Emu3's VQ model for single images, under transformers' tensor names. A still is a video of
    ``temporal_downsample_factor`` equal frames, of which the first is kept."""

    def __init__(self, vq: Emu3VQVAE, side_px: int) -> None:
        super().__init__()
        self.take_parts(vq, side_px // vq.spatial_scale_factor, side_px, vq.config.codebook_size)
        self.frames: int = vq.config.temporal_downsample_factor

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return pre-quantised features (B, N, D), row-major."""
        # A still is a video of equal frames.
        frames_BTCHW = pixels_BCHW[:, None].repeat(1, self.frames, 1, 1, 1)
        hidden_BCTHW = self.encoder(frames_BTCHW).permute(0, 2, 1, 3, 4)
        features_BDTHW: Tensor = self.quant_conv(hidden_BCTHW)
        return features_BDTHW[:, :, 0].flatten(2).transpose(1, 2)

    def nearest(self, features_BND: Tensor) -> Tensor:
        """Return codebook ids (B, N)."""
        side = self.side_tokens
        # The quantiser takes videos: one frame is one.
        grid_BTDHW = features_BND.transpose(1, 2).reshape(len(features_BND), 1, -1, side, side)
        codes: Tensor = self.quantize(grid_BTDHW)
        return codes.flatten(1)

    def decode_features(self, quantised_BND: Tensor) -> Tensor:
        """Return pixels (B, 3, H, W) in [-1, 1] of code vectors (B, N, D)."""
        side = self.side_tokens
        quantised_BDTHW = quantised_BND.transpose(1, 2).reshape(len(quantised_BND), -1, 1, side, side).contiguous()
        # transformers has time before channels in the decoder, after them in the convolution.
        latent = self.post_quant_conv(quantised_BDTHW)
        frames: Tensor = self.decoder(latent.permute(0, 2, 1, 3, 4), quantised_BDTHW.permute(0, 2, 1, 3, 4))
        return frames.view(len(quantised_BND), self.frames, *frames.shape[1:])[:, 0]


def load_emu3(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> Emu3VLM:
    """Load a full folder, of this version of transformers or of older ones.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    config = read_config(folder, Emu3Config)
    module = read_module(
        folder, Emu3ForConditionalGeneration, config, device, dtype, without=(CODEC_PREFIX,), renames=RENAMES
    )
    return Emu3VLM(module, read_tokenizer(folder), facts)


def read_emu3_codec(folder: Path, device: Device, decoder: Path | None) -> ImageCodec:
    """Read the VQ model of a full folder.

    Args:
        folder: A full folder.
        device: Where to put the codec.
        decoder: Refused: the VQ model has one.
    """
    config = read_config(folder, Emu3Config).vq_config
    side = _side_px(folder, config)
    return read_own_codec(
        folder,
        lambda: Emu3VQ(Emu3VQVAE(config), side),
        family="emu3",
        prefixes=(CODEC_PREFIX, "vqmodel."),
        device=device,
        decoder=decoder,
    )


def emu3_codec_shape(folder: Path) -> tuple[int, int]:
    """Return tokens an image and codes, from the configurations."""
    config = read_config(folder, Emu3Config).vq_config
    side = _side_px(folder, config) // 2 ** (len(config.channel_multiplier) - 1)
    return side * side, config.codebook_size


def _side_px(folder: Path, config: Emu3VQVAEConfig) -> int:
    """Return the side of the images that the folder is made for."""
    # The smallest image that the processor lets pass is the one of the fewest tokens.
    pixels = read_image_processor(folder).get("min_pixels", 512 * 512)
    if type(pixels) is not int or not 0 < pixels <= MAX_SIDE_PX**2:
        raise InputError(f"{folder}: min_pixels is {pixels!r:.60}, expected a whole number up to {MAX_SIDE_PX**2:,}")
    # Codes need complete cells.
    side, factor = isqrt(pixels), 2 ** (len(config.channel_multiplier) - 1)
    if side * side != pixels or side % factor:
        raise InputError(f"{folder}: min_pixels is {pixels}, expected the square of a multiple of {factor}")
    return side


def write_emu3(vlm: Emu3VLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Model and VQ model in one file, as transformers does.

    Args:
        vlm: The model.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder.
    """
    write_weights(vlm, {**tensors, **codec_tensors(codec)}, folder)
    write_image_processor(
        codec.scale,
        folder,
        image_processor_type="Emu3ImageProcessor",
        processor_class="Emu3Processor",
        min_pixels=codec.side_px**2,
        max_pixels=codec.side_px**2,
    )


FAMILY = Family(load_emu3, read_emu3_codec, write_emu3, emu3_codec_shape)
