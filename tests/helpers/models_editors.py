"""A tiny random InstructPix2Pix, as a folder in the form of diffusers."""

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

PIPELINE = "StableDiffusionInstructPix2PixPipeline"


def write_pix2pix(folder: Path, *, checked: bool = False) -> Path:
    """Write the folder; ``checked``: with a safety checker."""
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionInstructPix2PixPipeline,
        UNet2DConditionModel,
    )
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
        tokenizer = CLIPTokenizer(vocab={word: row for row, word in enumerate(words)}, merges=[], model_max_length=16)
        text = CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=16, pad_token_id=1, bos_token_id=0, eos_token_id=1,
        )  # fmt: skip
        blocks = {"block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
        unet = UNet2DConditionModel(
            **blocks, in_channels=8, out_channels=4, layers_per_block=1, cross_attention_dim=16, attention_head_dim=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            **blocks, in_channels=3, out_channels=3, latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        checker = None
        if checked:
            tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
            vision = CLIPVisionConfig(image_size=32, patch_size=8, **tower).to_dict()
            checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
        pipeline = StableDiffusionInstructPix2PixPipeline(
            vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet,
            scheduler=EulerAncestralDiscreteScheduler(**betas),
            safety_checker=checker,
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
            requires_safety_checker=checked,
        )  # fmt: skip
    pipeline.save_pretrained(folder)
    # As the release: its index was written where torchvision was installed.
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("CLIPImageProcessorPil", "CLIPImageProcessor"))
    return folder
