"""Tiny random models of the other families, written by transformers' own ``save_pretrained``."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import GemmaConfig, GemmaForCausalLM, PreTrainedTokenizerFast

from wm.models.codec import ImageCodec
from wm.models.nano import TINY, TINY_WORDS, build_codec

CODES = 16


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
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<unused0>", "<boi>", "<eoi>"]
    return word_tokenizer(special, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", **roles)


def write_liquid(folder: Path, *, tied=True, num_codes=CODES, seed=0) -> GemmaForCausalLM:
    """The release's layout: a GemmaForCausalLM with its tokenizer, and the VQGAN in a folder of its own."""
    import json

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
