"""``wm_model.json``, beside the weights: what a folder holds and what it was made for."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError
from wm.models.folder_checks import read_json
from wm.models.release.read import find_release
from wm.runs import write_json

MANIFEST = "wm_model.json"


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
    """An adapter's base folder, relative to the adapter's; a hint that ``base=`` overrides."""

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))


def model_folder(path: str | Path) -> Path:
    """Return the model folder meant by ``path``: itself, or the ``model`` in the folder of the run that trained it.

    An original release (:mod:`wm.models.release.read`) is meant by its root, its model or its tokenizer folder.
    """
    folder = Path(path)
    if not _has_config(folder) and _has_config(folder / "model"):
        return folder / "model"
    return folder


def is_model_folder(path: str | Path) -> bool:
    """Return whether there is a model at ``path``, of whatever layout; nothing of it is read."""
    folder = model_folder(path)
    if _has_config(folder):
        return True
    release = find_release(folder)
    return release is not None and release.model is not None


def _has_config(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
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


def need_same_codec(actual: str, expected: str, where: str | Path) -> None:
    """Raise :class:`InputError` naming both if a model was made with another codec than it would get."""
    if actual != expected:
        raise InputError(f"{where} was made with image codec {expected}, but the codec here is {actual}")
