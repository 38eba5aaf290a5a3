"""Check what a recipe names before any of it is served: model folders, the key file, example images."""

from pathlib import Path

from serve_apps.examples import load_examples
from serve_apps.keys import read_keys
from serve_apps.recipe import OTHER_CODEC, ServeRecipe
from wm.errors import InputError
from wm.packaged import SHIPPED


def check_models(recipe: ServeRecipe) -> str:
    """Check the folders and files of a recipe; the codecs are read, the language models are not.

    Args:
        recipe: What is to be served.

    Returns:
        The id of the image codec that both models speak.

    Raises:
        InputError: A folder is no model, the two models speak of different image codecs, or the key file or an example
            image cannot be read.
    """
    # torch is imported with them: a command that prints its help needs none.
    from wm.dynamics import check_draft_length, find_shared_base
    from wm.models import hub_hint, load_codec, read_manifest

    # 1. Files that are read when the server is up already.
    if recipe.keys:
        read_keys(recipe.keys)
    load_examples(recipe.examples, recipe.limits())
    # 2. Folders.
    for key in ("fdm", "idm", "base", "adapters"):
        folder = getattr(recipe, key)
        if folder is not None and not Path(folder).is_dir():
            if key == "adapters":
                raise InputError(f"{key} = {folder!r}: no such folder")
            raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    # 3. What the models say of themselves: no weights are read for it.
    manifests = {folder: read_manifest(folder) for folder in (recipe.fdm, recipe.idm)}
    codecs = [
        manifest.codec_id if manifest is not None else load_codec(recipe.base or folder).codec_id
        for folder, manifest in manifests.items()
    ]
    if len(set(codecs)) > 1:
        raise InputError(OTHER_CODEC.format(*codecs))
    if recipe.base_sharing == "shared" or recipe.adapters:
        find_shared_base(recipe.fdm, recipe.idm, recipe.base)
    if recipe.num_draft_tokens:
        check_draft_length(recipe.num_draft_tokens, load_codec(recipe.base or recipe.fdm).tokens_per_image)
    return codecs[0]


def is_toy(codec_id: str) -> bool:
    """Return whether a model's image codec is that of the toy world, whose base is installed with the package."""
    from wm.models import read_manifest

    manifest = read_manifest(SHIPPED / "base")
    return manifest is not None and manifest.codec_id == codec_id
