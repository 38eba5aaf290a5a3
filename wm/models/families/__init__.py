"""Model families: one file each, found by the ``model_type`` of a folder's ``config.json``.

Two releases share the ``model_type`` of another family and are distinguished by :mod:`wm.models.variants`: Lumina-mGPT
2.0 (a ``chameleon``) and Emu3.5 (``Emu3``; written as ``qwen3``, whose decoder it has).
"""

from importlib import import_module
from pathlib import Path

from wm.errors import InputError
from wm.models.folder_checks import check_no_code, read_json
from wm.models.folders import Family
from wm.models.unreadable import explain_unreadable
from wm.models.variants import LUMINA, family_key
from wm.models.vlm import UnifiedVLM

FAMILIES = {
    "chameleon": "wm.models.families.chameleon",
    "gemma": "wm.models.families.liquid",
    "emu3": "wm.models.families.emu3",
    "janus": "wm.models.families.janus",
    LUMINA: "wm.models.families.lumina",
    "Emu3": "wm.models.families.emu3_5",
    "qwen3": "wm.models.families.emu3_5",
}
"""The module whose ``FAMILY`` reads and writes folders, by the ``model_type`` of their ``config.json``, or by
:func:`~wm.models.variants.family_key` where several share one."""
FORWARD_ONLY = {
    "janus": "janus cannot serve as an inverse model: it understands images by SigLIP features of their pixels, not by "
    "codes; as a judge of actions in the probe it reads pixels (reads = 'pixels')"
}
"""Why a family is no inverse model, by ``model_type``."""


def family_of(folder: Path) -> Family[UnifiedVLM]:
    """Find the family of a full folder. Nothing that the folder names is run: one that needs code is refused.

    Args:
        folder: A full model folder.

    Returns:
        The family's functions.

    Raises:
        InputError: It is none of :data:`FAMILIES`.
    """
    # Known layouts that are not read have a better message than an unknown model_type.
    explain_unreadable(folder)
    key = family_key(read_json(folder / "config.json"))
    if not isinstance(key, str) or key not in FAMILIES:
        names = ", ".join(FAMILIES)
        raise InputError(f"{folder}: model_type is {key!r:.60}; supported: {names}, which have image codes")
    check_no_code(folder)
    return load_family(key)


def load_family(key: str) -> Family[UnifiedVLM]:
    """Import a family by its key in :data:`FAMILIES`."""
    family: Family[UnifiedVLM] = import_module(FAMILIES[key]).FAMILY
    return family


def family_of_model(vlm: UnifiedVLM) -> Family[UnifiedVLM]:
    """Return the functions that read and write the folders of a model at hand.

    Args:
        vlm: The model.
    """
    config = vlm.inner.config
    # Only what distinguishes families: a configuration as a dictionary copies the vocabulary.
    facts = {name: getattr(config, name, None) for name in ("model_type", "vocab_size", "vocabulary_map")}
    return load_family(str(family_key(facts)))
