"""Chameleon and Anole (same architecture), with Chameleon's VQGAN beside the language model's weights.

transformers' own ``forward`` sets every image logit to the smallest number, so it can neither learn nor sample
images; here the inner model and the head are called directly and nothing is masked. Anole's training code (a fork of
an early transformers) has today's names, but the original's order of rows, which is changed as the folder is read.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast

from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import chameleon_codec_shape, read_codec
from wm.models.folder_writing import codec_tensors, write_image_processor, write_weights
from wm.models.folders import Device, Family, read_config, read_module, read_tokenizer
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import check_vocabulary, code_rows, special_ids, text_rows
from wm.models.weights import CODEC_PREFIX, StoredTensor, read_stored

BOI_TOKEN = "<racm3:break>"
EOI_TOKEN = "<eoss>"
_IMAGE_TOKEN = re.compile("IMGIMG([A-J]+)Z")
_RESERVED = ("IMGIMG", "<reserved", "<racm3", "<eoss", "<image>")
_DIGITS = str.maketrans("ABCDEFGHIJ", "0123456789")
_QUERY_OR_KEY = re.compile(r"model\.layers\.\d+\.self_attn\.([qk])_(proj|norm)\.(?:weight|bias)")


def image_token_name(code: int) -> str:
    """Return the vocabulary name of a codebook id: ``IMGIMG``, its decimal digits as letters A to J, ``Z``."""
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


def image_token_code(name: str) -> int | None:
    """Return the codebook id in a token's name; -1 for a name that looks so and is none, None for another token."""
    if not name.startswith("IMGIMG"):
        return None
    # A damaged name is reported, not passed over: its code would have no token.
    match = _IMAGE_TOKEN.fullmatch(name)
    return int(match[1].translate(_DIGITS)) if match else -1


class ChameleonVLM(UnifiedVLM):
    """See :class:`~wm.models.vlm.UnifiedVLM`; both directions are supported."""

    family = "chameleon"

    def __init__(
        self, module: ChameleonForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, facts: Facts
    ) -> None:
        where = str(facts.folder or "this tokenizer")
        vocabulary: dict[str, int] = module.config.vocabulary_map
        # The released tokenizers' own boi_token, where there is one, has the same name.
        special = special_ids(
            tokenizer, vocabulary, where, bos="<s>", eos="</s>", pad="<pad>", boi=BOI_TOKEN, eoi=EOI_TOKEN
        )
        check_vocabulary(tokenizer, vocabulary, module.config.vocab_size)
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=code_rows(vocabulary, facts.num_codes, image_token_code, where),
            text_rows=text_rows(tokenizer, vocabulary, special, module.config.vocab_size, _RESERVED),
        )


def load_chameleon(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> ChameleonVLM:
    """Load a full folder.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    config: ChameleonConfig = read_config(folder, ChameleonConfig)
    module = read_module(
        folder,
        ChameleonForConditionalGeneration,
        config,
        device,
        dtype,
        without=(CODEC_PREFIX,),
        adapt=partial(_pairs_to_halves, config),
    )
    return ChameleonVLM(module, read_tokenizer(folder), facts)


def write_chameleon(vlm: ChameleonVLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write model and VQGAN in one file; the decoder is beside the tensors that transformers knows, as in Anole.

    Args:
        vlm: The model.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder.
    """
    write_weights(vlm, {**tensors, **codec_tensors(codec)}, folder)
    write_chameleon_processor(codec, folder)


def write_chameleon_processor(codec: ImageCodec, folder: Path) -> None:
    """Write the image processor's configuration, as transformers' class of Chameleon reads it.

    Args:
        codec: Says the images' side and the pixels' scale.
        folder: An existing folder.
    """
    write_image_processor(
        codec.scale,
        folder,
        image_processor_type="ChameleonImageProcessor",
        processor_class="ChameleonProcessor",
        do_convert_rgb=True,
        do_resize=True,
        size={"shortest_edge": codec.side_px},
        resample=1,
        do_center_crop=True,
        crop_size={"height": codec.side_px, "width": codec.side_px},
        do_rescale=True,
        do_normalize=True,
    )


def half_split(weight_XD: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from pairs to halves.

    Rotary positions turn neighbouring pairs (2i, 2i + 1) of a head in the original, and pairs (i, i + d/2) in
    transformers.

    Args:
        weight_XD: (heads * head width, D), or biases as (…, 1).
        heads: Number of heads.

    Returns:
        The rows 0, 2, …, 1, 3, … of each head.
    """
    rows, width = weight_XD.shape
    return weight_XD.reshape(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def _pairs_to_halves(config: ChameleonConfig, locations: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Give tensors as Anole's training code saves them today's order and shapes; others stay as they are.

    That code has one norm for all heads, (K,) instead of (H, K), by which it is recognised.
    """
    head = config.hidden_size // config.num_attention_heads
    # The first layer speaks for all: one program has written them.
    first_norm = locations.get("model.layers.0.self_attn.q_norm.weight")
    if first_norm is None or first_norm.shape != (head,):
        return dict(locations)
    # Grouped keys have fewer heads than queries.
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads or config.num_attention_heads}
    changed = dict(locations)
    for name, location in locations.items():
        match = _QUERY_OR_KEY.fullmatch(name)
        if match is None or not location.shape or location.shape[0] % (head if match[2] == "norm" else heads[match[1]]):
            continue  # what does not fit is reported by the check of shapes
        count = heads[match[1]]
        shape = (count, head) if match[2] == "norm" else location.shape
        changed[name] = replace(location, shape=shape, make=_reordering(name, location, match[2], count))
    return changed


def _reordering(name: str, location: StoredTensor, kind: str, heads: int) -> Callable[[], Tensor]:
    # Read when it is asked for: all layers at once would fill the memory.
    def make() -> Tensor:
        (_, tensor), *_ = read_stored({name: location})
        if kind == "norm":
            return half_split(tensor[:, None], 1).T.repeat(heads, 1)
        return half_split(tensor, heads)

    return make


FAMILY = Family(load_chameleon, read_codec, write_chameleon, chameleon_codec_shape)
