"""Find how a model exchanges images, by what its folder holds; no weights are read."""

from pathlib import Path
from typing import Literal, TypeAlias

from wm.models.checkpoints import base_of
from wm.models.families import FAMILIES
from wm.models.folder_checks import read_json
from wm.models.manifest import is_adapter, model_folder, read_manifest
from wm.models.pipelines import INDEX
from wm.models.remote import is_in_bucket

ModelKind: TypeAlias = Literal["codes", "pixels", "editor"]
"""How a model exchanges images: codes of its codec; pixels that it reads; pixels that it makes."""
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def kind_of(path: str | Path, base: str | Path | None = None) -> ModelKind:
    """Find how a model exchanges images, by its folder's configuration; no weights are read.

    Args:
        path: A model folder, full or an adapter, or the folder of a pipeline of diffusers.
        base: Base of an adapter; the one that its manifest names without it.

    Returns:
        ``editor`` for a pipeline; ``codes`` for a family of :data:`wm.models.families.FAMILIES`; else ``pixels``.

    Raises:
        InputError: The folder holds no configuration.
    """
    folder = model_folder(path)
    if (folder / INDEX).is_file():
        return "editor"
    if is_adapter(folder):
        manifest = read_manifest(folder)
        # What was trained here says it, whether its base is still there or not.
        if manifest is not None:
            return "pixels" if manifest.reads_pixels else "codes"
        # Adapters of other programs say nothing of their base.
        if base is not None:
            return kind_of(base)
        return kind_of(base_of(folder, base)[0])
    # Original releases of Chameleon and others: what loads codes says how to convert them.
    if not (folder / "config.json").is_file():
        return "codes"
    return "codes" if read_json(folder / "config.json").get("model_type") in FAMILIES else "pixels"


def reads_pixels(path: str | Path) -> bool:
    """Return whether a base is a vision-language model that reads pixels.

    Args:
        path: A model folder. One of a family that nobody knows and without an image processor is none: whoever loads it
            says what it is.
    """
    folder = model_folder(path)
    # Of a folder in a bucket the configuration alone is here.
    is_full = (folder / "config.json").is_file() and not is_adapter(folder) and not is_in_bucket(folder)
    if is_full and not any((folder / name).is_file() for name in _PROCESSORS):
        return False
    return kind_of(folder) == "pixels"
