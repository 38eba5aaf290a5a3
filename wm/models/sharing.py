"""Build several models over one copy of a base's weights: each has modules of its own, which hold the same tensors.

An adapter is then attached to one model's modules and leaves the others as they are. Nothing may change the shared
tensors: no training of them, no merging.
"""

import copy
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from torch import Tensor

from wm.errors import InputError
from wm.models.adapters import ADAPTER_WEIGHTS
from wm.models.folder_checks import read_json
from wm.models.manifest import ADAPTER_CONFIG
from wm.models.remote import fetch_all
from wm.models.vlm import UnifiedVLM
from wm.models.weights import read_header

KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` that leave the base as it is. With the others (``pissa``, ``olora``, ``corda``,
``loftq``, …) PEFT takes a part out of the base's weights whenever such an adapter is loaded."""


def twin_of(vlm: UnifiedVLM) -> UnifiedVLM:
    """Build another model over the same parameters and buffers."""
    # An adapter's modules would be copied with it, and its tensors shared.
    if hasattr(vlm.module, "peft_config"):
        raise InputError(f"a model of base {vlm.base_id} carries an adapter: only the bare base can be shared")
    # A deep copy that takes these for copied already makes new modules around them.
    tensors: Iterable[Tensor] = chain(vlm.module.parameters(), vlm.module.buffers())
    twin = copy.copy(vlm)
    twin.module = copy.deepcopy(vlm.module, {id(tensor): tensor for tensor in tensors})
    return twin


def check_shareable(folder: Path) -> None:
    """Raise :class:`InputError` if loading the adapter of a folder changes its base."""
    # From files alone: it is asked before gigabytes are read.
    fetch_all(folder)
    config = read_json(folder / ADAPTER_CONFIG)
    if config.get("bias", "none") != "none":
        raise InputError(
            f"adapter {folder} has bias = {config['bias']!r}: it brings other biases for the base's own layers, and "
            "cannot share them with another model"
        )
    # Some ways to start training take a part of the weight out of the base.
    start = config.get("init_lora_weights", True)
    if start not in KEEPS_BASE:
        raise InputError(
            f"adapter {folder} was begun with init_lora_weights = {start!r}, which changes the base's weights: it "
            "cannot share them with another model"
        )
    # Some methods save the base's layer as they changed it, whatever the configuration says.
    if (folder / ADAPTER_WEIGHTS).is_file():
        own = [name for name in read_header(folder / ADAPTER_WEIGHTS) if name.endswith(".base_layer.weight")]
        if own:
            raise InputError(
                f"adapter {folder} holds {own[0]}, other weights for its base's own layer: it cannot share them with "
                "another model"
            )


def held_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of memory under tensors; memory that several of them share counts once."""
    # By the memory itself: views, and models that share a base, count once.
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.is_mkldnn:
            sizes[id(tensor)] = tensor.numel() * tensor.element_size()
        else:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
