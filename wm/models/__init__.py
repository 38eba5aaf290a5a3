"""Image codec, model families, the one prompt layout, and folders of real checkpoints in and out.

A name is imported when it is first used: what reads a manifest alone does not wait for transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wm.models.checkpoints import base_of, copy_model, load_codec, load_model, save_model
    from wm.models.codec.codec import ImageCodec, change_map
    from wm.models.families import FAMILIES
    from wm.models.identity import base_id_of
    from wm.models.manifest import (
        Manifest,
        is_adapter,
        is_model_folder,
        model_folder,
        read_adapter_manifest,
        read_manifest,
    )
    from wm.models.prompts import Segment, Task, flatten, pack
    from wm.models.unreadable import explain_unreadable, hub_hint
    from wm.models.vlm import UnifiedVLM

_MODULES = {
    "checkpoints": ("base_of", "copy_model", "load_codec", "load_model", "save_model"),
    "codec.codec": ("ImageCodec", "change_map"),
    "families": ("FAMILIES",),
    "identity": ("base_id_of",),
    "manifest": (
        "Manifest",
        "is_adapter",
        "is_model_folder",
        "model_folder",
        "read_adapter_manifest",
        "read_manifest",
    ),
    "prompts": ("Segment", "Task", "flatten", "pack"),
    "unreadable": ("explain_unreadable", "hub_hint"),
    "vlm": ("UnifiedVLM",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "FAMILIES",
    "ImageCodec",
    "Manifest",
    "Segment",
    "Task",
    "UnifiedVLM",
    "base_id_of",
    "base_of",
    "change_map",
    "copy_model",
    "explain_unreadable",
    "flatten",
    "hub_hint",
    "is_adapter",
    "is_model_folder",
    "load_codec",
    "load_model",
    "model_folder",
    "pack",
    "read_adapter_manifest",
    "read_manifest",
    "save_model",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    return value
