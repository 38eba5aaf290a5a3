"""Find the tables of a data set: an annotation's folder, an ingest's, or a bare folder of triplets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from wm.errors import InputError
from wm.runs import read_run
from wm.tables import open_parquet, table_files

NEEDED = {
    "triplets": ("triplet_id", "source_image", "target_image", "action"),
    "rejects": ("uri", "outcome", "reason"),
    "selection": ("triplet_id",),
}
"""Columns without which a table cannot be shown; every other column may be absent."""


@dataclass(frozen=True)
class Source:
    """The Parquet files of a data set by table."""

    root: Path
    triplets: list[Path]
    rejects: list[Path]
    clips: dict[str, Path]  # by shard: its triplets, clips and pairs are files of one name
    pairs: dict[str, Path]
    selection: list[Path]
    # The run's run.json, if there is one.
    record: Mapping[str, object] | None


def open_source(folder: str | Path, selection: str | Path | None = None) -> Source:
    """Find the tables of a data set.

    Args:
        folder: The output folder of a stage, its ``triplets`` folder, or any folder (or file) of Parquet triplets.
        selection: Output folder of ``select``, or the folder of its table.

    Returns:
        The files of each table.

    Raises:
        InputError: It names the folder without a table, or the file that lacks a column or cannot be read.
    """
    path = Path(folder)
    root = path
    if not (path / "triplets").is_dir() and path.name == "triplets" and read_run(path.parent) is not None:
        root = path.parent
    triplets = root / "triplets" if (root / "triplets").is_dir() else root
    # A bare folder of triplets has no sibling tables; anything beside it is not ours.
    files = _list_checked(triplets, "triplets")
    if not files:
        raise InputError(f"no Parquet file below {triplets}")
    # Only a stage's folder is known to hold sibling tables of the same data set.
    is_stage_output = triplets != root
    return Source(
        root=root,
        triplets=files,
        rejects=_list_checked(root / "rejects", "rejects") if is_stage_output else [],
        clips=_index_by_stem(root / "clips") if is_stage_output else {},
        pairs=_index_by_stem(root / "pairs") if is_stage_output else {},
        selection=_list_selection(Path(selection)) if selection is not None else [],
        record=read_run(root) if root.is_dir() else None,
    )


def _list_selection(folder: Path) -> list[Path]:
    inner = folder / "selection"
    files = _list_checked(inner if inner.is_dir() else folder, "selection")
    if not files:
        raise InputError(f"no Parquet file below {folder}")
    return files


def _list_checked(folder: Path, kind: str) -> list[Path]:
    """List the finished files below a folder (none if it is optional and absent), each with its required columns."""
    if kind == "rejects" and not folder.is_dir():
        return []
    files = table_files(folder)
    for file in files:
        # Footers only: a wrong file is named before a page is begun.
        names = open_parquet(file).schema_arrow.names
        missing = [name for name in NEEDED[kind] if name not in names]
        if missing:
            raise InputError(
                f"{file} is no table of {kind}: it lacks the column {missing[0]!r}; its columns are {', '.join(names)}"
            )
    return files


def _index_by_stem(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in table_files(folder)} if folder.is_dir() else {}
