"""Count where the rows of a training come from: data set, licence, and who wrote the actions.

Read again from the tables after the training: the tokenised rows no longer know it.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from wm.errors import InputError, to_line
from wm.models.card import DataSource
from wm.tables import open_columns
from wm.training.data.sources import Source, select_rows

COLUMNS = ("dataset", "license", "origin")


def count_sources(sources: Sequence[Source], seed: int) -> list[DataSource]:
    """Count the selected rows of all tables by data set, licence and origin.

    Args:
        sources: Of the recipe; each is counted once, whatever its weight.
        seed: Of the recipe: with a source's number it samples its limit.

    Returns:
        The commonest first.

    Raises:
        InputError: A table is not there any more, or cannot be read.
    """
    counts: Counter[tuple[str, str, str]] = Counter()
    for number, source in enumerate(sources):
        # The very rows that were trained on: the same generator samples the same limit.
        selection = select_rows(source, np.random.default_rng([seed, number]))
        start = 0
        for file in selection.files:
            try:
                with open_columns(file) as parquet:
                    # Tables of an earlier version may lack a column: then it is not known.
                    names = [name for name in COLUMNS if name in parquet.schema_arrow.names]
                    table = parquet.read(columns=names, use_threads=False)
                    num_rows = parquet.metadata.num_rows
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file} is damaged: {to_line(error)}") from error
            is_used = selection.rank_F[start : start + num_rows] >= 0
            start += num_rows
            columns = [table.column(name).to_pylist() if name in names else [None] * num_rows for name in COLUMNS]
            counts.update(
                (dataset or "", license or "", origin or "")
                for dataset, license, origin, used in zip(*columns, is_used.tolist(), strict=True)
                if used
            )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [DataSource(*kind, rows=rows) for kind, rows in ordered]
