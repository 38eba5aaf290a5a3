"""A tiny random Lumina-mGPT 2.0 in the release's layout, and MoVQGAN's decoder by diffusers."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    ChameleonVQVAEConfig,
    PreTrainedTokenizerFast,
)

from tests.helpers.models_families import CODES, seeded, word_tokenizer
from wm.models.codec.movq import MoVQ
from wm.nano.preset import TINY_WORDS

SIZES = [f"<reserved{8800 + cells:05d}>" for cells in range(4)]


def lumina_tokenizer() -> PreTrainedTokenizerFast:
    """Names as in the release; as there, no begin of sequence, and the codes come last."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>"]
    structure = ["<racm3:break>", "<eoss>", "<reserved08706>", "<reserved08799>", *SIZES]
    codes = [f"<MOVQGAN{code:05d}>" for code in range(CODES)]
    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = word_tokenizer([*special, *structure], TINY_WORDS, **roles)
    tokenizer.add_tokens(codes, special_tokens=True)
    return tokenizer


def movq_config(side_px: int = 32) -> ChameleonVQVAEConfig:
    """Four levels, of which the last attends, as the released ones have; 8 px a code."""
    return ChameleonVQVAEConfig(
        embed_dim=4,
        num_embeddings=CODES,
        latent_channels=4,
        resolution=side_px,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 2],
        num_res_blocks=1,
        attn_resolutions=[side_px // 8],
    )


def movq_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        movq = MoVQ(movq_config())
        movq.quantize.embedding.weight.normal_()
        return {name: tensor.detach().clone() for name, tensor in movq.state_dict().items()}


def write_lumina(folder: Path, *, seed: int = 0, heads: int = 4) -> ChameleonForConditionalGeneration:
    """32 px images of 4 x 4 codes. Norms have one row, as the authors' class saves them; MoVQGAN is a pickle."""
    tokenizer = lumina_tokenizer()
    vq = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 8}
    config = ChameleonConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        vocabulary_map=dict(tokenizer.get_vocab()),
        vq_config=vq | {"num_embeddings": 8, "resolution": 8},
    )
    model = seeded(lambda: ChameleonForConditionalGeneration(config), seed)
    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
                norm.weight.copy_(norm.weight[:1].expand_as(norm.weight))
                norm.bias.copy_(norm.bias[:1].expand_as(norm.bias))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # The release has no image tokenizer inside, and norms that are repeated when they run.
    tensors = {name: t for name, t in load_file(folder / "model.safetensors").items() if ".vqmodel." not in name}
    tensors = {name: t[:1].clone() if "_norm." in name and t.ndim == 2 else t for name, t in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values |= {"architectures": ["ChameleonXLLMXForConditionalGeneration"], "mask_image_logits": False}
    values |= {"dropout": 0.05, "z_loss_weight": 1e-5, "rope_theta": 500.0, "rope_scaling": None}
    values.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(values))
    # A size beside the release's files: its own images have 512 px.
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    (folder / "movqgan").mkdir()
    extra = {"loss.discriminator.weight": torch.zeros(2), "ema_encoder.num_updates": torch.tensor(3)}
    torch.save(movq_tensors(seed) | extra, folder / "movqgan" / "movqgan_270M.ckpt")
    return model


_DIFFUSERS_NAMES = (
    (r"\bdown\.(\d+)\.block\.(\d+)", r"down_blocks.\1.resnets.\2"),
    (r"\bdown\.(\d+)\.attn\.(\d+)", r"down_blocks.\1.attentions.\2"),
    (r"\bdown\.(\d+)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"\bup\.(\d+)\.block\.(\d+)", r"up_blocks.\1.resnets.\2"),
    (r"\bup\.(\d+)\.attn\.(\d+)", r"up_blocks.\1.attentions.\2"),
    (r"\bup\.(\d+)\.upsample", r"up_blocks.\1.upsamplers.0"),
    (r"\bmid\.block_1", "mid_block.resnets.0"),
    (r"\bmid\.block_2", "mid_block.resnets.1"),
    (r"\bmid\.attn_1", "mid_block.attentions.0"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"(attentions\.\d+)\.norm\.(norm_layer|conv_y|conv_b)", r"\1.spatial_norm.\2"),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def diffusers_movq(tensors: dict[str, torch.Tensor], levels: int = 4):
    """diffusers' own MoVQ (Kandinsky's, the same architecture) with these weights, its names for them."""
    from diffusers import VQModel

    model = VQModel(
        block_out_channels=(32, 32, 32, 64),
        down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
        latent_channels=4,
        layers_per_block=1,
        norm_type="spatial",
        num_vq_embeddings=CODES,
        vq_embed_dim=4,
    )
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in _DIFFUSERS_NAMES:
            new = re.sub(pattern, replacement, new)
        # Theirs count the levels of the decoder from the smallest image, and their projections are matrices.
        new = re.sub(r"up_blocks\.(\d+)", lambda match: f"up_blocks.{levels - 1 - int(match[1])}", new)
        renamed[new] = tensor[..., 0, 0] if re.search(r"\.to_\w+(\.0)?\.weight", new) else tensor
    model.load_state_dict(renamed)
    return model.eval()
