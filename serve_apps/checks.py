"""Check what a recipe names before any of it is served: model folders, the key file, example images."""

from pathlib import Path

from serve_apps.examples import load_examples
from serve_apps.keys import read_keys
from serve_apps.model_keys import EditorTable, PixelsTable
from serve_apps.model_kinds import check_kinds, is_toy, read_kinds
from serve_apps.names import FDM, IDM
from serve_apps.recipe import ServeRecipe
from wm.errors import InputError
from wm.files.mirror import list_below, shown, uri_of

__all__ = ["check_models", "is_toy"]


def check_models(recipe: ServeRecipe) -> str:
    """Check the folders and files of a recipe; codecs are read where no manifest names them, the models are not.

    Args:
        recipe: What is to be served.

    Returns:
        The id of the FDM's image codec; empty for an image editor.

    Raises:
        InputError: A folder is no model, the models do not go together, a key would have no effect, or the key file or
            an example image cannot be read.
    """
    # torch is imported with it: a command that prints its help needs none.
    from wm import models

    # 1. Files that are read when the server is up already.
    if recipe.keys and uri_of(recipe.keys) is not None:
        raise InputError(
            f"keys = {uri_of(recipe.keys)!r}: expected a local file, which is read again whenever it changes; on "
            "Kubernetes mount a Secret"
        )
    if recipe.keys:
        read_keys(recipe.keys)
    load_examples(recipe.examples, recipe.limits())
    # 2. Folders.
    for key in ("fdm", "idm", "base", "baseline", "adapters"):
        folder = getattr(recipe, key)
        if folder is not None and uri_of(folder) is not None:
            _look_up(key, folder)
        elif folder is not None and not Path(folder).is_dir():
            if key == "adapters":
                raise InputError(f"{key} = {folder!r}: no such folder")
            raise InputError(f"{key} = {folder!r}: no such model folder{models.hub_hint(folder)}")
    # 3. What the models say of themselves: no weights are read for it.
    served = read_kinds(recipe)
    check_kinds(recipe, served)
    # Without these two no model's code is imported: it would take a server seconds more to start.
    # Weights in a bucket are not brought to whoever starts the server: its replicas compare them as they load.
    is_here = not any(uri_of(folder) for folder in (recipe.fdm, recipe.idm, recipe.base or ""))
    if is_here and (recipe.base_sharing == "shared" or recipe.adapters):
        from wm.dynamics import find_shared_base

        find_shared_base(recipe.fdm, recipe.idm, recipe.base)
    if is_here and recipe.num_draft_tokens:
        from wm.dynamics import check_draft_length

        folder = recipe.base if recipe.base and models.is_adapter(recipe.fdm) else recipe.fdm
        check_draft_length(recipe.num_draft_tokens, models.load_codec(folder).tokens_per_image)
    # 4. What of a model without codes can be known before its weights are read, which takes minutes.
    if served.kinds[FDM] == "editor" and uri_of(recipe.fdm) is None:
        _check_pipeline(recipe.fdm, recipe.editor or EditorTable())
    if served.kinds[IDM] == "pixels" and uri_of(recipe.idm) is None:
        _check_processor(recipe.idm, recipe.pixels or PixelsTable())
    return served.codecs[FDM]


def _check_pipeline(folder: str, table: EditorTable) -> None:
    """Check the class of a pipeline, its folder's parts and the names of its settings."""
    from wm.dynamics.editor_calls import list_call_settings
    from wm.dynamics.editor_forward import check_editor_folder
    from wm.models.folders import quiet_transformers
    from wm.models.pipeline_folders import name_pipeline
    from wm.models.pipelines import find_editor_class

    # Its import says which optional packages are not there.
    with quiet_transformers():
        check_editor_folder(folder, table.pipeline, safety_checker=table.safety_checker, scheduler=table.scheduler)
        name = table.pipeline or name_pipeline(Path(folder))
        arguments = list_call_settings(find_editor_class(name))
    if unknown := [key for key in table.settings if key not in arguments]:
        names = ", ".join(sorted(arguments))
        raise InputError(f"editor.settings.{unknown[0]}: {name} takes no such argument; expected one of {names}")


def _check_processor(folder: str, table: PixelsTable) -> None:
    """Check that a model's processor and chat template take two images."""
    from wm.dynamics.pixel_check import check_pixel_files
    from wm.models import is_adapter

    if table.base and not is_adapter(folder):
        raise InputError(f"pixels.base = {shown(table.base)!r}: idm = {shown(folder)!r} is no adapter; leave it out")
    check_pixel_files(folder, table.base, table.prompt)


def _look_up(key: str, folder: str) -> None:
    """Raise :class:`InputError` if a folder of a bucket is not there."""
    from wm import models

    try:
        if key == "adapters":
            list_below(folder)
        else:
            models.model_folder(folder)
    except InputError as error:
        raise InputError(f"{key} = {shown(error)}") from error
