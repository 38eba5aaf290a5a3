"""Load the forward and the inverse model of a job, after checking their folders. Knows nothing of what they predict."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch

from jobs.shared.devices import RolesDeviceSettings, check_device
from wm.config import Recipe
from wm.dynamics import Roles, Sampling, find_shared_base, load_roles
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.models import ImageCodec, hub_hint, is_adapter, model_folder, read_adapter_manifest, read_manifest
from wm.paths import ModelPath


class RolesRecipe(Recipe):
    """The two models and where they run."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.batch_size"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "device": "resources.device",
        "dtype": "resources.dtype",
        "batch_size": "resources.batch_size",
        "weights": "resources.base_sharing",
    }

    fdm: ModelPath
    """Model folder of the forward model: full weights or an adapter."""
    idm: ModelPath
    """Model folder of the inverse model that verifies."""
    base: ModelPath = ""
    """Base folder of the adapters; empty: the one their manifests name."""
    sampling: Sampling = Sampling()
    """How candidates are sampled."""
    resources: RolesDeviceSettings = RolesDeviceSettings()
    """Where the models run."""


def check_roles(recipe: RolesRecipe) -> None:
    """Check both model folders by their manifests; no weights are read.

    Raises:
        InputError: A folder is missing or was trained for the other task, the two have different codecs, or their
            weights cannot be shared although ``resources.base_sharing = shared``.
    """
    check_device(recipe.resources.device)
    # Each folder by itself, then the two together.
    codecs = {}
    for role in ("fdm", "idm"):
        folder = getattr(recipe, role)
        if not _is_folder(folder):
            raise InputError(f"{role} = {folder!r}: no such model folder{hub_hint(folder)}")
        manifest = read_adapter_manifest(folder) if is_adapter(folder) else read_manifest(folder)
        if manifest is not None and manifest.task not in (None, role):
            raise InputError(f"{role} = {folder!r} was trained as {manifest.task}")
        if manifest is not None:
            codecs[role] = manifest.codec_id
    # Their codes would be numbers of different codebooks.
    if len(set(codecs.values())) > 1:
        raise InputError(f"fdm speaks codec {codecs['fdm']}, idm {codecs['idm']}: they cannot read each other's images")
    if recipe.base and not _is_folder(recipe.base):
        raise InputError(f"base = {recipe.base!r}: no such model folder{hub_hint(recipe.base)}")
    if recipe.base and not (is_adapter(recipe.fdm) or is_adapter(recipe.idm)):
        raise InputError(f"base = {recipe.base!r}, but neither fdm nor idm is an adapter")
    # Shared weights need two adapters of one base.
    if recipe.resources.base_sharing == "shared":
        find_shared_base(recipe.fdm, recipe.idm, recipe.base or None)


def _is_folder(path: str) -> bool:
    """Return whether a model folder is there; of one in a bucket that is not, :class:`InputError` says so."""
    return Path(path).is_dir() if uri_of(path) is None else model_folder(path).is_dir()


def load_recipe_roles(recipe: RolesRecipe, codec: ImageCodec) -> Roles:
    """Load both models with their decoders.

    Args:
        recipe: Folders and where the models run.
        codec: The codec of the images, which must be that of the models.

    Raises:
        InputError: The models have another codec, or guidance is wanted of a family that has none.
    """
    roles = load_roles(
        recipe.fdm, recipe.idm,
        base_sharing=recipe.resources.base_sharing, base=recipe.base or None,
        device=recipe.resources.device, dtype=getattr(torch, recipe.resources.dtype),
    )  # fmt: skip
    if roles.fdm.model.codec_id != codec.codec_id:
        raise InputError(
            f"{recipe.fdm} and {recipe.idm} speak codec {roles.fdm.model.codec_id}, that of the images is "
            f"{codec.codec_id}"
        )
    if recipe.sampling.is_guided:
        roles.fdm.model.check_guidance()
    return roles


def check_actions(roles: Roles, source_N: Sequence[int], actions: Iterable[str]) -> None:
    """Check that both models can read every action, before any of the work.

    Args:
        roles: The two models.
        source_N: Image codes of any source.
        actions: Action texts; each is checked once.

    Raises:
        InputError: One of the models cannot read an action.
    """
    for action in dict.fromkeys(actions):
        roles.fdm.model.layout("fdm", source=source_N, action=action)
        roles.idm.model.layout("idm", source=source_N, target=source_N, action=action)
