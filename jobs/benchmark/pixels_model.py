"""Write a random Qwen3-VL in the layout of the released ones: what pixel-reading inverse models are measured on."""

from dataclasses import dataclass
from pathlib import Path

import torch

from wm.models.pixels.chats import PROMPT
from wm.runs import write_json

ACTIONS = (
    "move the cup to the left", "open the drawer", "put the red block on the green bowl", "turn the lamp on",
    "push the plate away", "lift the lid", "close the box", "pick up the pen",
)  # fmt: skip
"""Actions of a few words, whose tokens the model has."""
_SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}<|im_start|> user {% for part in message.content %}{% if part.type == 'image' %}"
    "<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ part.text }}{% endif %}{% endfor %} <|im_end|> "
    "{% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
"""Qwen's own, without its system prompt."""


@dataclass(frozen=True)
class PixelShape:
    """Sizes of a Qwen3-VL: the decoder's width and layers, those of its vision encoder, pixels of a patch's side."""

    width: int = 512
    layers: int = 8
    vision_width: int = 384
    vision_layers: int = 8
    patch_px: int = 16


def write_qwen3_vl(folder: Path, shape: PixelShape, side_px: int) -> None:
    """Write model, processor and chat template with random weights.

    Args:
        folder: Where they go.
        shape: Sizes.
        side_px: Side of the smallest images, a multiple of two patches; those of twice the side are not scaled either.
    """
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    # 1. A vocabulary of words, which covers the question and the actions.
    words = sorted({word for text in (PROMPT, *ACTIONS, "user assistant") for word in text.split()})
    names = ["<pad>", *_SPECIAL, "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({name: row for row, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", *_SPECIAL, "<unk>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<|im_end|>",
        clean_up_tokenization_spaces=False, chat_template=_TEMPLATE,
    )  # fmt: skip
    # 2. Weights: heads of 64 as in the released ones, and the vocabulary's rows filled up to 2,048.
    heads = shape.width // 64
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": 2048, "hidden_size": shape.width, "intermediate_size": 3 * shape.width,
            "num_hidden_layers": shape.layers, "num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4),
            "head_dim": 64, "max_position_embeddings": 8192, "pad_token_id": 0,
            "rope_parameters": {
                "rope_type": "default", "mrope_section": [12, 10, 10], "mrope_interleaved": True, "rope_theta": 5e6,
            },
        },
        vision_config={
            "depth": shape.vision_layers, "hidden_size": shape.vision_width, "num_heads": shape.vision_width // 64,
            "intermediate_size": 4 * shape.vision_width, "out_hidden_size": shape.width, "patch_size": shape.patch_px,
            "deepstack_visual_indexes": list(range(min(3, shape.vision_layers))),
        },
        image_token_id=1, video_token_id=2, vision_start_token_id=3, vision_end_token_id=4, tie_word_embeddings=False,
    )  # fmt: skip
    # Seeded apart from the caller's numbers: a record can be made again.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    # 3. The processor in parts: the complete one has a video half that needs torchvision.
    Qwen2VLImageProcessorPil(
        patch_size=shape.patch_px, merge_size=2, size={"shortest_edge": side_px**2, "longest_edge": 4 * side_px**2}
    ).save_pretrained(folder)
    fast.save_pretrained(folder)
    write_json(folder / "processor_config.json", {"processor_class": "Qwen3VLProcessor"})
