"""Choose the files of a folder that may go to the hub, and say why the others stay. Knows nothing of the hub."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from wm.errors import InputError
from wm.files.mirror import UNFINISHED, shown
from wm.models.manifest import is_model_folder, model_folder
from wm.runs import read_run
from wm.tables import read_footers, table_files

Kind: TypeAlias = Literal["model", "dataset"]
_FOLDERS = {
    "checkpoints": "checkpoints of a training",
    "last": "another model of the run",
    "samples": "images of a training",
    "tensorboard": "figures of a training",
    "wandb": "figures of a training",
    "mlruns": "figures of a training",
    "parts": "intermediate files",
    "__pycache__": "code",
}
"""Names of folders that stay, with the reason."""
_ENDINGS = {
    (".lock", ".tmp"): "a lock or temporary file",
    (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".npy.lock"): "a pickle: loading it may run code",
    (".py", ".pyc", ".so", ".sh"): "code",
    (".pem", ".key", ".p12"): "a key",
}


@dataclass(frozen=True)
class Selection:
    """What of a folder goes."""

    kind: Kind
    folder: Path
    files: dict[str, int]  # name below the folder → bytes, sorted
    left_out: dict[str, str]  # name → why it stays

    @property
    def num_bytes(self) -> int:
        """Return the size of all that goes."""
        return sum(self.files.values())


def select_files(path: str) -> Selection:
    """Choose what is uploaded, and check that it is complete.

    Args:
        path: Model folder, that of its run, or a stage's output folder.

    Returns:
        The files.

    Raises:
        InputError: There is nothing to share, or it is not complete.
    """
    # Of a run's folder the model is meant: the rest is what it took to train it.
    is_model = is_model_folder(path)
    folder = model_folder(path) if is_model else Path(path)
    if not folder.is_dir():
        raise InputError(f"folder = {path!r}: no such folder")
    _check_complete(folder, is_model=is_model)
    # Each file either goes, or is named with the reason.
    files, left_out = {}, {}
    for file in _walk(folder):
        name = file.relative_to(folder).as_posix()
        reason = _reason_to_stay(file, name, folder)
        if reason:
            left_out[name] = reason
        else:
            files[name] = file.stat().st_size
    if not files:
        raise InputError(f"folder = {path!r}: none of its files may be shared")
    if is_model:
        _check_weights(folder, files, left_out)
    return Selection("model" if is_model else "dataset", folder, files, left_out)


def _walk(folder: Path) -> Iterator[Path]:
    # Links to folders are not followed: a circle would never end.
    for file in sorted(folder.rglob("*")):
        if file.is_file() or file.is_symlink():
            yield file


def _reason_to_stay(file: Path, name: str, folder: Path) -> str:
    """Say why a file stays; empty for one that goes."""
    parts = name.split("/")
    if any(part.startswith(".") for part in parts):
        return "hidden: locks, caches, temporary files"
    for part in parts[:-1]:
        if part in _FOLDERS:
            return _FOLDERS[part]
    # A link may lead anywhere, /etc among it.
    if file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()):
        return "a link out of the folder"
    if not file.is_file():
        return "a link to a folder, or to nothing"
    if re.match(r"events\.out\.tfevents", parts[-1]):
        return "figures of a training"
    return next((reason for endings, reason in _ENDINGS.items() if parts[-1].lower().endswith(endings)), "")


def _check_complete(folder: Path, *, is_model: bool) -> None:
    """Check that the folder is a complete output, or a model that no run is writing."""
    runs = [folder, folder.parent] if is_model and folder.name in ("model", "last") else [folder]
    for run in runs:
        if (run / UNFINISHED).is_file():
            raise InputError(
                f"{shown(run)} is not complete ({UNFINISHED}): start its command again, it resumes; then push it"
            )
    if is_model:
        return
    record = read_run(folder)
    if record is None:
        raise InputError(
            f"{shown(folder)} is neither a model (no config.json, no adapter_config.json) nor the output of a complete "
            "stage (no run.json)"
        )
    counts = record.get("counts")
    # The record is the mark of all shards: one that is gone since shows in the number of rows.
    for name in ("triplets", "rejects", "predictions"):
        expected = counts.get(name) if isinstance(counts, dict) else None
        if isinstance(expected, int) and (folder / name).is_dir():
            rows = sum(int(footer.num_rows) for footer in read_footers(table_files(folder / name)))
            if rows != expected:
                raise InputError(
                    f"{shown(folder)} is not complete: run.json counts {expected:,} {name}, its files hold {rows:,}"
                )


def _check_weights(folder: Path, files: Mapping[str, int], left_out: Mapping[str, str]) -> None:
    """Check that weights go, and every shard that an index of them names: without, the hub would have no model."""
    from wm.models.folder_checks import read_json

    for index in folder.glob("*.safetensors.index.json"):
        shards = read_json(index).get("weight_map")
        for shard in sorted(set(map(str, shards.values()))) if isinstance(shards, dict) else []:
            if shard not in files:
                reason = left_out.get(shard, "not there")
                raise InputError(f"{shown(folder)} is not complete: {index.name} lists {shard!r:.100}: {reason}")
    # A file of weights is often a link into a cache or another disk.
    for name in (name for name in left_out if "/" not in name and name.endswith(".safetensors")):
        raise InputError(f"{shown(folder)}: {name} would stay ({left_out[name]}): put the file itself there")
    if not any(name.endswith(".safetensors") for name in files):
        raise InputError(f"{shown(folder)} holds no weights (*.safetensors): there is no model to push")
