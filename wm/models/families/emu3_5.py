"""Emu3.5 (arXiv 2510.26583): a Qwen3-shaped decoder over words and the codes of its IBQ tokenizer.

Sources are files of github.com/baaivision/Emu3.5, which is not needed. The decoder is
``src/emu3p5/modeling_emu3.py``: RMS norms of queries and keys by head, as transformers' Qwen3, whose tensor names it
has. The image tokenizer is ``src/vision_tokenizer``: taming-transformers' encoder and decoder, and a code is the one
of the largest inner product. An image is ``<|image start|> H*W <|image token|>``, H rows of W codes with
``<|extra_200|>`` between, ``<|image end|>`` (``format_image_string`` in ``src/utils/input_utils.py``), and a code is
16 x 16 pixels. Words are tiktoken's (``src/tokenizer_emu3_ibq/tokenization_emu3.py``): ``emu3.tiktoken``, 208 special
tokens, then the lines of ``emu3_vision_tokens.txt``.

The release ``BAAI/Emu3.5`` holds the language model; ``BAAI/Emu3.5-VisionTokenizer`` is in the folder ``ibq``. A world
model needs one size of images: the ``size`` in ``preprocessor_config.json``, 512 px without it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec
from wm.models.codec.movq import IBQ
from wm.models.codec.shaped import read_scale, read_shaped_codec, read_side
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.folder_writing import write_image_processor, write_tensors, write_weights
from wm.models.folders import Device, Family, read_config, read_module, read_tokenizer
from wm.models.missing import explain_missing_ibq
from wm.models.prompts import ImageFrame, SpecialIds, drop_text
from wm.models.tiktoken_files import read_lines, read_tiktoken
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.vocabulary import code_rows, text_rows, token_ids

CODEC_FOLDER = "ibq"
SIDE_PX, CODE_PX, CODES = 512, 16, 131_072
"""Side of an image where the folder says none, side of a code, and codes of the released tokenizer."""
RANKS, VISION_TOKENS = "emu3.tiktoken", "emu3_vision_tokens.txt"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""``PAT_STR`` of the authors' tokenizer."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205)))
_NAMES = {
    "bos": "<|extra_203|>",
    "eos": "<|extra_204|>",
    "pad": "<|endoftext|>",
    "boi": "<|image start|>",
    "eoi": "<|image end|>",
    "image_wrapper": "<|image token|>",
    "eol": "<|extra_200|>",
}
"""Roles as ``build_emu3p5`` in ``src/utils/model_utils.py`` gives them."""
_VISUAL = re.compile(r"<\|visual token (\d{6})\|>")
_KEYS = {
    "vocab_size": 184_622,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 9216,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 1e6,
    "rope_scaling": None,
    "pad_token_id": 151_643,
    "bos_token_id": 151_849,
    "eos_token_id": 151_850,
}
"""Keys of the authors' configuration that decide the decoder, with the defaults of their class."""


class Emu35VLM(UnifiedVLM):
    """See :class:`~wm.models.UnifiedVLM`; both directions are supported."""

    family = "emu3_5"

    def __init__(self, module: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, facts: Facts) -> None:
        where, side = str(facts.folder or "this tokenizer"), round(facts.tokens_per_image**0.5)
        vocabulary, num_rows = tokenizer.get_vocab(), module.config.vocab_size
        # An id beyond the rows would end a GPU's process at the first pass.
        if max(vocabulary.values()) >= num_rows:
            raise InputError(f"{where}: the tokenizer has {max(vocabulary.values()) + 1:,} ids, the model {num_rows:,}")
        ids = token_ids(tokenizer, vocabulary, where, _NAMES)
        special = SpecialIds(**{role: ids[role] for role in ("bos", "eos", "pad", "boi", "eoi")})
        # The size of an image is written before its codes, as text.
        size: list[int] = tokenizer(f"{side}*{side}", add_special_tokens=False)["input_ids"]
        super().__init__(
            module,
            tokenizer,
            facts,
            special=special,
            image_rows=code_rows(vocabulary, facts.num_codes, _code_of, where),
            text_rows=text_rows(tokenizer, vocabulary, special, num_rows, ("<|",)),
            frame=ImageFrame(
                opening=(special.boi, *size, ids["image_wrapper"]),
                closing=(special.eoi,),
                row_tokens=side,
                row_end=ids["eol"],
            ),
        )

    def check_guidance(self) -> None:
        """Accept guidance: what is left out of a prompt is known, see :meth:`unconditional_prefixes`."""

    def unconditional_prefixes(self, prefix: Sequence[int]) -> tuple[list[int], list[int]]:
        """Leave out the text, and text and source.

        Args:
            prefix: Vocabulary ids of a forward prompt.

        Returns:
            ``bos SOURCE`` with the opening of the target (the authors' ``unconditional_type = "no_text"``), and
            ``bos`` with it.
        """
        padding = [self.pad_id] * self.action_slot_tokens
        return drop_text(prefix, self.frame, self.tokens_per_image, padding), [self.bos_id, *self.frame.opening]


def _code_of(name: str) -> int | None:
    match = _VISUAL.fullmatch(name)
    return int(match[1]) if match else None


def load_emu3_5(folder: Path, device: Device, dtype: torch.dtype, facts: Facts) -> Emu35VLM:
    """Load a full folder, the release's or one in transformers' layout of Qwen3.

    Args:
        folder: A full folder.
        device: Where to put the weights.
        dtype: Their type.
        facts: Of its codec and of the folder.
    """
    module = read_module(folder, Qwen3ForCausalLM, read_decoder_config(folder), device, dtype)
    return Emu35VLM(module, read_words(folder), facts)


def read_decoder_config(folder: Path) -> Qwen3Config:
    """Read the decoder's configuration under transformers' names.

    Args:
        folder: Holds ``config.json`` of ``model_type`` Emu3 or qwen3.

    Returns:
        The configuration, without dropout: transformers' layers have none where the authors' have it.

    Raises:
        InputError: It describes no such decoder.
    """
    file = folder / "config.json"
    values = read_json(file)
    # Written here: transformers' own names and defaults.
    if values.get("model_type") == "qwen3":
        config: Qwen3Config = read_config(folder, Qwen3Config)
        return config
    check_no_code(folder)
    check_config(values, file)
    # Keys that are left out have the authors' defaults, which are not Qwen3's.
    with refusing(f"{file} describes no decoder of Emu3.5"):
        own = Qwen3Config(**{key: values.get(key, default) for key, default in _KEYS.items()})
    return neutralise(own)


def read_words(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a folder: ``tokenizer.json``, or the release's files.

    Args:
        folder: A full folder.

    Raises:
        InputError: There is none, or it cannot be read.
    """
    # What was written here, or by transformers, goes first: it takes no time to make.
    if (folder / "tokenizer.json").is_file() or not (folder / RANKS).is_file():
        return read_tokenizer(folder)
    # In the order of the authors' class, which numbers them on after the last rank.
    special = [*_SPECIAL, *read_lines(folder / VISION_TOKENS)]
    return read_tiktoken(
        folder / RANKS,
        special,
        _WORDS,
        bos_token=_NAMES["bos"],
        eos_token=_NAMES["eos"],
        pad_token=_NAMES["pad"],
    )


def read_emu3_5_codec(folder: Path, device: Device, decoder: Path | None) -> ImageCodec:
    """Read the image tokenizer in the folder ``ibq``: the released ``model.ckpt``, or ``model.safetensors``.

    Args:
        folder: A full folder.
        device: Where to put the codec.
        decoder: Refused: the image tokenizer has one.
    """
    if decoder is not None:
        raise InputError(f"decoder = {decoder}: Emu3.5's image tokenizer has its own decoder")
    # The release is a repository of its own: the message says which.
    if not (folder / CODEC_FOLDER).is_dir():
        explain_missing_ibq(folder)
    side = read_side(folder, SIDE_PX, CODE_PX)
    return read_shaped_codec(folder / CODEC_FOLDER, IBQ, side, read_scale(folder), device)


def write_emu3_5(vlm: Emu35VLM, codec: ImageCodec, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write the language model in transformers' layout of Qwen3, the image tokenizer in the folder ``ibq``.

    Args:
        vlm: The model.
        codec: Its image codec.
        tensors: The language model's, by name.
        folder: An existing folder without ``ibq``.
    """
    write_weights(vlm, tensors, folder)
    (folder / CODEC_FOLDER).mkdir()
    write_tensors(codec.vqgan.state_dict(), folder / CODEC_FOLDER)
    write_image_processor(codec.scale, folder, size={"height": codec.side_px, "width": codec.side_px})


def emu3_5_codec_shape(folder: Path) -> tuple[int, int]:
    """Return tokens an image and codes, without the image tokenizer's weights: those of the release."""
    return (read_side(folder, SIDE_PX, CODE_PX) // CODE_PX) ** 2, CODES


FAMILY = Family(load_emu3_5, read_emu3_5_codec, write_emu3_5, emu3_5_codec_shape)
