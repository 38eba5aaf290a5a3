"""Sample the rows of a data set that is larger than the page: each stratum its share, evenly over its rows.

Not known here: what a stratum means.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wm.errors import InputError, to_line
from wm.tables import open_parquet

MAX_GROUPS = 1000
"""Max row groups that are opened, about: a row group's images cannot be read one by one."""

BATCH_ROWS = 64
"""Rows with images that are in memory at a time."""

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pick:
    """Chosen rows of one row group."""

    file: Path
    group: int
    rows: Rows  # ascending, counted from the row group's first


@dataclass(frozen=True)
class Sample:
    """A stratified sample."""

    counts: dict[str, int]  # rows of each stratum in the complete data set
    picks: list[Pick]  # in the order of the files

    @property
    def total(self) -> int:
        """Return the number of rows in the complete data set."""
        return sum(self.counts.values())

    @property
    def size(self) -> int:
        """Return the number of rows in the sample."""
        return sum(len(pick.rows) for pick in self.picks)


def sample_rows(
    files: Sequence[Path],
    columns: Sequence[str],
    stratum_of: Callable[[pa.Table], pa.Array],
    limit: int,
    is_first: Callable[[str], bool] = lambda _: False,
) -> Sample:
    """Sample rows, stratified, in two passes over narrow columns alone; the same files give the same rows.

    Args:
        files: The data set's Parquet files.
        columns: Columns that the stratum depends on.
        stratum_of: Maps a table of ``columns`` (absent ones are null) to one text a row.
        limit: Max rows; a data set of no more is taken completely.
        is_first: Whether a stratum gets its rows before the others do.

    Returns:
        The sample.
    """
    # 1. Count the rows of each stratum.
    counts: Counter[str] = Counter()
    groups = 0
    for _, _, keys in _iterate_keys(files, columns, stratum_of):
        groups += 1
        for entry in keys.value_counts().to_pylist():
            counts[entry["values"]] += entry["counts"]
    # 2. Share the rows out. Strata that come first get theirs before the others share what remains.
    ahead = {name: count for name, count in counts.items() if is_first(name)}
    quota = allocate(ahead, limit)
    quota |= allocate({name: count for name, count in counts.items() if name not in ahead}, limit - sum(quota.values()))
    # 3. Choose positions, neighbours together where single rows would touch too many row groups.
    run = -(-limit // MAX_GROUPS) if groups > MAX_GROUPS else 1
    positions = {name: spread_positions(counts[name], number, run) for name, number in quota.items()}
    return Sample(dict(counts), list(_iterate_picks(files, columns, stratum_of, positions)))


def allocate(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """Share rows among strata in proportion to their size (largest remainder).

    Args:
        counts: Rows of each stratum.
        limit: Rows to share, at least one a stratum if they suffice for that; if not, the largest strata get one. Ties
            go by name.

    Returns:
        Rows to take of each stratum.
    """
    total = sum(counts.values())
    if total <= limit:
        return dict(counts)
    # One row a stratum, then the rest in proportion to what each has beyond that.
    by_size = sorted(counts, key=lambda name: (-counts[name], name))
    quota = dict.fromkeys(by_size[: max(0, limit)], 1)
    rest = limit - len(quota)
    if rest <= 0:
        return quota
    spare_of = {name: counts[name] - 1 for name in quota}
    spare = sum(spare_of.values())
    exact = {name: rest * spare_of[name] / spare for name in quota}
    for name in quota:
        quota[name] += int(exact[name])
    # Largest remainder: rounding down left a few rows to share out.
    by_remainder = sorted(quota, key=lambda name: (int(exact[name]) - exact[name], name))
    for name in by_remainder[: limit - sum(quota.values())]:
        quota[name] += 1
    return quota


def spread_positions(count: int, number: int, run: int = 1) -> Rows:
    """Choose evenly spaced positions.

    Args:
        count: Positions to choose from.
        number: How many to choose.
        run: Neighbours chosen together; then up to ``run`` fewer than ``number`` are chosen.

    Returns:
        Positions, ascending.
    """
    if number >= count:
        return np.arange(count, dtype=np.int64)
    blocks, num_blocks = -(-count // run), -(-number // run)
    # Middles of equal stretches, so that the first rows count no more than the last.
    starts = ((np.arange(num_blocks) + 0.5) * blocks / num_blocks).astype(np.int64) * run
    positions = (starts[:, None] + np.arange(run)).ravel()
    return positions[positions < count][:number]


def _iterate_picks(
    files: Sequence[Path],
    columns: Sequence[str],
    stratum_of: Callable[[pa.Table], pa.Array],
    positions: Mapping[str, Rows],
) -> Iterator[Pick]:
    rows_before: Counter[str] = Counter()
    for file, group, keys in _iterate_keys(files, columns, stratum_of):
        encoded = keys.dictionary_encode()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        rows = [np.empty(0, dtype=np.int64)]
        for code, name in enumerate(encoded.dictionary.to_pylist()):
            mine = np.flatnonzero(codes == code)
            # Positions count over all files: this group holds the next ones of its strata.
            start = rows_before[name]
            rows_before[name] += len(mine)
            if name in positions:
                low, high = np.searchsorted(positions[name], [start, start + len(mine)])
                rows.append(mine[positions[name][low:high] - start])
        picked = np.sort(np.concatenate(rows))
        if len(picked):
            yield Pick(file, group, picked)


def _iterate_keys(
    files: Sequence[Path], columns: Sequence[str], stratum_of: Callable[[pa.Table], pa.Array]
) -> Iterator[tuple[Path, int, pa.Array]]:
    for file in files:
        with open_parquet(file) as parquet:
            for group in range(parquet.num_row_groups):
                if parquet.metadata.row_group(group).num_rows:
                    yield file, group, stratum_of(read_group(parquet, file, group, columns))


def read_group(parquet: pq.ParquetFile, file: Path, group: int, columns: Sequence[str]) -> pa.Table:
    """Read columns of one row group.

    Args:
        parquet: The open file.
        file: Its path, for errors.
        group: Number of the row group.
        columns: Names.

    Returns:
        The columns in this order, null where the file lacks one.

    Raises:
        InputError: It names a damaged file.
    """
    names = [name for name in columns if name in parquet.schema_arrow.names]
    try:
        table = parquet.read_row_group(group, columns=names, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error
    return add_missing(table, columns, parquet.metadata.row_group(group).num_rows)


def read_batches(
    parquet: pq.ParquetFile, file: Path, pick: Pick, columns: Sequence[str], batch_rows: int = BATCH_ROWS
) -> Iterator[pa.Table]:
    """Read the picked rows of a row group in small parts.

    Args:
        parquet: The open file.
        file: Its path, for errors.
        pick: The rows.
        columns: Names.
        batch_rows: Rows of the group in memory at a time.

    Yields:
        Tables as :func:`read_group` returns.

    Raises:
        InputError: It names a damaged file.
    """
    names = [name for name in columns if name in parquet.schema_arrow.names]
    start = 0
    try:
        # Not read_row_group: a group's images may not fit into memory.
        for batch in parquet.iter_batches(batch_rows, row_groups=[pick.group], columns=names, use_threads=False):
            low, high = np.searchsorted(pick.rows, [start, start + batch.num_rows])
            if high > low:
                rows = pa.Table.from_batches([batch]).take(pa.array(pick.rows[low:high] - start))
                yield add_missing(rows, columns)
            start += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error


def add_missing(table: pa.Table, columns: Sequence[str], num_rows: int | None = None) -> pa.Table:
    """Add columns of nulls to a table.

    Args:
        table: A table, perhaps without any column.
        columns: Names.
        num_rows: Rows of the table; None: as its columns have.

    Returns:
        The columns in this order, null where the table lacks one.
    """
    num_rows = table.num_rows if num_rows is None else num_rows
    return pa.table({name: table[name] if name in table.column_names else pa.nulls(num_rows) for name in columns})
