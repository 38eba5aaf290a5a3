"""A tiny random Emu3.5 in the release's layout: the authors' configuration, tiktoken's ranks, IBQ as a checkpoint."""

import base64
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ChameleonVQVAEConfig, Qwen3Config, Qwen3ForCausalLM

from tests.helpers.models_families import CODES, seeded
from wm.models.codec.movq import IBQ
from wm.nano.preset import TINY_WORDS

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500.0,
}


def tiny_ranks() -> dict[bytes, int]:
    """Every byte, then the words, with and without a space before, grown letter by letter."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    for word in sorted(TINY_WORDS):
        for text in (word.encode(), b" " + word.encode()):
            for end in range(2, len(text) + 1):
                ranks.setdefault(text[:end], len(ranks))
    return ranks


def vision_tokens(codes: int = CODES) -> list[str]:
    """The lines of ``emu3_vision_tokens.txt``, in its order."""
    structure = ["<|image token|>", "<|image start|>", "<|image end|>"]
    return [*structure, *(f"<|visual token {code:06d}|>" for code in range(codes))]


def ibq_config() -> ChameleonVQVAEConfig:
    """Five levels as the release has: 16 px a code."""
    return ChameleonVQVAEConfig(
        embed_dim=8,
        num_embeddings=CODES,
        latent_channels=8,
        resolution=64,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        attn_resolutions=[4],
    )


def ibq_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        ibq = IBQ(ibq_config())
        ibq.quantize.embedding.weight.normal_()
        return {name: tensor.detach().clone() for name, tensor in ibq.state_dict().items()}


def write_emu3_5(folder: Path, *, seed: int = 0) -> Qwen3ForCausalLM:
    """64 px images of 4 x 4 codes; returns transformers' model of the same weights."""
    ranks, vision = tiny_ranks(), vision_tokens()
    num_rows = len(ranks) + 208 + len(vision)
    config = Qwen3Config(vocab_size=num_rows, **SHAPE)
    model = seeded(lambda: Qwen3ForCausalLM(config), seed)
    folder.mkdir(parents=True)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = {"model_type": "Emu3", "architectures": ["Emu3ForCausalLM"], "vocab_size": num_rows, **SHAPE}
    values |= {"attention_dropout": 0.1, "image_area": 518400, "pretraining_tp": 1, "rope_scaling": None}
    values |= {"pad_token_id": len(ranks), "bos_token_id": len(ranks) + 206, "eos_token_id": len(ranks) + 207}
    (folder / "config.json").write_text(json.dumps(values))
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    (folder / "emu3.tiktoken").write_text("".join(lines))
    (folder / "emu3_vision_tokens.txt").write_text("\n".join(vision) + "\n")
    # A size beside the release's files: its own images have 512 px here.
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"height": 64, "width": 64}}))
    (folder / "ibq").mkdir()
    torch.save({"state_dict": ibq_tensors(seed)}, folder / "ibq" / "model.ckpt")
    return model
