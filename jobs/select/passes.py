"""Run the passes of ``select`` over its files. This process hands out groups and parts, and adds up counts."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from jobs.select.files import (
    GROUP_FILES,
    PAIR_COLUMNS,
    Files,
    check_ids,
    count,
    group,
    spill_candidates,
    spill_pairs,
    survey,
    unchanged_ids,
    write_part,
    write_unique,
)
from jobs.shared.tasks import each
from wm.datasets.changes import Changes, sum_changes
from wm.datasets.selection.algorithm import Plan
from wm.datasets.selection.rows import Criteria
from wm.datasets.selection.tally import Tally, merge_tallies
from wm.errors import InputError
from wm.files.mirror import remove
from wm.tables import has_files, table_files

FILES_HERE = 2048
ROWS_HERE = 4_000_000
"""More than these are worth starting Ray for (5 to 10 s)."""

WORK = ".work"
"""Folder of a selection for rows on their way between passes; gone when it ends."""


def input_folders(triplets: str) -> tuple[Path, Path]:
    """Return the folders (triplets, pairs) of an annotation, from its own folder or that of its triplets."""
    root = Path(triplets).absolute()
    inner = root / "triplets"
    return (inner, root / "pairs") if has_files(inner) else (root, root.parent / "pairs")


def find_files(folder: Path, columns: Sequence[str], name: str, on_ray: bool | None) -> tuple[Files, bool]:
    """List the Parquet files of a folder, sorted, with their rows; and decide whether tasks run on Ray (None = if it
    pays).

    Args:
        folder: Folder of Parquet files.
        columns: Columns that each must have.
        name: The folder for messages.
        on_ray: Whether tasks run on Ray; None: if it pays.
    """
    paths = [str(path) for path in table_files(folder)]
    if not paths:
        raise InputError(f"no Parquet file below {name}")
    # Groups of many files: their sizes are not known yet.
    some = [(paths[start : start + GROUP_FILES],) for start in range(0, len(paths), GROUP_FILES)]
    remote = len(paths) > FILES_HERE if on_ray is None else on_ray
    files = sorted(file for part in each(survey, some, columns, on_ray=remote) for file in part)
    return files, sum(rows for _, rows in files) > ROWS_HERE or remote if on_ray is None else on_ray


def count_all(files: Files, criteria: Criteria, on_ray: bool, bar: "tqdm[None]") -> tuple[Tally, Changes]:
    """Count rows by class and score bin, and by whether their image codes change.

    Args:
        files: Triplets.
        criteria: What makes a row a candidate.
        on_ray: Whether tasks run on Ray.
        bar: Moved by the rows that were read.
    """
    # Tallies are merged as they come; only their sum is held.
    changes: list[Changes] = []

    def tallies() -> Iterable[Tally]:
        for counts, rows, part_changes in each(count, group(files), criteria, on_ray=on_ray):
            bar.update(rows)
            changes.append(part_changes)
            yield counts

    return merge_tallies(tallies()), sum_changes(changes)


def find_unchanged(files: Files, criteria: Criteria, on_ray: bool) -> pa.Array:
    """Return the ids of the rows in which too few image codes change: a few per cent of all, held in this process.

    Args:
        files: Triplets.
        criteria: How many codes must change.
        on_ray: Whether tasks run on Ray.
    """
    return pa.concat_arrays(list(each(unchanged_ids, group(files), criteria, on_ray=on_ray)))


def leave_out_repeats(
    pairs: Path, criteria: Criteria, num_triplets: int, work: Path, *, unchanged: pa.Array, on_ray: bool | None
) -> Files:
    """Write the best row of each pair of hashes into files that the other passes read. Rows whose id is in
    ``unchanged`` are not among them: they could push a pair that does change out.

    Args:
        pairs: Folder of the annotation's pairs.
        criteria: How rows are scored.
        num_triplets: Triplets that the pairs must have become.
        work: Folder for rows between passes.
        unchanged: Ids of rows that are left out.
        on_ray: Whether tasks run on Ray; None: if it pays.
    """
    files, remote = find_files(pairs, PAIR_COLUMNS, f"{pairs}, which deduplicate = 'exact' reads", on_ray)
    # A million pairs a part: what one task sorts at once.
    num_parts = max(1, -(-sum(rows for _, rows in files) // 1_000_000))
    spills: list[str] = []
    num_rows = 0
    spilled = each(spill_pairs, group(files), criteria, str(work / "pairs"), num_parts, unchanged, on_ray=remote)
    for new_spills, rows in spilled:
        spills += new_spills
        num_rows += rows
    # The two tables must be of one annotation, or rows would vanish without a count.
    if num_rows != num_triplets:
        raise InputError(f"{pairs} holds {num_rows:,} pairs that became triplets, expected {num_triplets:,}")
    parts = [(part,) for part in range(num_parts)]
    return sorted(each(write_unique, parts, spills, criteria, str(work / "unique"), on_ray=remote))


def choose_all(
    files: Files, plan: Plan, criteria: Criteria, out: Path, *, on_ray: bool, bar: "tqdm[None]"
) -> dict[str, tuple[int, float, float]]:
    """Write the parts of the selection; of each class (rows, lowest score, highest score) of what was chosen.

    Args:
        files: Triplets.
        plan: Quotas and parts.
        criteria: What makes a row a candidate.
        out: Folder of the run.
        on_ray: Whether tasks run on Ray.
        bar: Moved by rows read and rows written.
    """
    work = out / WORK
    spills: list[str] = []
    candidates = each(spill_candidates, group(files), plan, criteria, str(work / "candidates"), on_ray=on_ray)
    for new_spills, rows in candidates:
        spills += new_spills
        bar.update(rows)
    parts = [(part,) for part in range(plan.num_parts)]
    ids = str(work / "ids") if plan.num_parts > 1 else None  # a single part sees all ids itself
    by_class: dict[str, tuple[int, float, float]] = {}
    id_spills: list[str] = []
    for part in each(write_part, parts, spills, plan, str(out / "selection"), ids, on_ray=on_ray):
        id_spills += part.id_spills
        # A large class goes over several parts.
        for label, rows, lowest, highest in part.by_class:
            before = by_class.get(label, (0, lowest, highest))
            by_class[label] = (before[0] + rows, min(before[1], lowest), max(before[2], highest))
        bar.update(part.rows)
    # Counted in an earlier pass: another number now means another input.
    if sum(rows for rows, _, _ in by_class.values()) != plan.quota_C.sum():
        raise InputError("the triplets changed while they were read; run the command again")
    if ids is not None:
        for _ in each(check_ids, parts, id_spills, on_ray=on_ray):
            pass
    return by_class


def clear(out: Path, *names: str) -> None:
    """Remove folders and files of a selection, and its own folder if nothing is left.

    Args:
        out: Folder of the run.
        *names: Files and folders in it.
    """
    # Also what a killed run has left half done.
    for name in names:
        remove(out / name)
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
