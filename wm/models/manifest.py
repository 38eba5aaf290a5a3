"""``wm_model.json``, beside the weights: what a folder holds and what it was made for."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError
from wm.models.folder_checks import read_json
from wm.models.unreadable import convert_command, find_release_models
from wm.packaged import PREFIX, resolve_packaged
from wm.runs import write_json

MANIFEST = "wm_model.json"
ADAPTER_CONFIG = "adapter_config.json"


class Manifest(Recipe):
    """Facts about a model folder that Hugging Face's files do not hold."""

    family: str
    """Name of the family: ``chameleon``, ``liquid``, ``emu3``, ``janus``, …"""
    kind: Literal["base", "full", "adapter"]
    """``base``: pre-trained; ``full``: all weights fine-tuned; ``adapter``: a PEFT adapter alone."""
    base_id: str
    """Fingerprint of the base: this folder's own if ``base``, else of the model training started from."""
    codec_id: str
    """Identity of the image codec whose codes the model speaks."""
    decoder_id: str = ""
    """Identity of the codec with its decoder; empty for an adapter, or where there was no decoder."""
    task: Literal["idm", "fdm"] | None = None
    """What it was fine-tuned for; none for a base."""
    recipe_digest: str = ""
    """Digest of the recipe that made it."""
    action_slot_tokens: int = Field(default=0, ge=0, le=4096)
    """Length to which forward prompts pad the action; 0: not at all. Part of the prompt layout."""
    base_path: str = ""
    """An adapter's base folder, relative to the adapter's, or the name of a shipped one, such as ``nano:base``; a hint
    that ``base=`` overrides."""

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))


def model_folder(path: str | Path) -> Path:
    """Return the model folder meant by ``path``: itself, or the ``model`` in the folder of the run that made it, or the
    shipped one that ``nano:NAME`` names."""
    folder = Path(resolve_packaged(str(path)))
    # A run's folder holds its record beside the model.
    if not _has_config(folder) and _has_config(folder / "model"):
        return folder / "model"
    return folder


def is_model_folder(path: str | Path) -> bool:
    """Return whether there is a model at ``path``, full or an adapter; nothing of it is read."""
    return _has_config(model_folder(path))


def is_adapter(path: str | Path) -> bool:
    """Return whether a model folder holds a PEFT adapter alone."""
    return (model_folder(path) / ADAPTER_CONFIG).is_file()


def _has_config(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
    except (OSError, ValueError) as error:  # no permission, a name that is too long
        raise InputError(f"{str(folder)[:200]!r} cannot be read: {error}") from error


def read_manifest(folder: str | Path) -> Manifest | None:
    """Read the manifest of a model folder, or None if it has none (a released checkpoint)."""
    path = model_folder(folder) / MANIFEST
    try:
        is_there = path.is_file()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    return Manifest.parse(read_json(path), str(path)) if is_there else None


def read_adapter_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of an adapter folder.

    Args:
        folder: An adapter's folder, or that of the run that trained it.

    Returns:
        The manifest.

    Raises:
        InputError: There is none; the message says how to write one.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        path = model_folder(folder)
        raise InputError(
            f"adapter {path} has no {MANIFEST}, which names the base and codec it was made for; one that was trained "
            f"elsewhere gets it by: wm convert adapter={path} base=BASE task=idm out=OUT"
        )
    return manifest


def adapter_base(folder: Path, base: str | Path | None = None) -> Path:
    """Find the base of an adapter; its identity is not compared.

    Args:
        folder: The adapter's folder.
        base: The base's folder; None: the one that the manifest names.

    Returns:
        A full model folder.

    Raises:
        InputError: It is not there, or is no full model that can be read.
    """
    manifest = read_adapter_manifest(folder)
    if base is None and not manifest.base_path:
        raise InputError(f"adapter {folder} does not say where its base is; give base=")
    path = base if base is not None else manifest.base_path
    if base is None and not manifest.base_path.startswith(PREFIX):
        path = os.path.normpath(folder.resolve() / manifest.base_path)
    try:
        base_folder = model_folder(path)
        is_folder = base_folder.is_dir()
    except (InputError, OSError, ValueError):  # a name that is too long, or holds a zero byte
        base_folder, is_folder = Path(path), False
    if not is_folder:
        raise InputError(
            f"adapter {folder}: its base {manifest.base_id} is not at {str(base_folder)!r:.300}; give base="
        )
    # Adapters of adapters are not made here, and a chain of them may be a circle.
    if is_adapter(base_folder):
        raise InputError(f"adapter {folder}: its base {base_folder} is an adapter itself, expected a full model folder")
    # Earlier versions trained on releases as they are; the converted folder has the same id.
    if find_release_models(base_folder):
        raise InputError(
            f"adapter {folder} was trained on the original release {base_folder}: {convert_command(base_folder)} as "
            f"base=, or as base_path in {folder / MANIFEST}"
        )
    return base_folder


def check_same_base(folder: Path, base_id: str, where: str | Path) -> None:
    """Check that an adapter was trained on a base.

    Args:
        folder: The adapter's folder.
        base_id: Of the base at hand.
        where: Named in the error.

    Raises:
        InputError: It was trained on another; both are named.
    """
    expected = read_adapter_manifest(folder).base_id
    if base_id != expected:
        raise InputError(f"adapter {folder} was trained on base {expected}, but {where} is {base_id}")


def check_same_codec(actual: str, expected: str, where: str | Path) -> None:
    """Raise :class:`InputError` naming both if a model was made with another codec than it would get.

    Args:
        actual: Identity of the codec at hand.
        expected: Identity of the codec that the model was made with.
        where: The model's folder, named in the error.
    """
    if actual != expected:
        raise InputError(f"{where} was made with image codec {expected}, but the codec here is {actual}")
