"""Read MagicBrush as Hugging Face ships it (osunlp/MagicBrush): Parquet files that hold the images themselves.

``data/train-00000-of-00051-….parquet`` and ``data/dev-…``, with ``img_id, turn_index, source_img, mask_img,
instruction, target_img``; images are ``struct<bytes, path>``. The masks are not used: the paper's models see none.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from wm.datasets.layouts.base import Layout, Problem, StoredPair
from wm.errors import InputError
from wm.tables import open_parquet

TASK = "magicbrush"
SOURCE, TARGET, ACTION = "source_img", "target_img", "instruction"


def list_stored_pairs(paths: Sequence[Path], root: Path) -> list[StoredPair | Problem]:
    """List the rows file by file, in order; a row without an instruction is a :class:`Problem`.

    Args:
        paths: The Parquet files.
        root: Folder that the rows' names are relative to.

    Raises:
        InputError: A file is no such Parquet file, or there is no usable row at all.
    """
    rows: list[StoredPair | Problem] = []
    for path in paths:
        name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
        with open_parquet(path) as parquet:
            _check_columns(parquet.schema_arrow, name)
            # Texts alone: the images of all files are 25 GB.
            texts = parquet.read(columns=[ACTION]).column(ACTION).to_pylist()
        rows += [_read_row(text, path, number, f"{name}#{number}") for number, text in enumerate(texts)]
    if all(isinstance(row, Problem) for row in rows):
        names = ", ".join(path.name for path in paths)
        raise InputError(f"{names:.200}: no row with an instruction among {len(rows)}")
    return rows


def _check_columns(schema: pa.Schema, name: str) -> None:
    # The footer alone says whether this is the release's form.
    missing = [column for column in (SOURCE, TARGET, ACTION) if column not in schema.names]
    if missing:
        raise InputError(
            f"{name} lacks the column {missing[0]!r}; columns found: {', '.join(schema.names)[:200]}; expected "
            f"MagicBrush's {SOURCE}, {TARGET}, {ACTION}"
        )
    for column in (SOURCE, TARGET):
        kind = schema.field(column).type
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            raise InputError(f"{name} has {column} as {kind}; expected images as struct<bytes, path>")


def _read_row(text: object, path: Path, number: int, uri: str) -> StoredPair | Problem:
    # As with AURORA's JSON: a row without words cannot be a triplet.
    if text is None:
        return Problem(uri, TASK, "missing_field", f"{uri}: no {ACTION!r}")
    if not isinstance(text, str) or not text.strip():
        return Problem(uri, TASK, "bad_field", f"{uri}: {ACTION} = {text!r:.60}; expected non-empty text")
    return StoredPair(uri, TASK, str(path), number, (SOURCE, TARGET), text.strip())


LAYOUT = Layout(list_stored_pairs=list_stored_pairs)
