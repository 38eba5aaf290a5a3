"""Tiny random editors of other architectures than InstructPix2Pix, as pipelines of diffusers in memory."""

import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tests.helpers.models_families import word_tokenizer
from wm.models.pipelines import match_libraries
from wm.nano.preset import TINY_WORDS

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_MROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
_TEXT = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_parameters": _MROPE,
}


def build_qwen_edit(name="QwenImageEditPipeline"):
    """Qwen-Image-Edit; its class works at a million pixels whatever is asked, which tests lower."""
    import diffusers

    # What the prompt's template begins with is dropped, 64 tokens: letters are enough of them.
    words = [*_LETTERS, *TINY_WORDS]
    specials = ["<pad>", "<s>", "</s>", "<unk>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer = word_tokenizer(specials, words, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            "depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "hidden_size": 16,
            "out_hidden_size": 16, "intermediate_size": 16, "window_size": 16, "fullatt_block_indexes": [0],
        },
        image_token_id=4, video_token_id=5, vision_start_token_id=6, vision_end_token_id=7,
    )  # fmt: skip
    channels = 4

    def build():
        return getattr(diffusers, name)(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=diffusers.AutoencoderKLQwenImage(
                base_dim=8, z_dim=channels, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True],
                latents_mean=[0.0] * channels, latents_std=[1.0] * channels,
            ),
            text_encoder=transformers.Qwen2_5_VLForConditionalGeneration(config),
            tokenizer=tokenizer,
            processor=QwenProcessor(tokenizer),
            transformer=diffusers.QwenImageTransformer2DModel(
                patch_size=2, in_channels=4 * channels, out_channels=channels, num_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=16, guidance_embeds=False, axes_dims_rope=(8, 4, 4),
            ),
        )  # fmt: skip

    return _seed(build)


class QwenProcessor:
    """As Qwen2VLProcessor, whose video half needs torchvision: image tokens of each image, and its patches."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.image_processor = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
        )

    def __call__(self, text, images, padding, return_tensors):
        features = self.image_processor(images, return_tensors="pt")
        counts = iter((features["image_grid_thw"].prod(dim=1) // 4).tolist())
        texts = []
        for line in text:
            parts = line.split("<|image_pad|>")
            fills = ["<|image_pad|> " * next(counts) for _ in parts[1:]]
            texts.append(parts[0] + "".join(fill + part for fill, part in zip(fills, parts[1:], strict=True)))
        encoded = self.tokenizer(texts, padding=padding, return_tensors=return_tensors)
        return transformers.BatchFeature({**encoded, **features})


def build_kontext():
    """FLUX.1 Kontext."""
    import diffusers

    words = ["<|startoftext|>", "<|endoftext|>", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    clip = CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[], model_max_length=16)
    t5 = word_tokenizer(["<pad>", "</s>", "<unk>"], TINY_WORDS, eos_token="</s>", pad_token="<pad>")
    text = CLIPTextConfig(
        vocab_size=len(clip), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    second = T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)

    def build():
        return diffusers.FluxKontextPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=diffusers.AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8,), norm_num_groups=4,
                sample_size=16, down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
                use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0609, scaling_factor=1.5035,
            ),
            text_encoder=CLIPTextModel(text), tokenizer=clip,
            text_encoder_2=T5EncoderModel(second), tokenizer_2=t5,
            transformer=diffusers.FluxTransformer2DModel(
                patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16,
                num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
            ),
        )  # fmt: skip

    return _seed(build)


def build_glm_image():
    """GLM-Image: an autoregressive half that makes image tokens, and a diffusion decoder of them."""
    import diffusers

    codes = 32
    names = {"image_token": "<|image|>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    specials = ["<pad>", "<s>", "</s>", "<unk>", *names.values()]
    template = (
        "{% for message in messages %}{% for part in message.content %}"
        "{% if part.type == 'image' %}<|image|> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    )
    tokenizer = word_tokenizer(
        specials, [*TINY_WORDS, *map(str, range(9))], bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        extra_special_tokens=names,
    )  # fmt: skip
    tokenizer.padding_side = "left"
    begin, end = codes, codes + 1
    # Text follows the image codes in the vocabulary.
    vision_vocab = codes + 2
    config = transformers.GlmImageConfig(
        text_config={
            **_TEXT, "vocab_size": len(tokenizer) + 64, "vision_vocab_size": vision_vocab, "eos_token_id": end,
            "pad_token_id": 0,
        },
        vision_config={
            "depth": 1, "hidden_size": 16, "num_heads": 2, "image_size": 64, "patch_size": 16, "intermediate_size": 16,
        },
        vq_config={"embed_dim": 16, "num_embeddings": codes, "latent_channels": 16},
        image_token_id=4, image_start_token_id=begin, image_end_token_id=end,
    )  # fmt: skip
    from transformers.models.glm_image.image_processing_pil_glm_image import GlmImageImageProcessorPil

    processor = transformers.GlmImageProcessor(
        GlmImageImageProcessorPil(patch_size=16, merge_size=1, temporal_patch_size=1), tokenizer, chat_template=template
    )
    glyphs = transformers.ByT5Tokenizer(extra_ids=0)
    encoder = T5Config(vocab_size=384, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)

    def build():
        return diffusers.GlmImagePipeline(
            tokenizer=glyphs, processor=processor, text_encoder=T5EncoderModel(encoder),
            vision_language_encoder=transformers.GlmImageForConditionalGeneration(config),
            vae=diffusers.AutoencoderKL(
                in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8), norm_num_groups=4,
                sample_size=16, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
            ),
            transformer=diffusers.GlmImageTransformer2DModel(
                patch_size=2, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
                text_embed_dim=16, time_embed_dim=16, condition_dim=8, prior_vq_quantizer_codebook_size=codes,
            ),
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        )  # fmt: skip

    pipeline = _seed(build)
    # A trained model ends an image where it is full; random weights would end it anywhere.
    pipeline.vision_language_encoder.generation_config.suppress_tokens = [begin, end]
    return pipeline


def _seed(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = build()
        with torch.no_grad():
            # Far from zero: else the text would not change an image by more than rounding.
            for parameter in pipeline.transformer.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()  # as loaded ones are; dropout would sample another text each call
    pipeline.set_progress_bar_config(disable=True)
    match_libraries(pipeline)
    return pipeline
