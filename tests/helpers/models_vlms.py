"""Tiny random vision-language models with locally built processors, as folders of the families' own layout."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.helpers.models_families import seeded, word_tokenizer
from wm.dynamics.vlm_scorer import PROMPT
from wm.nano.preset import TINY_WORDS

WORDS = {*TINY_WORDS, *PROMPT.lower().split(), "user:", "assistant:"}
_ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_IMAGE = "{% if part.type == 'image' %} IMAGE {% else %}{{ part.text }}{% endif %}"
TEMPLATE = (
    "{% for message in messages %}user: {% for part in message.content %}"
    + _IMAGE
    + "{% endfor %} {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "projection_dim": 32,
}
_MROPE = {"rope_type": "default", "type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}


def make_tokenizer(*more, **roles):
    return word_tokenizer(["<pad>", "<s>", "</s>", "<unk>", *more], WORDS, **_ROLES, **roles)


def write_qwen2_vl(folder: Path) -> None:
    _qwen(folder, "Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}, "Qwen2VLProcessor")


def write_qwen2_5_vl(folder: Path) -> None:
    _qwen(folder, "Qwen2_5_VL", _vision_2_5(), "Qwen2_5_VLProcessor")


def _vision_2_5() -> dict:
    return {
        "hidden_size": 32,
        "out_hidden_size": 32,
        "intermediate_size": 48,
        "window_size": 16,
        "fullatt_block_indexes": [0],
    }


def _qwen(folder: Path, name: str, vision: dict, processor_class: str) -> None:
    tokenizer = make_tokenizer("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    config = getattr(transformers, f"{name}Config")(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": _MROPE},
        vision_config={"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **vision},
        image_token_id=4,
        video_token_id=5,
        vision_start_token_id=6,
        vision_end_token_id=7,
        tie_word_embeddings=False,
    )
    seeded(lambda: getattr(transformers, f"{name}ForConditionalGeneration")(config)).save_pretrained(folder)
    write_qwen_processor(folder, tokenizer, processor_class)


def write_qwen_processor(folder: Path, tokenizer, processor_class: str) -> None:
    """Saved in parts: the whole one has a video half that needs torchvision."""
    size = {"shortest_edge": 64, "longest_edge": 1024}
    Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=size).save_pretrained(folder)
    tokenizer.chat_template = TEMPLATE.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>")
    tokenizer.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor_class}))


def write_qwen2_5_omni(folder: Path) -> None:
    """The whole model's configuration, and the weights of all of it, of which the thinker is read."""
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "audio_token": "<|audio_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "audio_bos_token": "<|audio_start|>",
        "audio_eos_token": "<|audio_end|>",
    }
    tokenizer = make_tokenizer(*names.values(), **names)
    thinker = transformers.Qwen2_5OmniThinkerConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": _MROPE},
        vision_config={"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, **_vision_2_5()},
        audio_config={
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "num_mel_bins": 8,
            "output_dim": 32,
        },
        image_token_index=4,
        video_token_index=5,
        audio_token_index=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
        audio_start_token_id=9,
        audio_end_token_id=10,
    )
    model = seeded(lambda: transformers.Qwen2_5OmniThinkerForConditionalGeneration(thinker))
    folder.mkdir(parents=True)
    tensors = {_released_name(name): tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors["talker.codec_head.weight"] = torch.zeros(2, 2)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = transformers.Qwen2_5OmniConfig(thinker_config=thinker.to_dict())
    config.save_pretrained(folder)
    write_qwen_processor(folder, tokenizer, "Qwen2_5OmniProcessor")


def _released_name(name: str) -> str:
    """As in the release: ``thinker.model.layers…``, ``thinker.visual…``, ``thinker.audio_tower…``."""
    for now, then in (("model.language_model.", "model."), ("model.visual.", "visual."), ("model.audio", "audio")):
        if name.startswith(now):
            return f"thinker.{then}{name.removeprefix(now)}"
    return f"thinker.{name}"


def write_llava_next(folder: Path) -> None:
    tokenizer = make_tokenizer("<image>")
    grid = [[16, 16], [16, 32], [32, 16]]
    config = transformers.LlavaNextConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=CLIP,
        image_token_index=4,
        image_grid_pinpoints=grid,
    )
    seeded(lambda: transformers.LlavaNextForConditionalGeneration(config)).save_pretrained(folder)
    size = {"shortest_edge": 16}
    crop = {"height": 16, "width": 16}
    transformers.LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(size=size, crop_size=crop, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


def write_llava_interleave(folder: Path) -> None:
    """LLaVA-Interleave: the LLaVA class with SigLIP and Qwen2."""
    tokenizer = make_tokenizer("<image>")
    config = transformers.LlavaConfig(
        text_config={**TEXT, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        vision_config={**CLIP, "model_type": "siglip_vision_model"},
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    seeded(lambda: transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


def write_llava(folder: Path) -> None:
    """LLaVA 1.5: CLIP without its class token, and Llama."""
    tokenizer = make_tokenizer("<image>")
    config = transformers.LlavaConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config=CLIP,
        image_token_index=4,
    )
    seeded(lambda: transformers.LlavaForConditionalGeneration(config)).save_pretrained(folder)
    transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    ).save_pretrained(folder)


def write_janus(folder: Path) -> None:
    """Janus-Pro's understanding half, as transformers ships it for text."""
    names = {"boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_placeholder>"}
    tokenizer = make_tokenizer(*names.values(), **names)
    config = transformers.JanusConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "projection_dim": 32,
            "num_image_tokens": 16,
        },
        vq_config={"num_embeddings": 8, "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1},
        image_token_id=6,
    )
    seeded(lambda: transformers.JanusForConditionalGeneration(config)).save_pretrained(folder)
    transformers.JanusProcessor(
        image_processor=JanusImageProcessorPil(size={"height": 8, "width": 8}, min_size=4),
        tokenizer=tokenizer,
        num_image_tokens=16,
        chat_template=TEMPLATE.replace("IMAGE", "<image_placeholder>"),
    ).save_pretrained(folder)


WRITERS = {
    "qwen2_vl": write_qwen2_vl,
    "qwen2_5_vl": write_qwen2_5_vl,
    "qwen2_5_omni": write_qwen2_5_omni,
    "llava_next": write_llava_next,
    "llava_interleave": write_llava_interleave,
    "llava": write_llava,
    "janus": write_janus,
}
