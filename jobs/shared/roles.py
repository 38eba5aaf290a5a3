"""Load the forward and the inverse model of a job, after checking their folders. Knows nothing of what they predict."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NoReturn

import torch

from jobs.shared.devices import RolesDeviceSettings, check_device
from wm.config import Recipe
from wm.dynamics import Sampling
from wm.dynamics.editor_forward import check_editor_search
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.pair_folders import PairFolders
from wm.dynamics.pairs import ModelPair
from wm.dynamics.pixel_settings import PixelsSettings
from wm.dynamics.settings import Search, check_draft_length
from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.models import ImageCodec, hub_hint, load_codec, model_folder
from wm.paths import ModelPath

if TYPE_CHECKING:
    from tqdm import tqdm


class RolesRecipe(Recipe):
    """The two models and where they run."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.batch_size"})
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"editor", "pixels"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "device": "resources.device",
        "dtype": "resources.dtype",
        "batch_size": "resources.batch_size",
        "weights": "resources.base_sharing",
    }

    fdm: ModelPath
    """Folder of the forward model: a unified model, full or an adapter, or an image editor of diffusers."""
    idm: ModelPath
    """Folder of the inverse model that verifies: a unified model or a vision-language model, full or an adapter."""
    base: ModelPath = ""
    """Base folder of the adapters of unified models; empty: the one their manifests name."""
    sampling: Sampling = Sampling()
    """How candidates are sampled; an editor has its own settings."""
    editor: EditorSettings = EditorSettings()
    """How the forward model is called, if it is an image editor."""
    pixels: PixelsSettings = PixelsSettings()
    """How the inverse model is asked, if it is a vision-language model."""
    resources: RolesDeviceSettings = RolesDeviceSettings()
    """Where the models run."""

    def folders(self) -> PairFolders:
        """Return where the models are, and how they are loaded."""
        return PairFolders(
            self.fdm,
            self.idm,
            base=self.base or None,
            base_sharing=self.resources.base_sharing,
            editor=self.editor,
            pixels=self.pixels,
        )


def check_roles(recipe: RolesRecipe, search: Search) -> None:
    """Check both model folders and the search by what needs no weights.

    Args:
        recipe: Folders and settings.
        search: How predictions are searched for.

    Raises:
        InputError: A folder is missing, its model cannot be in the role or was trained for the other, settings are
            for another kind of model, or weights cannot be shared although ``resources.base_sharing = shared``.
    """
    check_device(recipe.resources.device)
    # 1. The folders are there: what a name of the hub or of a bucket means is said at once.
    for role in ("fdm", "idm"):
        if not _is_folder(folder := getattr(recipe, role)):
            raise InputError(f"{role} = {folder!r}: no such model folder{hub_hint(folder)}")
    if recipe.base and not _is_folder(recipe.base):
        raise InputError(f"base = {recipe.base!r}: no such model folder{hub_hint(recipe.base)}")
    # 2. Each model fits its role, and the settings fit the models.
    folders = recipe.folders()
    fdm_kind, _ = folders.check_roles()
    if fdm_kind == "editor":
        check_editor_search(search, recipe.sampling)
    folders.check()


def load_forward_codec(recipe: RolesRecipe, search: Search) -> ImageCodec | None:
    """Load the codec of the forward model's images, which takes seconds where the models take minutes.

    Args:
        recipe: Folders that :func:`check_roles` has seen.
        search: How predictions are searched for.

    Returns:
        The codec; None for an image editor.

    Raises:
        InputError: More codes are drafted than an image has, or pixels have to be exchanged and the codec has no
            decoder.
    """
    folders = recipe.folders()
    fdm_kind, idm_kind = folders.check_roles()
    if fdm_kind == "editor":
        return None
    codec = load_codec(folders.codec_folder("fdm"), recipe.resources.device)
    check_draft_length(search.num_draft_tokens, codec.tokens_per_image)
    # What the inverse model reads is decoded, unless it speaks the same codec.
    if idm_kind == "pixels" or folders.has_other_codec(codec):
        codec.check_decoder()
    return codec


def _is_folder(path: str) -> bool:
    """Return whether a model folder is there; of one in a bucket that is not, :class:`InputError` says so."""
    return Path(path).is_dir() if uri_of(path) is None else model_folder(path).is_dir()


def load_recipe_roles(recipe: RolesRecipe, search: Search, codec: ImageCodec | None) -> ModelPair:
    """Load both models.

    Args:
        recipe: Folders and where the models run.
        search: How predictions are searched for.
        codec: That of the forward model, see :func:`load_forward_codec`.

    Raises:
        InputError: A folder is no model that can be loaded, or the models lack a setting.
    """
    pair = recipe.folders().load(
        device=recipe.resources.device, dtype=getattr(torch, recipe.resources.dtype), codec=codec
    )
    # Guidance is known of a family alone once its model is there.
    pair.forward.check_search(search, recipe.sampling)
    return pair


def show_steps(pair: ModelPair, bar: "tqdm[NoReturn]") -> ModelPair:
    """Let an editor show its denoising steps beside a progress bar, one unit of which may take it minutes.

    Args:
        pair: Any; of others than editors nothing changes.
        bar: Of :func:`wm.cli.progress_bar`.

    Returns:
        The pair to be used.
    """
    last_s = -math.inf

    def show(num_done: int, count: int) -> None:
        nonlocal last_s
        bar.set_postfix_str(f"{num_done}/{count} denoising steps", refresh=False)
        # As often as the bar itself: a log would get a line a step.
        if time.monotonic() - last_s >= bar.mininterval:
            last_s = time.monotonic()
            bar.refresh()

    return pair.listen(show)
