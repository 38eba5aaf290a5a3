"""Tests of model folders: what they ask of a model, and how they change a folder."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

IDS = torch.tensor([[0, 21, 4, 5, 6, 7, 20, 24, 25]])


def logits(vlm):
    with torch.no_grad():
        return vlm.head(vlm.body(IDS))


def copy_of(base, tmp_path, name="copy"):
    return Path(shutil.copytree(base, tmp_path / name))


def rewrite(folder, change):
    """Change the tensors of a folder's weight file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_adapter(vlm, seed=0):
    torch.manual_seed(seed)
    targets = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
    vlm.module = get_peft_model(vlm.module, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    vlm.module.eval()
    return vlm
