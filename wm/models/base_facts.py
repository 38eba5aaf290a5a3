"""Describe the base of a trained model for its card: its name without a path, its licences, its class.

Read from the base's own folder, as far as that is here and says it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wm.cards import CARD, licenses_of, read_head
from wm.errors import InputError
from wm.files.mirror import fetch, uri_of
from wm.models.folder_checks import read_json
from wm.models.manifest import model_folder, named_base, read_manifest
from wm.packaged import PREFIX, to_packaged_name
from wm.runs import read_run

FAMILY_LICENSES = {
    "chameleon": "Chameleon Research License (non-commercial)",
    "liquid": "Gemma Terms of Use",
}
"""Licences of released checkpoints by family, as their repositories stated them (docs/pages/checkpoints.md), for a base
whose folder has no card."""
_HUB_CACHE = re.compile(r"models--([^/]+)--([^/]+)/snapshots/")


@dataclass(frozen=True)
class BaseFacts:
    """The model that training started from, as far as its folder says."""

    name: str  # for people, without a path
    repo_id: str = ""  # ``owner/name`` on the hub, where it is known
    licenses: Sequence[str] = ()
    note: str = ""  # where the licence is from
    class_name: str = ""  # transformers' class


def describe_base(base: str | Path, *, repo_id: str = "") -> BaseFacts:
    """Describe a base by its own folder.

    Args:
        base: Its folder, or name.
        repo_id: Its repository on the hub, where the caller knows it.

    Returns:
        Name, licences and class; the licence of its family's released checkpoints where its folder has no card.
    """
    folder = model_folder(base)
    path = to_packaged_name(str(folder.resolve()))
    cache = _HUB_CACHE.search(f"{path}/")
    repo_id = repo_id or (f"{cache[1]}/{cache[2]}" if cache else "")
    # The folder's own name, and of a run's model the run's: neither says where they are.
    name = path if path.startswith(PREFIX) else repo_id or name_of(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    classes = config.get("architectures") if isinstance(config, dict) else None
    class_name = str(classes[0]) if isinstance(classes, list) and classes else ""
    class_name = class_name if class_name.isidentifier() else ""
    _fetch_card(folder)
    if (folder / CARD).is_file():
        licenses = licenses_of(read_head(folder))
        note = "by the card of the base" if licenses else "the card of the base names none"
        return BaseFacts(name, repo_id, licenses, note, class_name)
    manifest = read_manifest(folder)
    family = manifest.family if manifest else str(config.get("model_type", "")) if isinstance(config, dict) else ""
    # A base of one's own is under no release's licence.
    record = read_run(folder.parent) if folder.name == "model" else None
    if record is not None and record.get("stage") == "pretrain":
        return BaseFacts(name, repo_id, (), "the base was trained with wm pretrain", class_name)
    if family in FAMILY_LICENSES:
        note = f"the base's folder has no card; released checkpoints of the family {family} are under it"
        return BaseFacts(name, repo_id, (FAMILY_LICENSES[family],), note, class_name)
    return BaseFacts(name, repo_id, (), "the base's folder has no card", class_name)


def _fetch_card(folder: Path) -> None:
    """Bring the card of a base in a bucket here: of its folder only configuration and manifest are."""
    if uri_of(folder) is not None:
        with suppress(InputError):
            fetch(folder / CARD)


def find_base(folder: Path, recipe: Mapping[str, object] | None, *, repo_id: str = "") -> BaseFacts | None:
    """Find and describe the base of a trained model.

    Args:
        folder: The model's.
        recipe: Of the run that trained it, if it is known.
        repo_id: The base's repository on the hub, where the caller knows it.

    Returns:
        The base, by its identity alone where its folder is not here; None for a model that is one itself.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.kind == "base":
        return None
    path = recipe.get("base") if recipe else None
    candidates: list[str | Path] = [named_base(folder, manifest.base_path)] if manifest.base_path else []
    candidates += [path] if isinstance(path, str) and path else []
    # The first that is there: a model may have been moved without its base.
    for candidate in candidates:
        try:
            if model_folder(candidate).is_dir():
                return describe_base(candidate, repo_id=repo_id)
        except InputError:
            continue
    return BaseFacts(repo_id or manifest.base_id, repo_id, (), "the base's folder is not here")


def name_of(folder: Path) -> str:
    """Name a model folder by its last part, or by the run's for the ``model`` of one."""
    resolved = folder.resolve()
    return f"{resolved.parent.name}/model" if resolved.name == "model" else resolved.name
