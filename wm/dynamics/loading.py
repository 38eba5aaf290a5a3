"""Load any model in either role from its folder: what a folder holds decides how it exchanges images."""

from pathlib import Path
from typing import Any

import torch

from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.protocols import ForwardModel, InverseModel
from wm.dynamics.roles import load_role
from wm.errors import InputError
from wm.models.checkpoints import load_codec
from wm.models.codec.codec import ImageCodec
from wm.models.kinds import kind_of
from wm.models.manifest import fetch_model, read_manifest

__all__ = ["kind_of", "load_forward_model", "load_inverse_model", "name_model"]


def load_inverse_model(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    rows: int = 8,
    codec: ImageCodec | None = None,
    **pixel_settings: Any,
) -> InverseModel:
    """Load any model as the inverse one.

    Args:
        path: A unified model or a vision-language model of transformers, full or an adapter.
        base: Base of an adapter; the one that its manifest names without it.
        device: Where the weights go.
        dtype: Their type.
        rows: How many token rows a pass usually has (a hint).
        codec: Codec of a unified model; loaded from its folder without it.
        pixel_settings: Of :func:`wm.dynamics.pixel_inverse.load_pixel_inverse`.

    Raises:
        InputError: The folder is no such model, or an editor, which says no action.
    """
    kind = kind_of(path, base)
    if kind == "editor":
        raise InputError(f"{path} is an image editor: it makes images and says no action; expected an inverse model")
    if kind == "pixels":
        from wm.dynamics.pixel_inverse import load_pixel_inverse

        return load_pixel_inverse(path, base=base, device=device, dtype=dtype, **pixel_settings)
    role = load_role(path, base=base, device=device, dtype=dtype, rows=rows)
    return CodeInverse(role, codec or load_codec(base or path, device), name_model(path, role.model.base_id))


def load_forward_model(
    path: str | Path,
    *,
    base: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    codec: ImageCodec | None = None,
    **editor_settings: Any,
) -> ForwardModel:
    """Load any model as the forward one.

    Args:
        path: A unified model, full or an adapter, or a pipeline of diffusers.
        base: Base of an adapter; the one that its manifest names without it.
        device: Where the weights go.
        dtype: Their type.
        codec: Codec of a unified model; loaded from its folder without it.
        editor_settings: Of :func:`wm.dynamics.editor_forward.load_editor_forward`.

    Raises:
        InputError: The folder is no such model, or one that reads pixels and makes none.
    """
    kind = kind_of(path, base)
    if kind == "pixels":
        raise InputError(f"{path} reads images and makes none; expected a forward model")
    if kind == "editor":
        from wm.dynamics.editor_forward import load_editor_forward

        return load_editor_forward(path, device=device, dtype=dtype, **editor_settings)
    role = load_role(path, base=base, device=device, dtype=dtype)
    return CodeForward(role, codec or load_codec(base or path, device), name_model(path, role.model.base_id))


def name_model(path: str | Path, base_id: str) -> str:
    """Name a model for records: the base's fingerprint and the digest of the recipe that fine-tuned it.

    Args:
        path: Its folder.
        base_id: Fingerprint of its base.
    """
    manifest = read_manifest(fetch_model(path))
    return f"{base_id}/{manifest.recipe_digest}" if manifest is not None and manifest.recipe_digest else base_id
