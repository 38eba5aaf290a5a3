"""Tiny random vision-language models of the classes that read several images by features, in the real layout."""

import json
from pathlib import Path

import transformers
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from tests.helpers.models_families import seeded
from tests.helpers.models_vlms import CLIP, TEMPLATE, TEXT, make_tokenizer, write_qwen_processor


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


def write_llava_onevision(folder: Path) -> None:
    """LLaVA-OneVision, which reads an image alone in tiles, and several as one tile each."""
    tokenizer = make_tokenizer("<image>", "<video>")
    grid = [[16, 16], [16, 32], [32, 16]]
    config = transformers.LlavaOnevisionConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        image_token_index=4,
        video_token_index=5,
        image_grid_pinpoints=grid,
    )
    seeded(lambda: transformers.LlavaOnevisionForConditionalGeneration(config)).save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(
        size={"height": 16, "width": 16}, image_grid_pinpoints=grid
    ).save_pretrained(folder)  # fmt: skip
    values = {"num_image_tokens": 16, "vision_feature_select_strategy": "full"}
    _write_parts(folder, tokenizer, "LlavaOnevisionProcessor", TEMPLATE.replace("IMAGE", "<image>"), **values)


def write_internvl(folder: Path) -> None:
    """InternVL, whose features of all tiles are one tensor."""
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    tokenizer = make_tokenizer(*names.values(), **names)
    config = transformers.InternVLConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        image_token_id=6,
        image_seq_length=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    seeded(lambda: transformers.InternVLForConditionalGeneration(config)).save_pretrained(folder)
    GotOcr2ImageProcessorPil(
        size={"height": 16, "width": 16}, crop_to_patches=True, min_patches=1, max_patches=3
    ).save_pretrained(folder)
    _write_parts(folder, tokenizer, "InternVLProcessor", TEMPLATE.replace("IMAGE", "<IMG_CONTEXT>"), image_seq_length=4)


def write_idefics3(folder: Path) -> None:
    """Idefics3, which SmolVLM is built on: tiles with names of their rows and columns between the tokens."""
    rows = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = make_tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *rows)
    config = transformers.Idefics3Config(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 16, "patch_size": 4,
        },
        image_token_id=4,
        scale_factor=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    seeded(lambda: transformers.Idefics3ForConditionalGeneration(config)).save_pretrained(folder)
    image_processor = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    transformers.Idefics3Processor(
        image_processor, tokenizer, image_seq_len=4, chat_template=TEMPLATE.replace("IMAGE", "<image>")
    ).save_pretrained(folder)


def write_gemma3(folder: Path) -> None:
    """Gemma 3, whose tokens of one image attend to each other."""
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(*names.values(), **names)
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 512,
                     "vocab_size": len(tokenizer)},
        vision_config={**CLIP, "model_type": "siglip_vision_model", "vision_use_head": False},
        boi_token_index=4,
        eoi_token_index=5,
        image_token_index=6,
        mm_tokens_per_image=4,
        tie_word_embeddings=False,
    )  # fmt: skip
    seeded(lambda: transformers.Gemma3ForConditionalGeneration(config)).save_pretrained(folder)
    transformers.Gemma3Processor(
        image_processor=Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>"),
    ).save_pretrained(folder)


def _write_parts(folder: Path, tokenizer, processor_class: str, template: str, **values) -> None:
    """Saved in parts: the whole one has a video half that needs torchvision."""
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor_class, **values}))


NEW_WRITERS = {
    "qwen3_vl": write_qwen3_vl,
    "llava_onevision": write_llava_onevision,
    "internvl": write_internvl,
    "idefics3": write_idefics3,
    "gemma3": write_gemma3,
}
