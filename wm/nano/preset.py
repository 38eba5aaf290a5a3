"""Build small Chameleons that go through the real path: the same classes, files and loader as a 7B checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from wm.models.checkpoints import load_model, save_model
from wm.models.codec.codec import ImageCodec, PixelScale
from wm.models.codec.vqgan import VQGAN
from wm.models.families.chameleon import BOI_TOKEN, EOI_TOKEN, ChameleonVLM, image_token_name
from wm.models.vlm import Facts, UnifiedVLM

SEPARATOR = "<reserved08706>"
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


@dataclass(frozen=True)
class NanoPreset:
    """Sizes. The defaults are those of the nano world: 48 px, 9 tokens an image, about 0.8 M parameters."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_size: int = 320
    max_positions: int = 128
    num_codes: int = 192
    code_width: int = 16
    side_px: int = 48
    base_channels: int = 32
    """A multiple of 32 (group normalisation has 32 groups)."""
    channel_multiplier: tuple[int, ...] = (1, 1, 1, 1, 1)
    """One entry a resolution; the side shrinks by 2 between two."""
    num_res_blocks: int = 0
    latent_channels: int = 64
    codec_attention: bool = False
    """One attention block in the middle of encoder and decoder, as the released codec has."""
    local_codes: bool = True
    """Codes depend on nearby pixels only (see :class:`~wm.models.codec.vqgan.ChannelNorm`)."""
    action_slot_tokens: int = 0


TINY = NanoPreset(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    mlp_size=48,
    max_positions=96,
    num_codes=16,
    code_width=8,
    side_px=16,
    channel_multiplier=(1, 1, 1, 1),
)
"""For tests: 16 px, 4 tokens an image, 16 codes."""

TINY_WORDS = (
    *("put", "move", "take", "to", "of", "on", "the", "red", "blue", "green"),
    *("cup", "block", "bowl", "left", "right", "up", "down"),
)
"""A vocabulary for tests."""


def build_tokenizer(words: Sequence[str], num_codes: int) -> PreTrainedTokenizerFast:
    """Build a word-level, lower-casing tokenizer; special and image tokens as in the release, then the words.

    Args:
        words: Vocabulary; case and order do not matter.
        num_codes: Size of the codebook.
    """
    # In the order of the release: special tokens first, then images, structure, words.
    images = [image_token_name(code) for code in range(num_codes)]
    structure = [EOI_TOKEN, BOI_TOKEN, SEPARATOR, "<image>"]
    # Sorted, so that the ids do not depend on the order of the words.
    spoken = sorted({word.lower() for word in words})
    vocabulary = {name: row for row, name in enumerate([*_SPECIAL, *images, *structure, *spoken])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    # Answers of a model are compared in lower case.
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([*_SPECIAL, *structure])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        sep_token=SEPARATOR,
        clean_up_tokenization_spaces=False,
    )


def build_codec(preset: NanoPreset) -> ImageCodec:
    """Build a codec with random weights; train its ``vqgan`` and build a new :class:`ImageCodec` of it."""
    # transformers' own class, so that the folder is one that it loads.
    config = ChameleonVQVAEConfig(
        embed_dim=preset.code_width,
        num_embeddings=preset.num_codes,
        latent_channels=preset.latent_channels,
        resolution=preset.side_px,
        base_channels=preset.base_channels,
        channel_multiplier=list(preset.channel_multiplier),
        num_res_blocks=preset.num_res_blocks,
        attn_type="vanilla" if preset.codec_attention else "none",
        norm_over="channels" if preset.local_codes else "groups",
    )
    return ImageCodec(VQGAN(config), PixelScale(rescale=2 / 255))


def build_nano(
    words: Sequence[str], preset: NanoPreset | None = None, *, codec: ImageCodec | None = None
) -> tuple[ChameleonVLM, ImageCodec]:
    """Build a Chameleon with random weights, from torch's global generator.

    Args:
        words: Vocabulary of the tokenizer.
        preset: Sizes; those of the nano base without it.
        codec: Whose images it reads and writes; a random one without it.

    Returns:
        The model, whose ``base_id`` is empty until it has been saved and loaded, and its codec.
    """
    preset = preset or NanoPreset()
    codec = codec or build_codec(preset)
    tokenizer = build_tokenizer(words, codec.num_codes)
    vocabulary = tokenizer.get_vocab()
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=preset.hidden_size,
        intermediate_size=preset.mlp_size,
        num_hidden_layers=preset.num_layers,
        num_attention_heads=preset.num_heads,
        num_key_value_heads=preset.num_heads,
        max_position_embeddings=preset.max_positions,
        tie_word_embeddings=True,
        bos_token_id=vocabulary["<s>"],
        pad_token_id=vocabulary["<pad>"],
        eos_token_id=vocabulary["</s>"],
        vq_config=codec.vqgan.config.to_dict(),
        # Chameleon's model reads the image tokens' ids from its configuration.
        vocabulary_map=dict(sorted(vocabulary.items(), key=lambda item: item[1])),
    )
    module = ChameleonForConditionalGeneration(config)
    # The codec is a model of its own here; a second one would be saved beside it.
    del module.model.vqmodel
    vlm = ChameleonVLM(
        module.eval(),
        tokenizer,
        Facts("", codec.codec_id, codec.tokens_per_image, codec.num_codes, preset.action_slot_tokens),
    )
    return vlm, codec


def write_random_base(
    path: str | Path, seed: int = 0, *, words: Sequence[str] = TINY_WORDS, preset: NanoPreset = TINY
) -> UnifiedVLM:
    """Write a base with random weights in the real format and load it.

    Args:
        path: Folder to write.
        seed: The same seed gives the same weights.
        words: Vocabulary of the tokenizer.
        preset: Sizes.

    Returns:
        The model as loaded.
    """
    # The caller's generator stays as it is.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm, codec = build_nano(words, preset)
    save_model(vlm, path, kind="base", codec=codec)
    return load_model(path)
