"""Build the models that a recipe names, and check each before any is loaded."""

import re
from collections.abc import Mapping
from dataclasses import replace

from jobs.evaluate.recipe import EvaluateRecipe
from jobs.shared.pixel_models import check_pixel_idm
from wm.dynamics.editor_forward import check_editor_folder
from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.loading import kind_of
from wm.errors import InputError
from wm.evaluation.bench import Entry
from wm.models import ImageCodec, hub_hint, is_adapter, model_folder, read_manifest
from wm.models.kinds import ModelKind


def build_entries(recipe: EvaluateRecipe) -> dict[str, Entry]:
    """Build the models to evaluate.

    Args:
        recipe: The models and the base.

    Returns:
        The models by name, the base's two roles first: it knows both prompts, though it was trained on neither.

    Raises:
        InputError: A folder is missing, a task does not fit its role, or a verifier is no IDM.
    """
    entries: dict[str, Entry] = {}
    if recipe.base and recipe.zero_shot:
        entries["zero-shot-idm"] = Entry("zero-shot-idm", recipe.base, "idm", recipe.zero_shot_label)
        entries["zero-shot-fdm"] = Entry("zero-shot-fdm", recipe.base, "fdm", recipe.zero_shot_label)
    for name, model in recipe.models.items():
        if name in entries:
            raise InputError(f"models.{name}: this name is the base's; choose another")
        entries[name] = Entry(
            name, model.path, model.role, model.label, model.seed, model.idm, model.base,
            prompt=model.prompt or "", editor=model.editor.arguments() if model.editor else {},
        )  # fmt: skip
    if not entries:
        raise InputError("nothing to evaluate: give base, or models as tables [models.NAME]")
    checked = {name: _check_entry(entry, entries, recipe) for name, entry in entries.items()}
    # An option that does nothing is a mistake of whoever gave it.
    if recipe.action_margins and not any(entry.takes_margins(True) for entry in checked.values()):
        raise InputError(
            "action_margins = true measures forward models by their verifier, and none has one: give idm=NAME, an "
            "entry with role=idm, or leave it out"
        )
    # It is evaluated, is an adapter's, or gives its codec.
    bases = {entry.base for entry in checked.values()}
    if recipe.base and recipe.codec and not recipe.zero_shot and recipe.base not in bases:
        raise InputError(
            f"base = {recipe.base!r}: no model is an adapter of it, codec is another folder's, and zero_shot is false; "
            "leave it out"
        )
    return checked


def record_kinds(recipe: EvaluateRecipe, entries: dict[str, Entry]) -> EvaluateRecipe:
    """Return the recipe with what was found of each model's folder, so that a run is of just that.

    Args:
        recipe: As it was given.
        entries: Its models.
    """
    models = {
        name: model.model_copy(update={"reads": "codes" if entries[name].kind == "codes" else "pixels"})
        for name, model in recipe.models.items()
    }
    return recipe.model_copy(update={"models": models})


def reads_opposites(recipe: EvaluateRecipe, entries: Mapping[str, Entry]) -> bool:
    """Return whether actions that contradict the true ones are asked about: by the probe, or by a verifier.

    Args:
        recipe: What is measured.
        entries: Its models.
    """
    return recipe.probe or any(entry.takes_margins(recipe.action_margins) for entry in entries.values())


def _check_entry(entry: Entry, entries: dict[str, Entry], recipe: EvaluateRecipe) -> Entry:
    """Check a model by its name, folder and manifest; return it with its kind, its verifier and its base."""
    key = f"models.{entry.name}"
    # 1. The model itself, whose name becomes part of file names.
    if not re.fullmatch(r"[\w-]+", entry.name):
        raise InputError(f"{key}: a name holds letters, digits, - and _ only")
    if not model_folder(entry.path).is_dir():
        raise InputError(f"{key}.path: no such model folder: {entry.path}{hub_hint(entry.path)}")
    if entry.base and not is_adapter(entry.path):
        raise InputError(
            f"{key}: {entry.path} is no adapter, so that base = {entry.base!r} has no effect; leave it out"
        )
    manifest = read_manifest(entry.path)
    if manifest is not None and manifest.task not in (None, entry.role):
        raise InputError(f"{key}.role = {entry.role!r}, but {entry.path} was trained as {manifest.task}")
    kind = _find_kind(entry, recipe)
    # 2. Its verifier.
    verifier = (entry.verifier or recipe.idm) if entry.role == "fdm" else ""
    if entry.verifier and entry.role == "idm":
        raise InputError(f"{key}.idm = {entry.verifier!r}: an IDM is not verified; leave it out")
    if verifier and (verifier not in entries or not entries[verifier].is_verifier):
        idms = ", ".join(name for name, other in entries.items() if other.is_verifier) or "none"
        raise InputError(f"{key}: verifier {verifier!r} is no IDM of this recipe; those are {idms}")
    # 3. Its label: entries that share it and the seed would be averaged as one run in the tables.
    for other in entries.values():
        twin = (other.label, other.role, other.run) == (entry.label, entry.role, entry.run)
        if twin and other.name != entry.name:
            raise InputError(f"{key} and models.{other.name} share label {entry.label!r} and seed {entry.run}")
    # Complete models need no base; an adapter may name its own, and the recipe's base has image codes.
    takes_base = manifest is not None and manifest.kind == "adapter" and kind == "codes"
    return replace(entry, kind=kind, verifier=verifier, base=entry.base or (recipe.base if takes_base else ""))


def _find_kind(entry: Entry, recipe: EvaluateRecipe) -> ModelKind:
    """Find how a model exchanges images, and check that its role and its keys fit."""
    key, model = f"models.{entry.name}", recipe.models.get(entry.name)
    # The recipe's base is evaluated in both roles, which codes alone allow.
    wish = model.reads if model is not None else "codes"
    kind = kind_of(entry.path, entry.base or None)
    # Some families have both (Janus): on request the half that reads pixels is taken.
    if kind == "codes" and wish == "pixels":
        kind = "pixels"
    if kind != "codes" and wish == "codes":
        subject = f"{key}.reads = 'codes', but {entry.path}" if model is not None else f"base = {entry.path!r}"
        ability = "is an image editor" if kind == "editor" else "reads pixels"
        raise InputError(f"{subject} {ability}; expected a model with image codes")
    # What cannot be in its role is named before any weights are read.
    if kind == "pixels" and entry.role == "fdm":
        raise InputError(f"{key}.role = 'fdm', but {entry.path} reads pixels and makes none: such a model is an idm")
    if kind == "editor":
        if entry.role == "idm":
            raise InputError(f"{key}.role = 'idm', but {entry.path} is an image editor: it says no action")
        editor = (model.editor if model is not None else None) or EditorSettings()
        check_editor_folder(
            entry.path, editor.pipeline, safety_checker=editor.safety_checker, settings=editor.settings,
            scheduler=editor.scheduler, table=f"{key}.editor.",
        )  # fmt: skip
    elif model is not None and model.editor is not None:
        raise InputError(f"{key}.editor: {entry.path} is no image editor; leave it out")
    if kind == "pixels":
        check_pixel_idm(entry.path, entry.base or None, entry.prompt)
    elif entry.prompt:
        raise InputError(f"{key}.prompt: {entry.path} reads no pixels, and is asked no question; leave it out")
    return kind


def check_codec_and_base(entry: Entry, codec: ImageCodec) -> None:
    """Check by a model's manifest, before any model is loaded, that it is of this codec and of its entry's base.

    Args:
        entry: The model.
        codec: The evaluation's codec.

    Raises:
        InputError: It names the model and both codecs or bases.
    """
    manifest = read_manifest(entry.path)
    # Without a manifest there is nothing to compare: such a model is checked when it is loaded.
    if manifest is None or entry.kind != "codes":
        return
    if manifest.codec_id != codec.codec_id:
        raise InputError(
            f"models.{entry.name}: {entry.path} speaks codec {manifest.codec_id}, "
            f"the evaluation's codec is {codec.codec_id}"
        )
    # On another base an adapter would load, and give noise.
    base = read_manifest(entry.base) if entry.base else None
    if base is not None and base.base_id != manifest.base_id:
        raise InputError(
            f"models.{entry.name}: {entry.path} was trained on base {manifest.base_id}, "
            f"but {entry.base} is {base.base_id}"
        )
