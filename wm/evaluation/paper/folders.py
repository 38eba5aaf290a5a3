"""Read the record of one result folder. Knows nothing of what its stage is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from wm.errors import InputError
from wm.files.mirror import to_path
from wm.runs import RunRecord, parse_json, read_run


@dataclass(frozen=True)
class Source:
    """A finished result folder."""

    folder: Path
    stage: str
    """The command that wrote it: ``evaluate``, ``score``, ``judge``, ``collect``, ``annotate``, ``select``, …"""
    record: RunRecord

    def recipe(self, key: str, default: Any = None) -> Any:
        """Return a key of its recipe.

        Args:
            key: Of the recipe.
            default: What it is where the recipe has no such key.

        Returns:
            Its value, as JSON has it.
        """
        return self.record.get("recipe", {}).get(key, default)

    @property
    def counts(self) -> dict[str, Any]:
        """Return what the stage counted."""
        return cast(dict[str, Any], self.record.get("counts", {}))

    def annotation_recipe(self) -> dict[str, Any]:
        """Return the recipe of the annotation whose triplets a selection chose from; empty where it has gone."""
        triplets = Path(to_path(str(self.recipe("triplets", ""))))
        # The annotation's folder, or that of its triplets.
        record = read_run(triplets) or read_run(triplets.parent) or {}
        return cast(dict[str, Any], record.get("recipe", {}))

    def load_json(self, name: str) -> Any:
        """Load a JSON file of the folder.

        Raises:
            InputError: It is missing or damaged.
        """
        # Named by its stage, so that it is missing only where somebody removed it.
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, though its stage is complete")
        return parse_json(path.read_bytes(), str(path))


def read_source(folder: str) -> Source:
    """Read the record of a finished result.

    Args:
        folder: Output folder of any stage.

    Returns:
        The folder with its record.

    Raises:
        InputError: It is no finished result.
    """
    path = Path(folder)
    # Only a finished stage has this record.
    record = read_run(path) if path.is_dir() else None
    if record is not None and isinstance(record.get("stage"), str):
        return Source(path, record["stage"], record)
    # Why it is none: a reader can do something else about each.
    if not path.is_dir():
        raise InputError(f"results = {folder!r:.300}: no such folder")
    if read_run(path, "run.unfinished.json") is not None:
        raise InputError(f"results = {folder!r:.300} is not complete: the command that writes it resumes it")
    raise InputError(f"results = {folder!r:.300} is no result of wm: expected a folder with run.json")
