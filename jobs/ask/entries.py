"""Check the models that a recipe names, before any is loaded."""

import re
from collections.abc import Mapping
from pathlib import Path

from jobs.ask.recipe import AskRecipe
from wm.errors import InputError
from wm.evaluation.questions.asking import AskedModel
from wm.models import base_of, hub_hint, is_adapter, model_folder, read_manifest
from wm.models.sharing import check_shareable
from wm.packaged import PREFIX, SHIPPED, to_packaged_name
from wm.runs import digest_of


def build_models(recipe: AskRecipe) -> dict[str, AskedModel]:
    """Build the models to ask, each checked by name, folder and base.

    Args:
        recipe: The models.

    Returns:
        The models by name.

    Raises:
        InputError: A folder is missing, or a base does not fit.
    """
    models = {}
    for name, entry in recipe.models.items():
        key = f"models.{name}"
        # It becomes part of file names.
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"{key}: a name holds letters, digits, - and _ only")
        if not Path(entry.path).is_dir():
            raise InputError(f"{key}.path: no such model folder: {entry.path}{hub_hint(entry.path)}")
        if entry.reads == "pixels" and entry.base:
            raise InputError(f"{key}.base = {entry.base!r}: a model that reads pixels is asked as it is; leave it out")
        base = entry.base
        if entry.reads == "codes" and is_adapter(entry.path):
            # On another base an adapter would load, and give noise.
            base_of(entry.path, base or None)
            if recipe.resources.base_sharing == "shared":
                check_shareable(model_folder(entry.path))
        elif base:
            raise InputError(f"{key}.base = {base!r}: {entry.path} is no adapter; leave it out")
        # A full model needs no base, and has refused one.
        models[name] = AskedModel(name, entry.path, entry.label, entry.seed, base, entry.reads)
    return models


def digest_models(models: Mapping[str, AskedModel]) -> dict[str, str]:
    """Compute a digest of each model: answers of another one are not those of this run."""
    return {f"model {name}": digest_of(model.path) for name, model in models.items()}


def list_toy_models(recipe: AskRecipe) -> list[str]:
    """List the models of the nano world, beside which no published number is shown."""
    # Trained on the shipped base, a model is of the toy world, too.
    shipped = read_manifest(SHIPPED / "base") if (SHIPPED / "base").is_dir() else None
    names = []
    for name, entry in recipe.models.items():
        manifest = read_manifest(entry.path) if entry.reads == "codes" else None
        is_shipped = to_packaged_name(entry.path).startswith(PREFIX)
        shares_base = manifest is not None and shipped is not None and manifest.base_id == shipped.base_id
        if is_shipped or shares_base:
            names.append(name)
    return names
