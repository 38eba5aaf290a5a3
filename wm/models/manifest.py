"""``wm_model.json``, beside the weights: what a folder holds and what it was made for."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.files.uris import parse_address
from wm.models.folder_checks import read_json
from wm.models.remote import fetch_all, fetch_heads, fetch_heads_below, is_in_bucket, relative_uri, to_local
from wm.models.unreadable import convert_command, find_release_models
from wm.packaged import PREFIX, resolve_packaged, to_packaged_name
from wm.runs import write_json

MANIFEST = "wm_model.json"
ADAPTER_CONFIG = "adapter_config.json"
_CONFIGS = ("config.json", ADAPTER_CONFIG)
# The second is an image editor's (wm.models.pipelines.INDEX), by which kind_of knows one.
_OTHER_HEADS = (MANIFEST, "model_index.json")


class Manifest(Recipe):
    """Facts about a model folder that Hugging Face's files do not hold."""

    family: str
    """Name of the family: ``chameleon``, ``liquid``, ``lumina``, ``emu3``, ``emu3_5``, ``janus``, …"""
    kind: Literal["base", "full", "adapter"]
    """``base``: pre-trained; ``full``: all weights fine-tuned; ``adapter``: a PEFT adapter alone."""
    base_id: str
    """Fingerprint of the base: this folder's own if ``base``, else of the model training started from."""
    codec_id: str = ""
    """Identity of the image codec whose codes the model speaks; empty for a model that reads pixels."""
    decoder_id: str = ""
    """Identity of the codec with its decoder; empty for an adapter, or where there was no decoder."""
    task: Literal["idm", "fdm"] | None = None
    """What it was fine-tuned for; none for a base."""
    recipe_digest: str = ""
    """Digest of the recipe that made it."""
    action_slot_tokens: int = Field(default=0, ge=0, le=4096)
    """Length to which forward prompts pad the action; 0: not at all. Part of the prompt layout."""
    base_path: str = ""
    """An adapter's base folder, relative to the adapter's, or the name of a shipped one, such as ``nano:base``, or the
    URI of one in another bucket; a hint that ``base=`` overrides."""

    @property
    def reads_pixels(self) -> bool:
        """Whether it is a vision-language model that reads pixels, and has no image codec."""
        return not self.codec_id

    def write(self, folder: Path) -> None:
        """Write it into ``folder``."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))


def model_folder(path: str | Path) -> Path:
    """Return the model folder meant by ``path``: itself, or the ``model`` in the folder of the run that made it, or the
    shipped one that ``nano:NAME`` names.

    Of a folder in a bucket the configuration and the manifest are brought here; :func:`fetch_model` brings the rest.

    Args:
        path: A local path, a URI, or a name.

    Returns:
        A local path.

    Raises:
        InputError: It is in a bucket, and not there or not to be read.
    """
    folder = to_local(resolve_packaged(str(path)))
    if is_in_bucket(folder):
        return fetch_heads(folder, _CONFIGS, _OTHER_HEADS)
    # A run's folder holds its record beside the model.
    if not _has_config(folder) and _has_config(folder / "model"):
        return folder / "model"
    return folder


def fetch_model(path: str | Path) -> Path:
    """Return the folder of :func:`model_folder` with all its files on this node, to be loaded.

    Args:
        path: A local path, a URI, or a name.

    Raises:
        InputError: As :func:`model_folder`, or the node has not the room.
    """
    return fetch_all(model_folder(path))


def list_model_folders(folder: Path) -> list[Path]:
    """List the model folders, or those of the runs that trained them, in a folder of a bucket.

    Args:
        folder: A mirrored path.

    Raises:
        InputError: The bucket cannot be read.
    """
    return fetch_heads_below(folder, _CONFIGS, (MANIFEST,))


def is_model_folder(path: str | Path) -> bool:
    """Return whether there is a model at ``path``, full or an adapter; nothing of it is read."""
    return _has_config(model_folder(path))


def is_adapter(path: str | Path) -> bool:
    """Return whether a model folder holds a PEFT adapter alone."""
    return (model_folder(path) / ADAPTER_CONFIG).is_file()


def _has_config(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in _CONFIGS)
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
    path: str | Path = base if base is not None else manifest.base_path
    cause = ""
    try:
        path = base if base is not None else named_base(folder, manifest.base_path)
        base_folder = model_folder(path)
        is_folder = base_folder.is_dir()
    except (InputError, OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        base_folder, is_folder = to_local(path), False
        # Of a bucket there is more to say: no login, no answer.
        cause = f" ({error})" if uri_of(base_folder) is not None else ""
    if not is_folder:
        raise InputError(
            f"adapter {folder}: its base {manifest.base_id} is not at {str(base_folder)!r:.300}{cause}; give base="
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


def named_base(folder: Path, base_path: str) -> Path:
    """Return the path of the base that a manifest names; it need not be there.

    Args:
        folder: The adapter's folder.
        base_path: Of its manifest.

    Raises:
        InputError: The path leads out of the adapter's bucket, or nothing of that name is shipped.
    """
    if base_path.startswith(PREFIX) or "://" in base_path:
        return to_local(resolve_packaged(base_path))
    # Another node has the bucket's folders below another root: the path is one within the bucket.
    if uri_of(folder) is not None and not base_path.startswith("/"):
        return relative_uri(folder, base_path)
    return Path(os.path.normpath(folder.resolve() / base_path))


def name_base(base: Path, folder: Path) -> str:
    """Write where an adapter's base is, as a manifest in the adapter's folder names it.

    Args:
        base: The base's folder.
        folder: The adapter's.

    Returns:
        A path relative to the adapter's folder, so that both can be moved together; the name of a shipped base; the
        URI of one in a bucket, unless the adapter goes into the same bucket; an absolute path, if the adapter alone
        goes into a bucket.
    """
    base_uri, uri = uri_of(base), uri_of(folder)
    if base_uri is not None:
        source, target = parse_address(base_uri), parse_address(uri or base_uri)
        is_same = uri is not None and replace(source, key="") == replace(target, key="")
        return os.path.relpath(source.key, target.key) if is_same else base_uri
    name = to_packaged_name(str(base.resolve()))
    if name.startswith(PREFIX) or uri is not None:
        return name
    return os.path.relpath(name, folder.resolve())


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
