"""Define the triplet and reject tables: schemas, ids, seeds, validation of rows.

Every stage exchanges these two tables (rows in = triplets out + rejects out). Knows no file: :mod:`wm.tables` reads and
writes them.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Required, TypedDict, Unpack, cast

import pyarrow as pa

from wm.errors import InputError

Origin = Literal["human", "idm", "fdm"]
Outcome = Literal["filtered", "failed"]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_TRIPLET_FIELDS: list[tuple[str, pa.DataType]] = [
    ("triplet_id", pa.string()),
    ("dataset", pa.string()),
    ("split", pa.string()),
    ("class_label", pa.string()),
    ("video_uri", pa.string()),
    ("source_frame", pa.int32()),
    ("target_frame", pa.int32()),
    ("source_time_s", pa.float64()),
    ("target_time_s", pa.float64()),
    ("motion", pa.float32()),
    ("source_image", _IMAGE),
    ("target_image", _IMAGE),
    ("codec", pa.string()),
    ("source_codes", pa.list_(pa.uint16())),
    ("target_codes", pa.list_(pa.uint16())),
    ("change", pa.list_(pa.float32())),
    ("action", pa.string()),
    ("action_logprob", pa.float64()),
    ("action_tokens", pa.int32()),
    ("origin", pa.string()),
    ("annotator", pa.string()),
    ("status", pa.string()),
    ("license", pa.string()),
    ("reader", pa.string()),
]


def _hf_metadata(fields: Sequence[tuple[str, pa.DataType]]) -> dict[bytes, bytes]:
    """Build Hugging Face ``datasets`` features, so that ``load_dataset("parquet")`` decodes the two images."""

    def feature(kind: pa.DataType) -> dict[str, object]:
        if kind == _IMAGE:
            return {"_type": "Image"}
        if pa.types.is_list(kind):
            return {"_type": "List", "feature": {"_type": "Value", "dtype": hf_dtype(kind.value_type)}}
        return {"_type": "Value", "dtype": hf_dtype(kind)}

    info = {"info": {"features": {name: feature(kind) for name, kind in fields}}}
    return {b"huggingface": json.dumps(info).encode()}


def hf_dtype(kind: pa.DataType) -> str:
    """Name an Arrow type as Hugging Face ``datasets`` does, such as ``float64``."""
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


TRIPLET_SCHEMA = pa.schema(_TRIPLET_FIELDS, metadata=_hf_metadata(_TRIPLET_FIELDS))
"""One row = (source image, action, target image).

``*_codes``: codebook ids of the image, row-major (not vocabulary ids of a language model).
``change``: squared L2 distance per image token between the pre-quantised features of source and target
(paper section 3.2, recognition model), raw; normalising it is training's choice.
``action_logprob``: sum of log-probabilities of the action's tokens in nats, ``action_tokens`` their count;
both null for human actions. ``motion``: mean optical-flow magnitude at the target key-frame, px/frame.
``origin``: ``human``, ``idm`` or ``fdm``. ``reader``: what decoded the two frames of a video, ``decord`` or
``pyav``. Unknown times, frames and motion are null.
"""

LATER_COLUMNS = frozenset({"reader"})
"""Columns that came after the first data sets were written: null where a file lacks them."""

REJECT_SCHEMA = pa.schema(
    [
        ("reject_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("class_label", pa.string()),
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One row = what was left out. ``outcome`` is ``filtered`` (fine, but not wanted: did not move enough) or ``failed``
(could not be used: not decodable, file missing). ``reason`` is a short stable slug to count by
(``missing_file``, ``no_video_stream``, ``time_out``); ``detail`` names the thing in words."""


STAGE_TABLES = {"triplets": TRIPLET_SCHEMA, "rejects": REJECT_SCHEMA}
"""Folders of the tables that every stage with triplets writes, and their schemas."""


class StoredImage(TypedDict):
    """An image in a row, as Hugging Face ``datasets`` stores one: its file's bytes, and its name or null."""

    bytes: bytes
    path: str | None


class TripletRow(TypedDict, total=False):
    """A row of :data:`TRIPLET_SCHEMA`. One that :func:`triplet_row` has built has every key, null where unknown."""

    triplet_id: str
    dataset: Required[str]
    split: Required[str]
    class_label: str | None
    video_uri: str | None
    source_frame: int | None
    target_frame: int | None
    source_time_s: float | None
    target_time_s: float | None
    motion: float | None
    source_image: Required[StoredImage]
    target_image: Required[StoredImage]
    codec: str | None
    source_codes: list[int] | None
    target_codes: list[int] | None
    change: list[float] | None
    action: Required[str]
    action_logprob: float | None
    action_tokens: int | None
    origin: Required[Origin]
    annotator: str | None
    status: str
    license: str | None
    reader: str | None


class CodeColumns(TypedDict, total=False):
    """Columns of :data:`TRIPLET_SCHEMA` that a codec fills: all of them, or without one none."""

    codec: str
    source_codes: list[int]
    target_codes: list[int]
    change: list[float]


class RejectRow(TypedDict):
    """A row of :data:`REJECT_SCHEMA`."""

    reject_id: str
    dataset: str
    split: str
    class_label: str | None
    uri: str
    stage: str
    outcome: Outcome
    reason: str
    detail: str


def stable_id(*parts: object) -> str:
    """Compute 24 hexadecimal digits that depend on the parts alone: the same row has the same id in every run."""
    text = "\x1f".join("" if part is None else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def derive_seed(seed: int, *parts: object) -> int:
    """Derive a 63-bit seed from another seed and what names the row that it is for.

    The same in every process, and independent of those of other rows, which would otherwise share their noise.

    Args:
        seed: The seed of a run, 0 or more.
        parts: Strings or integers that name the row.

    Returns:
        The first 63 bits of the SHA-256 of ``[seed, *parts]`` as JSON, which fit an ``int64`` column.
    """
    text = json.dumps([seed, *parts], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


SEED_SCHEME = "of the run's seed and the row's id"
"""How rows get their seeds, recorded among a run's inputs: a folder half done in another way is not resumed."""


def row_seeds(seed: int, ids: Iterable[str | None]) -> list[int]:
    """Derive a seed for each row from the run's seed and the row's id.

    A row's seed does not change with the order of the rows, with their number or with how they are split. Only where an
    id occurs again does the row's position among those of the same id count, so that such rows stay independent too.

    Args:
        seed: The seed of the run, 0 or more.
        ids: Ids of the rows; a missing one is an empty string.

    Returns:
        One 63-bit seed a row.
    """
    occurrences: Counter[str] = Counter()
    seeds = []
    for row_id in ids:
        name = row_id or ""
        count = occurrences[name]
        occurrences[name] += 1
        # An id's first row has the seed that it has in a set without doubles.
        seeds.append(derive_seed(seed, name, count) if count else derive_seed(seed, name))
    return seeds


def reject_row(
    *,
    uri: str,
    stage: str,
    outcome: Outcome,
    reason: str,
    detail: str,
    dataset: str = "",
    split: str = "",
    class_label: str | None = "",
) -> RejectRow:
    """Build a row of :data:`REJECT_SCHEMA`.

    Args:
        uri: What was left out: a video, a triplet, an entry of a list.
        stage: The command that left it out.
        outcome: ``filtered`` (usable, but not wanted) or ``failed`` (could not be used).
        reason: A short stable name to count by, such as ``time_out``.
        detail: The reason in words, naming the thing.
        dataset: Name of the data set.
        split: Name of the split.
        class_label: The label of its class.

    Returns:
        The row; its id depends on dataset, uri, stage and reason alone.
    """
    return {
        "reject_id": stable_id(dataset, uri, stage, reason),
        "dataset": dataset,
        "split": split,
        "class_label": class_label,
        "uri": uri,
        "stage": stage,
        "outcome": outcome,
        "reason": reason,
        "detail": detail,
    }


def triplet_row(**columns: Unpack[TripletRow]) -> TripletRow:
    """Build a complete row of :data:`TRIPLET_SCHEMA`.

    Args:
        columns: Values by column; absent ones are null. Without a ``triplet_id`` the row gets one that depends on
            data set, video and frames.

    Returns:
        The row, with every column of the schema in its order.

    Raises:
        InputError: A column is unknown, or the row breaks a promise of the table (see :func:`check_triplet`).
    """
    unknown = sorted(set(columns) - set(TRIPLET_SCHEMA.names))
    if unknown:
        raise InputError(f"unknown triplet column {unknown[0]!r}; the columns are {', '.join(TRIPLET_SCHEMA.names)}")
    row = cast(TripletRow, {name: columns.get(name) for name in TRIPLET_SCHEMA.names})
    row["status"] = row["status"] or "ok"
    if columns.get("triplet_id") is None:
        row["triplet_id"] = stable_id(row["dataset"], row["video_uri"], row["source_frame"], row["target_frame"])
    check_triplet(row)
    return row


def check_triplet(row: TripletRow) -> None:
    """Check that a row keeps the table's promises.

    Args:
        row: A row with every column; its values may be of any type.

    Raises:
        InputError: It does not; the message names the row and the column.
    """
    values: Mapping[str, object] = row

    def fail(column: str, expected: str) -> None:
        raise InputError(f"triplet {row['triplet_id']}: {column} = {values[column]!r:.80}, expected {expected}")

    for column in ("triplet_id", "dataset", "split", "origin"):
        if not values[column]:
            fail(column, "a non-empty string")
    if row["origin"] not in ("human", "idm", "fdm"):
        fail("origin", "human, idm or fdm")
    if not isinstance(row["action"], str) or not row["action"].strip():
        fail("action", "a non-empty string")
    for column, image in (("source_image", row["source_image"]), ("target_image", row["target_image"])):
        if not image or not image.get("bytes"):
            fail(column, "an image with bytes")
    # Codes without their codec, or of two lengths, would train a model on noise.
    lengths = [len(codes) for codes in (row["source_codes"], row["target_codes"], row["change"]) if codes is not None]
    if lengths and (len(lengths) < 3 or len(set(lengths)) != 1):
        fail("change", "source_codes, target_codes and change of one length, or none of them")
    if lengths and not row["codec"]:
        fail("codec", "the id of the codec that made the codes")
    if row["origin"] == "idm" and (row["action_logprob"] is None or not row["action_tokens"]):
        fail("action_logprob", "a likelihood and a token count, because origin is idm")
