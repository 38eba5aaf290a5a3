"""Do the file work of ``select``: read a few columns of many, share rows out over parts, sort a part, write it.

Each function takes a group of files or one part, holds no more than that in memory, and writes completely or not
at all: it may run on any node that sees the folders, and again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.select.reading import read_batches, read_rows
from jobs.select.spills import SpillWriter, assign_parts, read_part
from wm.datasets.changes import Changes, count_rows, sum_changes
from wm.datasets.selection.algorithm import CANDIDATE_SCHEMA, SELECTION_SCHEMA, Plan, candidates, choose
from wm.datasets.selection.rows import (
    COLUMNS,
    Criteria,
    check_unique,
    filter_classes,
    has_changed,
    id_words,
    keep_best,
    score_rows,
)
from wm.datasets.selection.tally import Tally, merge_tallies, tally
from wm.errors import InputError
from wm.tables import open_columns, write_parquet

GROUP_ROWS = 2_000_000
GROUP_FILES = 512
ROW_GROUP_ROWS = 131_072
HASHES = ["source_hash", "target_hash"]
PAIR_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("class_label", pa.string()),
        ("action_logprob", pa.float64()),
        ("action_tokens", pa.int32()),
        ("source_hash", pa.uint64()),
        ("target_hash", pa.uint64()),
    ]
)
"""Columns that are kept of an annotation's ``pairs``, and :data:`PAIR_COLUMNS` what is read."""
PAIR_COLUMNS = [*PAIR_SCHEMA.names, "outcome"]

Files = list[tuple[str, int]]
"""(path, rows) of each."""


class PartResult(NamedTuple):
    """A written part: of each class in it how many rows were chosen, and their lowest and highest score."""

    rows: int
    by_class: list[tuple[str, int, float, float]]
    id_spills: list[str]


def survey(files: Sequence[str], columns: Sequence[str]) -> Files:
    """Read each file's number of rows from its footer; :class:`InputError` if a required column is not there.

    Args:
        files: Parquet files.
        columns: Columns that each must have.
    """
    # Footers only: no row is read.
    rows = []
    for file in files:
        with open_columns(file) as parquet:
            names = parquet.schema_arrow.names
            missing = [name for name in columns if name not in names]
            if missing:
                raise InputError(f"{file} lacks the column {missing[0]!r}; columns found: {', '.join(names)}")
            _check_types(file, parquet.schema_arrow, columns)
            rows.append((file, parquet.metadata.num_rows))
    return rows


def _check_types(file: str, schema: pa.Schema, columns: Sequence[str]) -> None:
    # Integers and floats of any width will do, and texts of any kind.
    for name in columns:
        expected = PAIR_SCHEMA.field(name).type if name in PAIR_SCHEMA.names else pa.string()
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        both = [(pa.types.is_integer, pa.types.is_floating), (pa.types.is_string, pa.types.is_large_string)]
        alike = any(any(test(kind) for test in tests) and any(test(expected) for test in tests) for tests in both)
        if not alike:
            raise InputError(f"{file} has {name} as {kind}, expected {expected}")


def group(files: Files) -> list[tuple[list[str]]]:
    """Group files that one task reads: up to ``GROUP_ROWS`` rows or ``GROUP_FILES`` files, at least one."""
    # Small files together: a task costs more than reading one of them.
    groups: list[tuple[list[str]]] = []
    group_rows = 0
    for file, rows in files:
        if not groups or group_rows + rows > GROUP_ROWS or len(groups[-1][0]) >= GROUP_FILES:
            groups.append(([],))
            group_rows = 0
        groups[-1][0].append(file)
        group_rows += rows
    return groups


def count(files: Sequence[str], criteria: Criteria) -> tuple[Tally, int, Changes]:
    """Count the rows of a group of files by class and score; ids are not read.

    Args:
        files: Parquet files of triplets.
        criteria: What makes a row a candidate.

    Returns:
        The tally, the number of rows read, and in how many rows of the requested classes the image codes change.
    """
    # Ids are half of the bytes and are not needed to count.
    names = [name for name in COLUMNS if name != "triplet_id"]
    rows = 0
    changes: list[Changes] = []

    def tallies() -> Iterator[Tally]:
        nonlocal rows
        for file in files:
            for batch in read_rows(file, names, criteria):
                rows += batch.num_rows
                table = _score_batch(file, batch, criteria)
                if "changed_codes" in table.column_names:
                    changes.append(count_rows(table.column("changed_codes"), criteria.min_changed_codes))
                else:
                    # Whether they change is not known.
                    changes.append(Changes(table.num_rows, 0, table.num_rows))
                yield tally(table, criteria)

    return merge_tallies(tallies()), rows, sum_changes(changes)


def unchanged_ids(files: Sequence[str], criteria: Criteria) -> pa.Array:
    """Return the ids of the rows in which too few image codes change.

    Args:
        files: Parquet files of triplets.
        criteria: How many codes must change.
    """
    # An empty array first: there may be no such row.
    ids = [pa.array([], pa.string())]
    for file in files:
        for batch in read_rows(file, ["triplet_id"], criteria):
            rows = batch.filter(pa.array(~has_changed(batch, criteria)))
            ids.append(rows.column("triplet_id").cast(pa.string()).combine_chunks())
    return pa.concat_arrays(ids)


def spill_candidates(files: Sequence[str], plan: Plan, criteria: Criteria, folder: str) -> tuple[list[str], int]:
    """Write the group's candidates, sorted by part, into files of the folder; returns these and the rows read.

    Args:
        files: Parquet files of triplets.
        plan: Quotas and parts.
        criteria: What makes a row a candidate.
        folder: Where the spilled files go.
    """
    # Rows that no quota can reach are dropped here already.
    writer = SpillWriter(Path(folder), plan.num_parts, CANDIDATE_SCHEMA)
    rows = 0
    for file in files:
        for batch in read_rows(file, COLUMNS, criteria):
            rows += batch.num_rows
            writer.add(*candidates(_score_batch(file, batch, criteria), plan, criteria))
    return writer.close(), rows


def write_part(part: int, spills: Sequence[str], plan: Plan, out: str, ids: str | None) -> PartResult:
    """Sort one part and write ``out/part-NNNNN.parquet``; its ids, shared out by hash, go into the folder ``ids``.

    Args:
        part: Its number.
        spills: Files with candidates.
        plan: Quotas and parts.
        out: Folder of the selection.
        ids: Folder for the ids of the chosen rows; None: they are not needed.
    """
    # Rank and turn follow from the plan, so that parts need not know of each other.
    selection = choose(read_part(spills, part, CANDIDATE_SCHEMA), plan, part)
    write_parquet(selection, Path(out) / f"part-{part:05d}.parquet", row_group_size=ROW_GROUP_ROWS)
    id_spills: list[str] = []
    if ids is not None:
        table = selection.select(["triplet_id"])
        writer = SpillWriter(Path(ids), plan.num_parts, table.schema)
        writer.add(table, assign_parts(id_words(table.column("triplet_id")), plan.num_parts))
        id_spills = writer.close()
    return PartResult(selection.num_rows, _summarise_classes(selection), id_spills)


def check_ids(part: int, spills: Sequence[str]) -> None:
    """Raise :class:`InputError` if an id occurs twice among those of one hash.

    Args:
        part: Its number.
        spills: Files with ids.
    """
    ids = read_part(spills, part, pa.schema([SELECTION_SCHEMA.field("triplet_id")])).column("triplet_id")
    check_unique(ids, id_words(ids))


def spill_pairs(
    files: Sequence[str], criteria: Criteria, folder: str, num_parts: int, unchanged: pa.Array
) -> tuple[list[str], int]:
    """Share the rows of ``pairs`` files that became triplets out by their two hashes; the files, and how many rows
    became triplets. Those whose id is in ``unchanged`` are counted and left out.

    Args:
        files: Parquet files of pairs.
        criteria: Classes that may be chosen.
        folder: Where the spilled files go.
        num_parts: Parts that the rows are shared out over.
        unchanged: Ids of rows in which too few codes change.
    """
    writer = SpillWriter(Path(folder), num_parts, PAIR_SCHEMA)
    rows = 0
    for file in files:
        for batch in read_batches(file, PAIR_COLUMNS):
            pairs = batch.filter(pc.equal(batch.column("outcome"), "ok")).select(PAIR_SCHEMA.names).cast(PAIR_SCHEMA)
            pairs = filter_classes(pairs, criteria)
            rows += pairs.num_rows
            # Rows without hashes would all look like repeats of each other.
            if any(pairs.column(name).null_count for name in HASHES):
                raise InputError(
                    f"{file} has pairs without perceptual hashes; deduplicate needs an annotation made with "
                    "filters.near_duplicate = score or on"
                )
            pairs = pairs.filter(pc.invert(pc.is_in(pairs.column("triplet_id"), unchanged)))
            words = [pairs.column(name).to_numpy() for name in HASHES]
            writer.add(pairs, assign_parts(words, num_parts))
    return writer.close(), rows


def write_unique(part: int, spills: Sequence[str], criteria: Criteria, folder: str) -> tuple[str, int]:
    """Write the best row of each pair of hashes in one part; the file, in the shape of triplets, and its rows.

    Args:
        part: Its number.
        spills: Files with pairs.
        criteria: How rows are scored.
        folder: Where the file goes.
    """
    # With the columns of triplets: the later passes read these files in their place.
    best = keep_best(read_part(spills, part, PAIR_SCHEMA), HASHES, criteria)
    path = Path(folder) / f"unique-{part:05d}.parquet"
    write_parquet(best.select(COLUMNS), path, row_group_size=ROW_GROUP_ROWS)
    return str(path), best.num_rows


def _summarise_classes(selection: pa.Table) -> list[tuple[str, int, float, float]]:
    sums = selection.group_by("class_label").aggregate([("score", "count"), ("score", "min"), ("score", "max")])
    names = ("class_label", "score_count", "score_min", "score_max")
    return list(zip(*(sums.column(name).to_pylist() for name in names), strict=True))


def _score_batch(file: str, batch: pa.Table, criteria: Criteria) -> pa.Table:
    try:
        return score_rows(batch, criteria)
    except InputError:
        if "triplet_id" in batch.column_names:
            raise
        for full_batch in read_batches(file, COLUMNS):  # raises the same with the name of the triplet
            score_rows(full_batch, criteria)
        raise
