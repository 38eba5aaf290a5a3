"""Tiny random vision-language models of the classes that read several images by features, in the real layout."""

import json
from pathlib import Path

import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.models_families import seeded
from tests.helpers.models_vlms import TEMPLATE, TEXT, make_tokenizer, write_qwen_processor


def write_qwen3_vl(folder: Path) -> None:
    """Qwen3-VL, whose DeepStack adds features of the vision encoder's first layers to those of the decoder."""
    tokenizer = make_tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e4}
    config = transformers.Qwen3VLConfig(
        text_config={**TEXT, "head_dim": 8, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 32,
            "patch_size": 4, "spatial_merge_size": 2, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
        tie_word_embeddings=False,
    )  # fmt: skip
    seeded(lambda: transformers.Qwen3VLForConditionalGeneration(config)).save_pretrained(folder)
    write_qwen_processor(folder, tokenizer, "Qwen3VLProcessor")
