"""A tiny random Lumina-mGPT 2.0 in the release's layout, and MoVQGAN's decoder by diffusers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig, PreTrainedTokenizerFast

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
    values |= {"dropout": 0.05, "z_loss_weight": 1e-5, "rope_theta": 10000.0, "rope_scaling": None}
    values.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps(values))
    # A size beside the release's files: its own images have 512 px.
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 32, "width": 32}}))
    (folder / "movqgan").mkdir()
    extra = {"loss.discriminator.weight": torch.zeros(2), "ema_encoder.num_updates": torch.tensor(3)}
    torch.save(movq_tensors(seed) | extra, folder / "movqgan" / "movqgan_270M.ckpt")
    return model
