"""Tiny random CLIP, vision transformer, BLIP and RoBERTa, as folders of their released form."""

from pathlib import Path

import torch
from tokenizers import ByteLevelBPETokenizer
from tokenizers.processors import RobertaProcessing
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from tests.helpers.models_families import word_tokenizer

SIDE_PX = 32
WORDS = ["a", "red", "blue", "cup", "block", "on", "the", "table", "move", "put", "take"]
_VISION = {
    "image_size": SIDE_PX, "patch_size": 8, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def _tokenizer():
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", "<sep>"], WORDS, **roles)


def _save(model, folder: Path, *parts) -> Path:
    for part in (model.eval(), *parts):
        part.save_pretrained(folder)
    return folder


def write_clip(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = _tokenizer()
        text = _TEXT | {"vocab_size": len(tokenizer)}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=_VISION, projection_dim=24))
    size = {"size": {"shortest_edge": SIDE_PX}, "crop_size": {"height": SIDE_PX, "width": SIDE_PX}}
    return _save(model, folder, CLIPImageProcessorPil(**size), tokenizer)


def write_dino(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        # As the release: without the pooler.
        model = ViTModel(ViTConfig(**_VISION), add_pooling_layer=False)
    return _save(model, folder, ViTImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}))


def write_blip(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        tokenizer = _tokenizer()
        text = _TEXT | {"vocab_size": len(tokenizer), "sep_token_id": 4, "encoder_hidden_size": 32}
        model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=_VISION, projection_dim=24))
    return _save(model, folder, BlipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX}), tokenizer)


def write_roberta(folder: Path) -> Path:
    """Byte-level words that know the blank before them, and a head for masked words, as the release has."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words = ByteLevelBPETokenizer()
    words.train_from_iterator([" ".join(WORDS)] * 4, vocab_size=300, special_tokens=special, show_progress=False)
    words.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    roles = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 4}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        model_max_length=30,
        **{f"{role}_token": special[row] for role, row in roles.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = RobertaForMaskedLM(
            RobertaConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=4,
                num_attention_heads=4, max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            )
        )  # fmt: skip
    return _save(model, folder, tokenizer)
