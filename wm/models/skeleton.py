"""Models without their weights: what a plan needs of a 7B or 34B folder, in seconds and without its memory."""

from dataclasses import replace
from pathlib import Path

import torch

from wm.errors import InputError
from wm.models.checkpoints import load_codec
from wm.models.families import family_of
from wm.models.folder_checks import refusing
from wm.models.manifest import adapter_base, fetch_model, is_adapter, read_adapter_manifest, read_manifest
from wm.models.remote import fetch_all
from wm.models.unreadable import check_folder_exists
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.weights import weight_files


def load_skeleton(path: str | Path, *, without_codec: bool = False) -> UnifiedVLM:
    """Load the model of a full folder (or of an adapter's base) on the ``meta`` device: configuration, tokenizer and
    prompt layout, shapes without numbers. Of the weights only the image codec's are read, whose id rows are compared
    with.

    Args:
        path: A full model folder, or an adapter's.
        without_codec: Take a folder whose weights are not there too; ``codec_id`` is then what its manifest says, or
            empty.

    Returns:
        The model.

    Raises:
        InputError: The folder is no model of a known family.
    """
    folder = fetch_model(path)
    check_folder_exists(folder)
    slot_tokens = None
    if is_adapter(folder):
        slot_tokens = read_adapter_manifest(folder).action_slot_tokens
        folder = fetch_all(adapter_base(folder))
    with refusing(f"{folder} is no model that can be read"):
        facts = _facts_without_weights(folder) if without_codec and not _has_all_weights(folder) else _facts(folder)
        # The prompt layout is the adapter's, not the base's.
        if slot_tokens is not None:
            facts = replace(facts, action_slot_tokens=slot_tokens)
        return family_of(folder).load(folder, "meta", torch.float32, facts)


def _has_all_weights(folder: Path) -> bool:
    """Return whether the weight files of a full folder are all there; not what is in them."""
    try:
        return bool(weight_files(folder))
    except InputError:
        return False


def _facts(folder: Path) -> Facts:
    codec = load_codec(folder)
    return Facts("", codec.codec_id, codec.tokens_per_image, codec.num_codes, _slot_tokens(folder), folder)


def _facts_without_weights(folder: Path) -> Facts:
    family = family_of(folder)
    if family.codec_shape is None:
        return _facts(folder)
    tokens_per_image, num_codes = family.codec_shape(folder)
    manifest = read_manifest(folder)
    codec_id = manifest.codec_id if manifest is not None else ""
    return Facts("", codec_id, tokens_per_image, num_codes, _slot_tokens(folder), folder)


def _slot_tokens(folder: Path) -> int:
    manifest = read_manifest(folder)
    return manifest.action_slot_tokens if manifest is not None else 0
