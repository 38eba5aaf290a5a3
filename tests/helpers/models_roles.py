"""A base whose probabilities are far from equal, an adapter of it for each role, and a full model of other weights."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model

from tests.helpers.models_reference import lively
from wm.models import load_codec, load_model, save_model
from wm.training.adapters import ATTENTION_AND_MLP

RANK = 2


def add_adapter(vlm, seed, **settings):
    """``vlm`` with a random adapter, in place."""
    torch.manual_seed(seed)
    config = {"r": RANK, "target_modules": ATTENTION_AND_MLP, "init_lora_weights": False} | settings
    vlm.module = get_peft_model(vlm.module, LoraConfig(**config)).eval()
    return vlm


def write_roles(tiny_base: Path, out: Path) -> Path:
    """The folders base, fdm, idm and full in ``out``."""
    save_model(lively(load_model(tiny_base)), out / "base", kind="base", codec=load_codec(tiny_base))
    for seed, task in enumerate(("fdm", "idm")):
        save_model(add_adapter(load_model(out / "base"), seed), out / task, task=task)
    save_model(lively(load_model(out / "base"), seed=9), out / "full", task="idm")
    return out
