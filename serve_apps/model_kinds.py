"""Find how the models of a recipe exchange images, and refuse what does not go together; no weights are read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_apps.names import BASELINE, FDM, IDM
from serve_apps.recipe import OTHER_CODEC, ServeRecipe
from wm.errors import InputError
from wm.files.mirror import shown
from wm.packaged import SHIPPED, to_packaged_name

if TYPE_CHECKING:  # torch is imported with it
    from wm.models.kinds import ModelKind

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance_scale": 1.0, "image_guidance_scale": 1.0}
"""Settings of sampling codes, with the values that ask for nothing."""
_LACKS = {"editor": "is an image editor", "pixels": "reads pixels", "codes": "has image codes"}


@dataclass(frozen=True)
class ServedKinds:
    """How a recipe's models exchange images.

    Attributes:
        kinds: ``codes``, ``pixels`` or ``editor``, by the model's name.
        codecs: Id of the image codec of each; empty for one that has none.
    """

    kinds: "dict[str, ModelKind]"
    codecs: dict[str, str]

    @property
    def exchanges_codes(self) -> bool:
        """Whether candidates go to the verifier as codes, which nothing decodes and encodes again."""
        return self.kinds[FDM] == self.kinds[IDM] == "codes" and self.codecs[FDM] == self.codecs[IDM]


def read_kinds(recipe: ServeRecipe) -> ServedKinds:
    """Read how each model that the recipe names exchanges images.

    Args:
        recipe: What is to be served.

    Raises:
        InputError: A folder is no model.
    """
    from wm.models.kinds import kind_of

    folders = recipe.model_folders()
    kinds = {name: kind_of(folder, _base_of(recipe, name)) for name, folder in folders.items()}
    # Read where no manifest names it: only what speaks codes has a codec.
    codecs = {name: _codec_of(folders[name]) if kind == "codes" else "" for name, kind in kinds.items()}
    return ServedKinds(kinds, codecs)


def check_kinds(recipe: ServeRecipe, served: ServedKinds) -> None:
    """Check that each model can do its task, that the two go together, and that every key has an effect.

    Args:
        recipe: What is to be served.
        served: What :func:`read_kinds` returned.

    Raises:
        InputError: It names the key and its value.
    """
    kinds = served.kinds
    # 1. Each model by itself.
    if kinds[IDM] == "editor":
        name = _name(recipe, IDM)
        raise InputError(f"{name} is an image editor: it makes images and says no action; expected an IDM")
    for name in (FDM, BASELINE):
        if kinds.get(name) == "pixels":
            raise InputError(f"{_name(recipe, name)} reads images and makes none; expected an FDM")
    _check_tasks(recipe)
    # 2. Both together.
    if recipe.base_sharing == "shared" or recipe.adapters:
        # Weights are shared by adapters of one base alone, as codes of its codec go between them.
        key = "adapters" if recipe.adapters else "base_sharing = 'shared'"
        for name in (FDM, IDM):
            if kinds[name] != "codes":
                raise InputError(f"{key}: {_name(recipe, name)} {_LACKS[kinds[name]]}; one base needs two with codes")
        if served.codecs[FDM] != served.codecs[IDM]:
            raise InputError(OTHER_CODEC.format(served.codecs[FDM], served.codecs[IDM]))
    _check_toy(recipe, served)
    _check_baseline(recipe, served)
    # 3. Keys that would have no effect: whoever gives them expects one.
    if recipe.editor is not None and kinds[FDM] != "editor":
        raise InputError(f"editor is given, and {_name(recipe, FDM)} is no pipeline of diffusers; leave it out")
    if recipe.pixels is not None and kinds[IDM] != "pixels":
        raise InputError(f"pixels is given, and {_name(recipe, IDM)} has an image codec; leave it out")
    if recipe.base and not any(_is_code_adapter(recipe, served, name) for name in kinds):
        hint = "of idm give pixels.base" if kinds[IDM] == "pixels" else "leave it out"
        raise InputError(f"base = {shown(recipe.base)!r}, but no model is an adapter of one with image codes; {hint}")
    if kinds[FDM] == "editor":
        _check_editor(recipe)


def list_notices(recipe: ServeRecipe) -> list[str]:
    """List what whoever starts a server may want to know of how its models exchange images.

    Args:
        recipe: What is to be served.
    """
    if read_kinds(recipe).exchanges_codes:
        return []
    return ["candidates go to the verifier as pixels: the two models have no image codec in common"]


def _is_code_adapter(recipe: ServeRecipe, served: ServedKinds, name: str) -> bool:
    from wm.models import is_adapter

    return served.kinds[name] == "codes" and is_adapter(recipe.model_folders()[name])


def _check_tasks(recipe: ServeRecipe) -> None:
    from wm.models import read_manifest

    # A base has no task, and may do both.
    for name, folder in recipe.model_folders().items():
        manifest, task = read_manifest(folder), IDM if name == IDM else FDM
        if manifest is not None and manifest.task not in (None, task):
            raise InputError(f"{_name(recipe, name)} was trained as {manifest.task}; expected an {task.upper()}")


def _check_toy(recipe: ServeRecipe, served: ServedKinds) -> None:
    """Refuse a model of the toy world beside one that knows another: its scores would say nothing."""
    codecs = [served.codecs[FDM], served.codecs[IDM]]
    if all(codecs) and codecs[0] != codecs[1] and any(map(is_toy, codecs)):
        raise InputError(f"{OTHER_CODEC.format(*codecs)}: one knows the toy world alone")
    # A key that was left out has the shipped model as its default.
    if served.kinds[FDM] == "editor" and IDM not in recipe.model_fields_set:
        raise InputError("idm is left out, and the one of the package knows the toy world alone; give idm=DIR")


def _check_baseline(recipe: ServeRecipe, served: ServedKinds) -> None:
    if not recipe.baseline:
        return
    # Blind means that nothing but the pixels differs, their size and quality neither.
    if {served.kinds[FDM], served.kinds[BASELINE]} != {"codes"}:
        raise InputError(f"{_name(recipe, BASELINE)}: only two forward models with image codes are compared")
    if served.codecs[BASELINE] != served.codecs[FDM]:
        raise InputError(
            f"baseline = {shown(to_packaged_name(recipe.baseline))!r}: its image codec is {served.codecs[BASELINE]}, "
            f"the FDM's {served.codecs[FDM]}: their images would not be of one size and quality"
        )


def _check_editor(recipe: ServeRecipe) -> None:
    """Refuse keys that say how codes are sampled."""
    if recipe.num_draft_tokens:
        raise InputError(
            f"num_draft_tokens = {recipe.num_draft_tokens}: {_name(recipe, FDM)} is an image editor, which has no "
            "tokens to draft; leave it out"
        )
    # A recipe's defaults ask for nothing: whatever else there is was given.
    for key, neutral in NEUTRAL.items():
        value = getattr(recipe, key)
        if value != neutral:
            hint = f"say editor.settings.{key}" if "guidance" in key else "leave it out"
            raise InputError(f"{key} = {value:g}: {_name(recipe, FDM)} is an image editor and samples no codes; {hint}")


def is_toy(codec_id: str) -> bool:
    """Return whether a model's image codec is that of the toy world, whose base is installed with the package.

    Args:
        codec_id: Of the model; empty for one that has none.
    """
    from wm.models import read_manifest

    manifest = read_manifest(SHIPPED / "base")
    return manifest is not None and manifest.codec_id == codec_id


def _codec_of(folder: str) -> str:
    from wm import models

    # A full model is its own codec's folder, whatever base the recipe gives to adapters.
    manifest = models.read_manifest(folder)
    return manifest.codec_id if manifest is not None else models.load_codec(folder).codec_id


def _base_of(recipe: ServeRecipe, name: str) -> str | None:
    return recipe.pixels.base if name == IDM and recipe.pixels is not None and recipe.pixels.base else recipe.base


def _name(recipe: ServeRecipe, name: str) -> str:
    """Name a model by its key and value, as the recipe has it."""
    return f"{name} = {shown(to_packaged_name(recipe.model_folders()[name]))!r}"
