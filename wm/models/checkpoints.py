"""Model folders in and out: full Hugging Face folders and PEFT adapter folders, each with its manifest."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from wm.errors import InputError
from wm.files.mirror import publish
from wm.models.adapters import attach, merge_adapter
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import is_vqgan, read_codec
from wm.models.families import family_of, family_of_model
from wm.models.folder_checks import refusing
from wm.models.folder_writing import replace_folder
from wm.models.identity import base_id_of
from wm.models.manifest import (
    ADAPTER_CONFIG,
    MANIFEST,
    Manifest,
    adapter_base,
    check_same_base,
    check_same_codec,
    fetch_model,
    model_folder,
    name_base,
    named_base,
    read_adapter_manifest,
    read_manifest,
)
from wm.models.prompts import Task
from wm.models.remote import fetch_all, to_local
from wm.models.sharing import check_shareable, twin_of
from wm.models.unreadable import check_folder_exists, explain_release
from wm.models.vlm import Facts, UnifiedVLM


def load_codec(
    path: str | Path, device: str | torch.device = "cpu", *, decoder: str | Path | None = None
) -> ImageCodec:
    """Load the image codec of a full model folder of any family, or of an adapter folder's base, and no other weights.

    Args:
        path: A full model folder, an adapter's, or a VQGAN checkpoint of its own (``vqgan.ckpt`` with ``vqgan.yaml``
            beside, or the folder of these two).
        device: Where to put the codec.
        decoder: A ``vqgan.ckpt`` (or a folder with one) to take the decoder from, for a Hugging Face folder that came
            without; a file of that name inside such a folder is found by itself.

    Returns:
        The codec, in float32.

    Raises:
        InputError: Tensors do not fit, or encoder, codebook or decoder are not those that the folder's manifest names.
    """
    folder = model_folder(path)
    decoder_path = fetch_all(to_local(decoder)) if decoder is not None else None
    # An adapter has no codec of its own, but its manifest names the one that it was trained with.
    if (folder / ADAPTER_CONFIG).is_file():
        manifest: Manifest | None = read_adapter_manifest(folder)
        codec = load_codec(adapter_base(folder), device, decoder=decoder)
    else:
        fetch_all(folder)
        explain_release(folder)
        manifest = read_manifest(folder)
        with refusing(f"{folder} holds no image codec that can be read"):
            read = read_codec if is_vqgan(folder) else family_of(folder).read_codec
            codec = read(folder, device, decoder_path)
    # Codes of another codec would be numbers without meaning; another decoder, other pixels of the same codes.
    if manifest is not None:
        check_same_codec(codec.codec_id, manifest.codec_id, folder)
        if decoder_path is None and codec.has_decoder and manifest.decoder_id not in ("", codec.decoder_id):
            raise InputError(
                f"{folder} was made with the codec and decoder {manifest.decoder_id}, but those here are "
                f"{codec.decoder_id}; give decoder= to use another decoder"
            )
    return codec


def load_model(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    merge: bool = False,
    over: UnifiedVLM | None = None,
) -> UnifiedVLM:
    """Load a full model folder, or an adapter folder onto its base, in evaluation mode.

    Args:
        path: A model folder, or the folder of the run that trained it.
        base: An adapter's base folder; None: the one that its manifest names.
        device: Where to put the weights.
        dtype: Type of the weights.
        merge: Add an adapter into the weights: faster to run, equal up to rounding, and no longer an adapter.
        over: The base as it was loaded before, whose weights are then not read again but shared, as is their device
            and type; see :mod:`wm.models.sharing`.

    Returns:
        The model.

    Raises:
        InputError: The folder is no model, tensors are missing or misshapen, the adapter was made for another base or
            codec (both are named), or it cannot share its base.
    """
    folder = fetch_model(path)
    check_folder_exists(folder)
    # Shared weights have their device and type already.
    if over is not None:
        return _load_over(folder, over, base, merge)
    # Compared before gigabytes are loaded: an adapter of another base would load without an error.
    if not (folder / ADAPTER_CONFIG).is_file():
        _check_no_base(folder, base)
        return _load_full(folder, device, dtype)
    base_folder, _ = base_of(folder, base)
    vlm = _load_full(base_folder, device, dtype)
    adapted = attach(vlm, folder, read_adapter_manifest(folder))
    vlm.module = merge_adapter(adapted, folder) if merge else adapted
    return vlm


def base_of(path: str | Path, base: str | Path | None = None) -> tuple[Path, str]:
    """Find the weights that a model folder needs beside adapters; nothing is loaded.

    Args:
        path: A model folder.
        base: As for :func:`load_model`.

    Returns:
        Folder and id of an adapter's base, or of the full model itself.

    Raises:
        InputError: As :func:`load_model`.
    """
    folder = model_folder(path)
    if not (folder / ADAPTER_CONFIG).is_file():
        _check_no_base(folder, base)
        return folder, base_id_of(folder)
    base_folder = adapter_base(folder, base)
    base_id = base_id_of(base_folder)
    check_same_base(folder, base_id, base_folder)
    return base_folder, base_id


def _check_no_base(folder: Path, base: str | Path | None) -> None:
    if base is not None:
        raise InputError(f"{folder} is no adapter (no {ADAPTER_CONFIG}), so base={base} cannot be used")


def _load_over(folder: Path, over: UnifiedVLM, base: str | Path | None, merge: bool) -> UnifiedVLM:
    if merge:
        raise InputError(f"{folder}: merging would change the weights that it shares with others")
    if not (folder / ADAPTER_CONFIG).is_file():
        # The same weights in another folder may be shared as well.
        if base_of(folder, base)[1] != over.base_id:
            raise InputError(
                f"{folder} is a full model with weights of its own, no adapter of {over.base_id}: it cannot share them"
            )
        if folder != over.folder:
            check_same_codec(load_codec(folder).codec_id, over.codec_id, folder)
        return twin_of(over)
    # Nothing is loaded to find out: the manifest and the file's header are enough.
    check_same_base(folder, over.base_id, "the base to be shared")
    check_shareable(folder)
    vlm = twin_of(over)
    vlm.module = attach(vlm, folder, read_adapter_manifest(folder))
    return vlm


def _load_full(folder: Path, device: str | torch.device, dtype: torch.dtype) -> UnifiedVLM:
    fetch_all(folder)
    with refusing(f"{folder} is no model that can be loaded"):
        family = family_of(folder)
        # A manifest, where there is one, must name the codec and the weights that are in the folder.
        codec, manifest = family.read_codec(folder, "cpu", None), read_manifest(folder)
        base_id = base_id_of(folder)
        slot_tokens = 0
        # The id of a fine-tuned model's manifest is that of the base it started from: not compared.
        if manifest is not None:
            check_same_codec(codec.codec_id, manifest.codec_id, folder)
            if manifest.kind == "base" and manifest.base_id != base_id:
                raise InputError(f"{folder}: {MANIFEST} names base {manifest.base_id}, but the weights are {base_id}")
            slot_tokens = manifest.action_slot_tokens
        facts = Facts(base_id, codec.codec_id, codec.tokens_per_image, codec.num_codes, slot_tokens, folder)
        return family.load(folder, device, dtype, facts)


def save_model(
    vlm: UnifiedVLM,
    path: str | Path,
    *,
    kind: Literal["base", "full", "adapter"] | None = None,
    task: Task | None = None,
    codec: ImageCodec | None = None,
    recipe_digest: str = "",
    state_dict: Mapping[str, Tensor] | None = None,
) -> Manifest:
    """Write a model folder that :func:`load_model` and the Hugging Face classes load; an existing one is replaced.

    Args:
        vlm: The model, with or without an adapter.
        path: The folder to write; one given by its URI is uploaded.
        kind: None: ``adapter`` for a model that carries one, ``full`` otherwise.
        task: What the model was trained for; None for a base.
        codec: Its tensors become part of a full folder; None: those of the folder that the model was read from.
        recipe_digest: Digest of the recipe that made the model.
        state_dict: Replaces the module's own tensors (gathered from several processes; for an adapter, those of the
            PEFT model).

    Returns:
        The manifest that was written.

    Raises:
        InputError: ``kind`` does not fit the model, or the codec is absent or another one.
    """
    has_adapter = vlm.module is not vlm.inner
    kind = kind or ("adapter" if has_adapter else "full")
    if (kind == "adapter") != has_adapter:
        raise InputError(f"kind={kind!r}, but the model has {'an' if has_adapter else 'no'} adapter")
    out = to_local(path)
    codec = codec or (_codec_of(vlm, out) if kind != "adapter" else None)
    if codec is not None:
        check_same_codec(codec.codec_id, vlm.codec_id, out)
    # Written beside its place and renamed: a process that is killed leaves no half of a model.
    with replace_folder(out) as folder:
        manifest = _write_model(vlm, folder, out=out, kind=kind, codec=codec, state_dict=state_dict)
        manifest = manifest.model_copy(update={"task": task, "recipe_digest": recipe_digest})
        manifest.write(folder)
    # Of a mirrored path the caller knows when the rest of an output is ready.
    if "://" in str(path):
        publish(out)
    return manifest


def _write_model(
    vlm: UnifiedVLM,
    folder: Path,
    *,
    out: Path,
    kind: Literal["base", "full", "adapter"],
    codec: ImageCodec | None,
    state_dict: Mapping[str, Tensor] | None,
) -> Manifest:
    """Write the files of a model into ``folder``, which becomes ``out``; returns what they are."""
    base_path = ""
    if kind != "adapter" and codec is not None:
        tensors = state_dict if state_dict is not None else vlm.inner.state_dict()
        family_of_model(vlm).write(vlm, codec, tensors, folder)
    else:
        vlm.module.save_pretrained(folder, state_dict=state_dict, save_embedding_layers=False)
        if vlm.folder is not None:
            base_path = name_base(vlm.folder, out)
    return Manifest(
        family=vlm.family,
        kind=kind,
        base_id=base_id_of(folder) if kind == "base" else vlm.base_id,
        codec_id=vlm.codec_id,
        decoder_id=(codec.decoder_id or "") if kind != "adapter" and codec is not None else "",
        action_slot_tokens=vlm.action_slot_tokens,
        base_path=base_path,
    )


def copy_model(path: str | Path, out: Path) -> None:
    """Copy a model folder; an adapter's copy names the base from where it is now.

    Args:
        path: A model folder, or the folder of the run that trained it.
        out: The folder to write; one that is there is replaced.

    Raises:
        InputError: There is no such model.
    """
    source = fetch_model(path)
    check_folder_exists(source)
    manifest = read_manifest(source)
    with replace_folder(out) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        # A relative path means another folder from here.
        if manifest is not None and manifest.base_path:
            base_path = name_base(named_base(source, manifest.base_path), out)
            manifest.model_copy(update={"base_path": base_path}).write(folder)


def _codec_of(vlm: UnifiedVLM, out: Path) -> ImageCodec:
    if vlm.folder is None:
        raise InputError(f"cannot write {out}: give the codec, the model was not read from a folder that has one")
    return family_of(vlm.folder).read_codec(vlm.folder, "cpu", None)
