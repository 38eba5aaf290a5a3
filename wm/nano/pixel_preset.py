"""Build small Qwen3-VL models that read pixels and go through the real path: the same classes, files and loader as an
8B checkpoint."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from wm.models.folder_writing import replace_folder
from wm.models.identity import base_id_of
from wm.models.manifest import Manifest
from wm.models.pixels.chats import PROMPT
from wm.nano.preset import TINY_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD, UNKNOWN, START, END = "<|endoftext|>", "<|unk|>", "<|im_start|>", "<|im_end|>"
IMAGE, VIDEO, VISION_START, VISION_END = "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"
_SPECIAL = (PAD, UNKNOWN, START, END, IMAGE, VIDEO, VISION_START, VISION_END)
_TEMPLATE = (
    "{% for message in messages %}" + START + "{{ message.role }}\n{% for part in message.content %}"
    "{% if part.type == 'image' %}" + VISION_START + IMAGE + VISION_END + "{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}" + END + "\n{% endfor %}{% if add_generation_prompt %}" + START + "assistant\n{% endif %}"
)
"""As in the release, of messages with images and text."""


@dataclass(frozen=True)
class PixelPreset:
    """Sizes. The defaults are those of the nano world: 48 px, a token a cell of 16 px, about 0.8 M parameters."""

    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    mlp_size: int = 320
    max_positions: int = 128
    vision_size: int = 64
    vision_layers: int = 2
    vision_heads: int = 2
    vision_mlp_size: int = 128
    side_px: int = 48
    patch_px: int = 8


TINY_PIXELS = PixelPreset(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    mlp_size=48,
    max_positions=96,
    vision_size=16,
    vision_layers=1,
    vision_heads=2,
    vision_mlp_size=32,
    side_px=16,
    patch_px=4,
)
"""For tests: 16 px, 4 tokens an image."""


def build_pixel_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Build a word-level, lower-casing tokenizer with the release's special tokens and its kind of chat template.

    Args:
        words: Vocabulary beside those of the question; case and order do not matter.
    """
    # Sorted, so that the ids do not depend on the order of the words.
    spoken = sorted({word.lower() for word in (*words, *PROMPT.split(), "user", "assistant")})
    vocabulary = {name: row for row, name in enumerate([*_SPECIAL, *spoken])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    # As those of the base that speaks codes: answers are compared in lower case.
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(_SPECIAL))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _TEMPLATE
    return fast


def build_pixel_nano(words: Sequence[str], preset: PixelPreset | None = None) -> "PreTrainedModel":
    """Build a Qwen3-VL with random weights, from torch's global generator.

    Args:
        words: Vocabulary of the tokenizer.
        preset: Sizes; those of the nano world without it.
    """
    preset = preset or PixelPreset()
    vocabulary = build_pixel_tokenizer(words).get_vocab()
    head_width = preset.hidden_size // preset.num_heads
    # The rotary frequencies are shared out among time, height and width as in the release: 24 : 20 : 20 of 64.
    side = head_width // 2 * 20 // 64
    text = {
        "vocab_size": len(vocabulary),
        "hidden_size": preset.hidden_size,
        "intermediate_size": preset.mlp_size,
        "num_hidden_layers": preset.num_layers,
        "num_attention_heads": preset.num_heads,
        "num_key_value_heads": preset.num_heads,
        "head_dim": head_width,
        "max_position_embeddings": preset.max_positions,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_interleaved": True,
            "mrope_section": [head_width // 2 - 2 * side, side, side],
        },
        "pad_token_id": vocabulary[PAD],
    }
    # Features of the last layer go into the language model's first layers too (DeepStack), as in the release.
    vision = {
        "depth": preset.vision_layers,
        "hidden_size": preset.vision_size,
        "intermediate_size": preset.vision_mlp_size,
        "num_heads": preset.vision_heads,
        "out_hidden_size": preset.hidden_size,
        "patch_size": preset.patch_px,
        "num_position_embeddings": (preset.side_px // preset.patch_px) ** 2,
        "deepstack_visual_indexes": [preset.vision_layers - 1],
    }
    # Embeddings and head share a matrix, as in the smaller releases.
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=vocabulary[IMAGE],
        video_token_id=vocabulary[VIDEO],
        vision_start_token_id=vocabulary[VISION_START],
        vision_end_token_id=vocabulary[VISION_END],
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config).eval()


def write_pixel_processor(folder: Path, words: Sequence[str], preset: PixelPreset | None = None) -> None:
    """Write tokenizer, image processor and chat template.

    Args:
        folder: Where they go.
        words: Vocabulary of the tokenizer.
        preset: Sizes.
    """
    preset = preset or PixelPreset()
    # Pixels of an image: that of the world, neither enlarged nor shrunk.
    area = preset.side_px**2
    processor = Qwen2VLImageProcessorPil(
        patch_size=preset.patch_px,
        merge_size=2,
        size={"shortest_edge": area, "longest_edge": area},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    processor.save_pretrained(folder)
    build_pixel_tokenizer(words).save_pretrained(folder)
    # In parts: the complete one has a video half, which needs torchvision.
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))


def write_pixel_base(
    model: "PreTrainedModel",
    path: str | Path,
    *,
    words: Sequence[str],
    preset: PixelPreset | None = None,
    recipe_digest: str = "",
) -> Manifest:
    """Write a base folder in the real layout; one that is there is replaced.

    Args:
        model: The model.
        path: The folder to write.
        words: Vocabulary of the tokenizer.
        preset: Sizes.
        recipe_digest: Of the recipe that made it.

    Returns:
        The manifest that was written.
    """
    # Renamed when complete: a killed process leaves no half of a model.
    with replace_folder(Path(path)) as folder:
        write_pixel_processor(folder, words, preset)
        model.save_pretrained(folder)
        manifest = Manifest(
            family=str(model.config.model_type),
            kind="base",
            base_id=base_id_of(folder),
            codec_id="",
            recipe_digest=recipe_digest,
        )
        manifest.write(folder)
    return manifest


def write_random_pixel_base(
    path: str | Path, seed: int = 0, *, words: Sequence[str] = TINY_WORDS, preset: PixelPreset = TINY_PIXELS
) -> "PreTrainedModel":
    """Write a base with random weights in the real layout.

    Args:
        path: Folder to write.
        seed: The same seed gives the same weights.
        words: Vocabulary of the tokenizer.
        preset: Sizes.

    Returns:
        The model.
    """
    # The caller's generator stays as it is.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_pixel_nano(words, preset)
    write_pixel_base(model, path, words=words, preset=preset)
    return model
