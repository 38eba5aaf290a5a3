"""Model families: one file each, found by the ``model_type`` of a folder's ``config.json``."""

from importlib import import_module
from pathlib import Path

from wm.errors import InputError
from wm.models.folder_checks import check_no_code, read_json
from wm.models.folders import Family
from wm.models.unreadable import explain_unreadable
from wm.models.vlm import UnifiedVLM

FAMILIES = {
    "chameleon": "wm.models.families.chameleon",
    "gemma": "wm.models.families.liquid",
    "emu3": "wm.models.families.emu3",
    "janus": "wm.models.families.janus",
}
"""The module whose ``FAMILY`` reads and writes folders, by the ``model_type`` of their ``config.json``."""
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
    explain_unreadable(folder)
    model_type = read_json(folder / "config.json").get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(f"{folder}: model_type is {model_type!r:.60}; supported: {', '.join(FAMILIES)}")
    check_no_code(folder)
    return load_family(model_type)


def load_family(model_type: str) -> Family[UnifiedVLM]:
    """Import the family of a ``model_type``, a key of :data:`FAMILIES`."""
    family: Family[UnifiedVLM] = import_module(FAMILIES[model_type]).FAMILY
    return family
