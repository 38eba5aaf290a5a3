"""Build the models that a recipe names, and check each before any is loaded."""

import re
from dataclasses import replace

from jobs.evaluate.recipe import EvaluateRecipe
from wm.errors import InputError
from wm.evaluation.bench import Entry
from wm.models import ImageCodec, hub_hint, model_folder, read_manifest


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
        entries[name] = Entry(name, model.path, model.role, model.label, model.seed, model.idm, model.base, model.reads)
    if not entries:
        raise InputError("nothing to evaluate: give base, or models as tables [models.NAME]")
    return {name: _check_entry(entry, entries, recipe) for name, entry in entries.items()}


def _check_entry(entry: Entry, entries: dict[str, Entry], recipe: EvaluateRecipe) -> Entry:
    """Check a model by its name, folder and manifest; return it with its verifier and its base."""
    key = f"models.{entry.name}"
    # 1. The model itself, whose name becomes part of file names.
    if not re.fullmatch(r"[\w-]+", entry.name):
        raise InputError(f"{key}: a name holds letters, digits, - and _ only")
    if not model_folder(entry.path).is_dir():
        raise InputError(f"{key}.path: no such model folder: {entry.path}{hub_hint(entry.path)}")
    if entry.reads == "pixels" and (entry.role != "idm" or not recipe.probe):
        raise InputError(f"{key}.reads = 'pixels': such a model is an idm, and only the probe (probe = true) asks it")
    manifest = read_manifest(entry.path)
    if manifest is not None and manifest.task not in (None, entry.role):
        raise InputError(f"{key}.role = {entry.role!r}, but {entry.path} was trained as {manifest.task}")
    # 2. Its verifier.
    verifier = (entry.verifier or recipe.idm) if entry.role == "fdm" else ""
    if entry.verifier and entry.role == "idm":
        raise InputError(f"{key}.idm = {entry.verifier!r}: an IDM is not verified; leave it out")
    if verifier and (verifier not in entries or not entries[verifier].can_verify):
        idms = ", ".join(name for name, other in entries.items() if other.can_verify) or "none"
        raise InputError(f"{key}: verifier {verifier!r} is no IDM of this recipe; those are {idms}")
    # 3. Its label: entries that share it and the seed would be averaged as one run in the tables.
    for other in entries.values():
        twin = (other.label, other.role, other.run) == (entry.label, entry.role, entry.run)
        if twin and other.name != entry.name:
            raise InputError(f"{key} and models.{other.name} share label {entry.label!r} and seed {entry.run}")
    # Complete models need no base; an adapter may name its own.
    is_adapter = manifest is not None and manifest.kind == "adapter"
    return replace(entry, verifier=verifier, base=entry.base or (recipe.base if is_adapter else ""))


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
    if manifest is None or entry.reads == "pixels":
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
