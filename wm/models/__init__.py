"""Image codec, model families, the one prompt layout, and folders of real checkpoints in and out."""

from wm.models.checkpoints import base_of, load_codec, load_model, save_model
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
