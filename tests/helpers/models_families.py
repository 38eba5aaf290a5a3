"""Tiny random models of the other families, written by transformers' own ``save_pretrained``."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    Emu3Config,
    Emu3ForConditionalGeneration,
    GemmaConfig,
    GemmaForCausalLM,
    JanusConfig,
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from wm.models.codec.codec import ImageCodec
from wm.nano.preset import TINY, TINY_WORDS, build_codec

CODES = 16
ACTION = "move the red cup"
SOURCE, TARGET = [3, 0, 15, 7], [3, 1, 15, 9]
GRID = [9, 7, 1, 7, 4, 7, 15, 14, 10, 9, 4, 5, 1, 15, 4, 0]
OTHER = [9, 7, 1, 2, 4, 7, 15, 14, 3, 9, 4, 5, 1, 0, 4, 0]
"""Codes of images of 4 and of 16 tokens."""


def seeded(build, seed=0):
    """``build()`` with weights of this seed, so large that probabilities are far from equal."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build().eval()
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.15)
    return model


def word_tokenizer(special, words=TINY_WORDS, **roles) -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer: the special tokens in order, then the words."""
    vocabulary = {name: row for row, name in enumerate([*special, *sorted(words)])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", clean_up_tokenization_spaces=False, **roles
    )


def tiny_codec(seed=0) -> ImageCodec:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_codec(TINY)


def gemma_config(tokenizer, *, tied=True, num_codes=CODES) -> GemmaConfig:
    return GemmaConfig(
        vocab_size=len(tokenizer) + num_codes,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=96,
        tie_word_embeddings=tied,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )


def liquid_tokenizer(**roles) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<boi>", "<eoi>", "<unconditional>"]
    return word_tokenizer(special, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", **roles)


def write_liquid(folder: Path, *, tied=True, num_codes=CODES, seed=0) -> GemmaForCausalLM:
    """The release's layout: a GemmaForCausalLM with its tokenizer, and the VQGAN in a folder of its own."""
    from safetensors.torch import save_file

    tokenizer = liquid_tokenizer()
    model = seeded(lambda: GemmaForCausalLM(gemma_config(tokenizer, tied=tied, num_codes=num_codes)), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    codec = tiny_codec()
    inside = folder / "vqgan"
    inside.mkdir()
    tensors = {f"model.vqmodel.{name}": tensor for name, tensor in codec.vqgan.state_dict().items()}
    save_file(tensors, inside / "model.safetensors", metadata={"format": "pt"})
    (inside / "config.json").write_text(json.dumps({"vq_config": codec.vqgan.config.to_dict()}))
    scale = codec.scale
    values = {"rescale_factor": scale.rescale, "image_mean": [scale.mean] * 3, "image_std": [scale.std] * 3}
    (inside / "preprocessor_config.json").write_text(json.dumps(values))
    return model


_LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
}
_PIXELS = {"rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def emu3_tokenizer() -> PreTrainedTokenizerFast:
    """Roles and names as in the release, image tokens in another order than their codes."""
    structure = ["<|image start|>", "<|image end|>", "<|image token|>", "<|extra_200|>", "<|extra_201|>", "<image>"]
    visual = [f"<|visual token {code:06d}|>" for code in reversed(range(CODES))]
    return word_tokenizer(
        ["<|endoftext|>", "<|extra_203|>", "<|extra_204|>", "<unk>", *structure, *visual],
        [*TINY_WORDS, "4*4"],
        bos_token="<|extra_203|>",
        eos_token="<|extra_204|>",
        pad_token="<|endoftext|>",
        boi_token="<|image start|>",
        eoi_token="<|image end|>",
        image_wrapper_token="<|image token|>",
        eof_token="<|extra_201|>",
        image_token="<image>",
    )


def write_emu3(folder: Path, *, codes=CODES, seed=0) -> Emu3ForConditionalGeneration:
    """8 px images of 4 x 4 codes."""
    tokenizer = emu3_tokenizer()
    config = Emu3Config(
        text_config={**_LLAMA, "vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        vq_config={
            "codebook_size": codes,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [1],
            "hidden_size": 32,
            "temporal_downsample_factor": 2,
        },
        vocabulary_map=dict(tokenizer.get_vocab()),
    )
    model = seeded(lambda: Emu3ForConditionalGeneration(config), seed)
    with torch.no_grad():
        model.model.vqmodel.quantize.embedding.weight.normal_(generator=torch.Generator().manual_seed(seed))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PIXELS | {"min_pixels": 64, "max_pixels": 64}))
    return model


def janus_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<pad>", "<s>", "</s>", "<unk>", "<begin_of_image>", "<end_of_image>", "<image_placeholder>"]
    roles = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    return word_tokenizer(special, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **roles)


def write_janus(folder: Path, *, seed=0) -> JanusForConditionalGeneration:
    """8 px images of 4 x 4 codes; text rows to spare, as in the release."""
    tokenizer = janus_tokenizer()
    config = JanusConfig(
        text_config={**_LLAMA, "model_type": "llama", "vocab_size": len(tokenizer) + 5, "pad_token_id": 0},
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        vq_config={
            "embed_dim": 8,
            "num_embeddings": CODES,
            "latent_channels": 16,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
        },
        image_token_id=6,
    )
    model = seeded(lambda: JanusForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_PIXELS | {"size": {"height": 8, "width": 8}}))
    return model


def greedy_by_hand(vlm, prefix, logits_of):
    """Codes that plain greedy decoding without a cache gives; ``logits_of(ids)``: logits over image codes."""
    ids, codes = list(prefix), []
    for position in range(vlm.tokens_per_image):
        if position and vlm.row_tokens and position % vlm.row_tokens == 0:
            ids.append(vlm.row_end_id)
        codes.append(int(logits_of(ids).argmax()))
        ids.append(int(vlm.image_rows[codes[-1]]))
    return codes
