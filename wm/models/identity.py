"""Identify a model by its content: fingerprints of configurations and tensors.

Where the weights are, how they are sharded and in which layout does not change an identity.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from wm.models.folder_checks import read_json, refusing
from wm.models.manifest import fetch_model
from wm.models.unreadable import explain_release
from wm.models.weights import CODEC_PREFIX, StoredTensor, list_tensors

_MAX_COMPLETE_BYTES = 1 << 20
_NUM_SAMPLES = 16
_SAMPLE_BYTES = 4096
_VOLATILE_CONFIG_KEYS = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def base_id_of(folder: str | Path) -> str:
    """Fingerprint a full model folder: its configuration and language-model weights.

    The image codec is left out: it has its own identity.

    Args:
        folder: A full model folder, or the folder of the run that made it.

    Returns:
        The family's ``model_type`` and :func:`fingerprint_of`.

    Raises:
        InputError: The folder cannot be read.
    """
    path = fetch_model(folder)
    # A release has no config.json of its own: the command is a better answer than that.
    explain_release(path)
    with refusing(f"{path} is no model folder that can be read"):
        config = read_json(path / "config.json")
        stored = {
            name: tensor
            for name, tensor in list_tensors(path).items()
            if not name.startswith((CODEC_PREFIX, "vqmodel."))
        }
        return f"{config.get('model_type', 'unknown')}-{fingerprint_of(config, stored)}"


def fingerprint_of(config: Mapping[str, object], stored: Mapping[str, StoredTensor]) -> str:
    """Hash configuration and weights, however the weights are stored and sharded.

    Of each tensor its name, type, shape and bytes count; of one above 1 MiB, 16 evenly spaced samples of 4 KiB. A
    changed tensor of a large model that agrees in all those samples is therefore not noticed.

    Args:
        config: The object in ``config.json``.
        stored: Tensors by name.

    Returns:
        16 hexadecimal digits.
    """
    # What a mere saving by another version changes must not change the id.
    facts = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG_KEYS}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    # By name: shards and their order differ between releases of the same weights.
    for name in sorted(stored):
        tensor = stored[name]
        data = tensor.data()
        digest.update(f"{name}\x1f{tensor.dtype}\x1f{tensor.shape}\n".encode())
        if len(data) <= _MAX_COMPLETE_BYTES:
            digest.update(data.tobytes())
            continue
        # Large tensors are sampled, so that a 7B folder is identified in seconds.
        for sample in range(_NUM_SAMPLES):
            begin = sample * (len(data) - _SAMPLE_BYTES) // (_NUM_SAMPLES - 1)
            digest.update(data[begin : begin + _SAMPLE_BYTES].tobytes())
    return digest.hexdigest()[:16]


def tensor_digest(tensors: Mapping[str, Tensor], *facts: object) -> str:
    """Hash named tensors (as float32) and further facts.

    Args:
        tensors: Tensors by name.
        facts: Whatever JSON can hold.

    Returns:
        16 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        # One type and one device, so that neither changes the hash.
        values = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}\x1f{tuple(values.shape)}\n".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
