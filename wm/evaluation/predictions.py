"""Define prediction sets, the one form for images that any system predicts for a bench; write and read them.

A set is a folder with ``run.json`` and ``predictions/*.parquet``. Not known here: who predicted, and their scores.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from wm.errors import InputError, to_line
from wm.files.atomic import replace_file
from wm.files.mirror import publish
from wm.images import Pixels, encode_png
from wm.records import StoredImage, hf_dtype
from wm.runs import read_run
from wm.tables import checked_files, open_parquet

Decoding: TypeAlias = Literal["sampled", "greedy", "unknown"]
View: TypeAlias = Literal["full", "square"]
Origin: TypeAlias = Literal["wm", "external"]

ROWS_PER_GROUP = 16
"""Rows of a row group: a reader of a few images reads few others."""

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_FIELDS: list[tuple[str, pa.DataType]] = [
    ("triplet_id", pa.string()),
    ("system", pa.string()),
    ("run", pa.int32()),
    ("sampling_seed", pa.int32()),
    ("decoding", pa.string()),
    ("candidates", pa.list_(pa.int32())),
    ("chosen_at", pa.list_(pa.int32())),
    ("image", _IMAGE),
    ("pixels_sha256", pa.string()),
    ("width_px", pa.int32()),
    ("height_px", pa.int32()),
    ("verifier_logprob", pa.float64()),
    ("view", pa.string()),
    ("origin", pa.string()),
]


def _hf_feature(kind: pa.DataType) -> dict[str, object]:
    if kind == _IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": {"_type": "Value", "dtype": hf_dtype(kind.value_type)}}
    return {"_type": "Value", "dtype": hf_dtype(kind)}


PREDICTION_SCHEMA = pa.schema(
    _FIELDS,
    metadata={
        b"huggingface": json.dumps({"info": {"features": {name: _hf_feature(kind) for name, kind in _FIELDS}}}).encode()
    },
)
"""One row = one distinct image that a system predicted for a triplet in one run with one sampling seed.

``run``: training seed or number of the repeat. ``candidates``: numbers, in the order of sampling, of the candidates
that gave this very image, which is stored once. ``chosen_at``: the numbers of candidates K at which the verifier chose
it, each once for every group of K that chose it (see :mod:`wm.evaluation.verification`); empty without a choice.
``pixels_sha256``: of size and RGB pixels, however they are encoded. ``verifier_logprob``: log-likelihood of the action
under the prediction in nats; null without a verifier. ``view``: the ``full`` frame, or its centre-cropped ``square``.
``decoding``: ``sampled``, ``greedy`` or, of external systems, ``unknown``."""


class PredictionRow(TypedDict):
    """A row of :data:`PREDICTION_SCHEMA`."""

    triplet_id: str
    system: str
    run: int
    sampling_seed: int
    decoding: Decoding
    candidates: list[int]
    chosen_at: list[int]
    image: StoredImage
    pixels_sha256: str
    width_px: int
    height_px: int
    verifier_logprob: float | None
    view: View
    origin: Origin


class PredictionFacts(TypedDict):
    """The columns of a row that need no image to be read, and where the row is."""

    triplet_id: str
    system: str
    run: int
    sampling_seed: int
    decoding: Decoding
    candidates: list[int]
    chosen_at: list[int]
    pixels_sha256: str
    width_px: int
    height_px: int
    verifier_logprob: float | None
    view: View
    file: str
    row: int


def pixels_digest(pixels_HWC: Pixels) -> str:
    """Hash an image by its size and pixels, so that its encoding does not matter: 64 hexadecimal digits."""
    digest = hashlib.sha256(f"{pixels_HWC.shape[1]}x{pixels_HWC.shape[0]}\n".encode())
    digest.update(pixels_HWC.tobytes())
    return digest.hexdigest()


def prediction_row(
    pixels_HWC: Pixels,
    *,
    triplet_id: str,
    system: str,
    run: int = 0,
    sampling_seed: int = 0,
    decoding: Decoding = "unknown",
    candidates: Sequence[int] = (0,),
    chosen_at: Sequence[int] = (),
    verifier_logprob: float | None = None,
    view: View,
    origin: Origin,
) -> PredictionRow:
    """Build a row of an image.

    Args:
        pixels_HWC: uint8 RGB; stored as PNG.
        triplet_id: Triplet that it is predicted for.
        system: Name of the system, as tables show it.
        run: Training seed or number of the repeat.
        sampling_seed: Of the candidates.
        decoding: How the codes were chosen.
        candidates: Numbers of the candidates that gave this image.
        chosen_at: Numbers of candidates at which the verifier chose it.
        verifier_logprob: Log-likelihood of the action, nats.
        view: The frame's part that the image shows.
        origin: Who predicted it.

    Returns:
        The row.
    """
    height_px, width_px = pixels_HWC.shape[:2]
    return {
        "triplet_id": triplet_id,
        "system": system,
        "run": run,
        "sampling_seed": sampling_seed,
        "decoding": decoding,
        "candidates": list(candidates),
        "chosen_at": list(chosen_at),
        "image": {"bytes": encode_png(pixels_HWC), "path": None},
        "pixels_sha256": pixels_digest(pixels_HWC),
        "width_px": width_px,
        "height_px": height_px,
        "verifier_logprob": verifier_logprob,
        "view": view,
        "origin": origin,
    }


def predictions_folder(folder: str | Path) -> Path:
    """Return the folder of a set's Parquet files."""
    return Path(folder) / "predictions"


def write_predictions(rows: Iterable[PredictionRow], path: Path) -> int:
    """Write rows as one Parquet file, complete or not at all; a few rows at a time are in memory.

    Args:
        rows: The rows.
        path: The file; its folder is made.

    Returns:
        How many rows were written.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    count, remaining = 0, iter(rows)
    with replace_file(path) as temporary:
        with pq.ParquetWriter(temporary, PREDICTION_SCHEMA, compression="zstd") as writer:
            # An empty row group would stop Hugging Face's datasets.
            while group := list(islice(remaining, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, schema=PREDICTION_SCHEMA))
                count += len(group)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a rename can reach the disk before the content does
    publish(path)
    return count


def check_complete(folder: str | Path) -> None:
    """Raise :class:`InputError` unless a prediction set is complete: means would be over fewer items than they say."""
    if read_run(folder) is None:
        state = "is not complete" if Path(folder).is_dir() else "does not exist"
        raise InputError(f"prediction set {folder} {state}: expected a folder with run.json and predictions/")


def list_predictions(folder: str | Path) -> list[PredictionFacts]:
    """List the rows of a complete set without reading images.

    Args:
        folder: The set's folder.

    Returns:
        The rows' facts, in the order of the files' names.

    Raises:
        InputError: The set is not complete, damaged, empty, or not of this form.
    """
    check_complete(folder)
    if not predictions_folder(folder).is_dir():
        raise InputError(
            f"{folder} has no predictions/: expected a folder of wm collect, or of wm evaluate with keep_images"
        )
    columns = [name for name in PredictionFacts.__annotations__ if name not in ("file", "row")]
    facts: list[PredictionFacts] = []
    for file in checked_files(predictions_folder(folder), PREDICTION_SCHEMA):
        try:
            rows = (
                open_parquet(file)
                .read(columns=columns)
                .cast(pa.schema([PREDICTION_SCHEMA.field(name) for name in columns]))
            )
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is damaged: {to_line(error)}") from error
        located = (row | {"file": str(file), "row": number} for number, row in enumerate(rows.to_pylist()))
        facts += [cast(PredictionFacts, row) for row in located]
    if not facts:
        raise InputError(f"{folder} holds no prediction")
    return facts


def check_systems(sets: Sequence[tuple[str, Sequence[PredictionFacts]]]) -> None:
    """Check that no two sets hold a system of the same name, whose figures would be mixed.

    Args:
        sets: Folder and rows of each set.

    Raises:
        InputError: It names the system and both folders.
    """
    owners: dict[str, str] = {}
    for folder, facts in sets:
        for system in sorted({row["system"] for row in facts}):
            if owners.setdefault(system, folder) != folder:
                raise InputError(
                    f"{owners[system]} and {folder} both hold a system named {system!r}; give one of them another name "
                    "(system, label or zero_shot_label), or leave a base out by zero_shot=false"
                )


def read_image_bytes(file: str | Path, rows: Sequence[int], column: str = "image") -> list[bytes]:
    """Read the encoded images of some rows of a Parquet file.

    Args:
        file: A file of predictions or triplets.
        rows: Row numbers, ascending.
        column: Column of the images.

    Returns:
        The bytes, in the order of ``rows``.

    Raises:
        InputError: The file is damaged, or a row has no image.
    """
    row_numbers = set(rows)
    images: dict[int, bytes] = {}
    try:
        for number, values in _iterate_groups(file, rows, column):
            images |= {row: values[row - number] for row in range(number, number + len(values)) if row in row_numbers}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error
    missing = [row for row in rows if not images.get(row)]
    if missing:
        raise InputError(f"{file}: row {missing[0]} has no {column}")
    return [images[row] for row in rows]


def _iterate_groups(file: str | Path, rows: Sequence[int], column: str) -> Iterator[tuple[int, list[bytes]]]:
    """Iterate over the row groups that hold some of the rows: first row number, and the bytes of all rows."""
    parquet = open_parquet(file)
    begin = 0
    for group in range(parquet.metadata.num_row_groups):
        end = begin + parquet.metadata.row_group(group).num_rows
        if any(begin <= row < end for row in rows):
            values = parquet.read_row_group(group, columns=[column]).column(column).to_pylist()
            yield begin, [(value or {}).get("bytes") or b"" for value in values]
        begin = end
