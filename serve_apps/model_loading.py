"""Load the models of a replica: those of a recipe for its tasks, over shared weights where the recipe says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from serve_apps.model_keys import EditorTable, PixelsTable
from serve_apps.model_kinds import ServedKinds
from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.recipe import ServeRecipe
from serve_apps.served_editor import EditorModel
from serve_apps.served_models import CodeModel, PixelModel
from wm.dynamics import Role, find_shared_base, load_role, load_roles
from wm.models import ImageCodec, load_codec, read_manifest
from wm.models.manifest import is_adapter
from wm.models.pixels.chats import PROMPT

ServedModel: TypeAlias = CodeModel | PixelModel | EditorModel
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Side of an editor's images where neither the recipe nor the pipeline says one.
EDITOR_SIDE_PX = 1024
_SIDE_STEP_PX = 64


@dataclass(frozen=True)
class Loaded:
    """Models of a replica.

    Attributes:
        models: By their names.
        base: The bare base that they are adapters of, where they share it.
        codec: Of those with image codes; None where there are none.
    """

    models: dict[str, ServedModel]
    base: Role | None
    codec: ImageCodec | None


def load_models(recipe: ServeRecipe, served: ServedKinds, tasks: Sequence[str]) -> Loaded:
    """Load the recipe's models for some tasks.

    Args:
        recipe: What is served.
        served: How its models exchange images.
        tasks: Of the replica.

    Raises:
        InputError: A model cannot be loaded.
    """
    models: dict[str, ServedModel] = {}
    # 1. Models with image codes, which may share weights.
    base, roles = _load_roles(recipe, served, [task for task in tasks if served.kinds[task] == "codes"])
    if recipe.baseline and FDM in tasks:
        roles[BASELINE] = _load_baseline(recipe, recipe.baseline, base)
    # One codec for all that have the same.
    codecs: dict[str, ImageCodec] = {}
    for name, role in roles.items():
        codec_id, folder = role.model.codec_id, recipe.model_folders()[name]
        if codec_id not in codecs:
            codecs[codec_id] = load_codec(_base_for(folder, recipe.base) or folder, device=recipe.device)
        models[name] = CodeModel(role.model, role.runner, codecs[codec_id])
    # 2. The others, each with weights of its own.
    if IDM in tasks and served.kinds[IDM] == "pixels":
        models[IDM] = _load_pixels(recipe)
    if FDM in tasks and served.kinds[FDM] == "editor":
        models[FDM] = _load_editor(recipe)
    return Loaded(models, base, next(iter(codecs.values()), None))


def _load_roles(recipe: ServeRecipe, served: ServedKinds, tasks: Sequence[str]) -> tuple[Role | None, dict[str, Role]]:
    """Load models with image codes, and the bare base that they are adapters of, where they share it."""
    dtype, folders = DTYPES[recipe.dtype], recipe.model_folders()
    # Adapters are applied as they run over the bare base, the recipe's two as well.
    if recipe.adapters or recipe.base_sharing == "shared":
        base = load_role(find_shared_base(recipe.fdm, recipe.idm, recipe.base), device=recipe.device, dtype=dtype)
        return base, {task: load_role(folders[task], base=recipe.base, over=base) for task in tasks}
    if len(tasks) > 1 and served.exchanges_codes:
        both = load_roles(recipe.fdm, recipe.idm, base=recipe.base, device=recipe.device, dtype=dtype)
        return None, {FDM: both.fdm, IDM: both.idm}
    return None, {
        task: load_role(folders[task], base=_base_for(folders[task], recipe.base), device=recipe.device, dtype=dtype)
        for task in tasks
    }


def _load_baseline(recipe: ServeRecipe, folder: str, base: Role | None) -> Role:
    """Load the second forward model, over the weights of the shared base where it is that base or an adapter of it."""
    manifest = read_manifest(folder)
    is_of_base = base is not None and manifest is not None and manifest.base_id == base.model.base_id
    if is_of_base and is_adapter(folder):
        return load_role(folder, base=recipe.base, over=base)
    if is_of_base and base is not None and manifest is not None and manifest.kind == "base":
        return base
    return load_role(folder, base=_base_for(folder, recipe.base), device=recipe.device, dtype=DTYPES[recipe.dtype])


def _load_pixels(recipe: ServeRecipe) -> PixelModel:
    from wm.dynamics.pixel_inverse import load_pixel_inverse

    table = recipe.pixels or PixelsTable()
    inverse = load_pixel_inverse(
        recipe.idm,
        base=table.base,
        device=table.device or recipe.device,
        dtype=DTYPES[table.dtype or recipe.dtype],
        prompt=table.prompt or PROMPT,
        image_cache_mb=table.image_cache_mb,
    )
    return PixelModel(inverse)


def _load_editor(recipe: ServeRecipe) -> EditorModel:
    from wm.dynamics.editor_forward import load_editor_forward

    table = recipe.editor or EditorTable()
    forward = load_editor_forward(
        recipe.fdm,
        device=table.device or recipe.device,
        dtype=DTYPES[table.dtype or recipe.dtype],
        pipeline=table.pipeline,
        settings=table.settings,
        resolution=table.resolution,
        scheduler=table.scheduler,
        safety_checker=table.safety_checker,
        batch_size=table.batch_size,
    )
    # What nobody waits for any longer is not worth more silence.
    return EditorModel(forward, _side_of(table, forward.editor.resolution), max_silence_s=max(60.0, recipe.timeout_s))


def _side_of(table: EditorTable, resolution: int) -> int:
    """Return the side of the squares that an editor is given: the recipe's, or what its pipeline would make of them."""
    side_px = -(-resolution // _SIDE_STEP_PX) * _SIDE_STEP_PX
    return table.side_px or side_px or EDITOR_SIDE_PX


def _base_for(folder: str, base: str | None) -> str | None:
    """Return the base of an adapter, None for a full model."""
    return base if is_adapter(folder) else None
