"""Triplets to tensors, once, before the first step: a step then only indexes.

Only the columns training needs are read: a few kB a row, no image is decoded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import torch
from pydantic import Field
from torch import Tensor

from wm.config import Recipe
from wm.errors import InputError
from wm.models.prompts import pack
from wm.models.protocol import Task, UnifiedVLM
from wm.records import read_table, table_files
from wm.training.loss import Weights, recognition_weights
from wm.training.order import Indices

COLUMNS = ("triplet_id", "action", "codec", "source_codes", "target_codes", "change", "status")
_ROWS_AT_A_TIME = 4096
NUM_QUANTILES = 4
"""Parts into which rows are sorted by how much their image changes."""


class Source(Recipe):
    """One table of triplets."""

    path: str
    """Folder of triplet Parquet files, or a stage's output folder that holds ``triplets``."""
    weight: float = Field(default=1.0, gt=0.0)
    """How often each row appears in an epoch: 2 twice, 0.5 a random half of the rows, anew each epoch."""
    limit: int = Field(default=0, ge=0)
    """Keep this many rows, drawn once with the recipe's seed; 0: all."""
    selection: str = ""
    """Parquet file or folder with a column ``triplet_id`` (jobs.select writes one): only these rows; empty:
    all."""


@dataclass(frozen=True)
class Rows:
    """The rows of one source that training uses, sorted by ``triplet_id``."""

    source: Source
    table: pa.Table
    num_skipped: int
    """Rows of the source left out because their ``status`` is not ``ok``."""


@dataclass(frozen=True)
class TokenSet:
    """Every training row as tensors, R rows padded on the right to T tokens."""

    ids_RT: Tensor  # noqa: N815
    """int32 vocabulary ids."""
    is_completion_RT: Tensor  # noqa: N815
    """bool: the tokens that are learned."""
    weight_RT: Tensor  # noqa: N815
    """float32: loss weights; 1 outside images."""
    length_R: Tensor  # noqa: N815
    """int64: tokens of each row before padding."""
    names: tuple[str, ...]
    """``triplet_id`` of each row."""
    source_R: npt.NDArray[np.int64]  # noqa: N815
    """Number of each row's source."""
    change_R: npt.NDArray[np.float64]  # noqa: N815
    """Mean ``change`` of each row."""

    def source_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Number of the source of each of these rows, int64 (B,)."""
        return self.source_R[rows]

    def change_quantile_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Which part of all rows, sorted by their mean ``change``, each row belongs to: 0 (least) to
        ``NUM_QUANTILES`` - 1. Rows that change equally belong together."""
        edges = np.quantile(self.change_R, np.arange(1, NUM_QUANTILES) / NUM_QUANTILES)
        return np.searchsorted(edges, self.change_R[rows], side="left")

    def lengths(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Tokens of each of these rows, int64 (B,)."""
        return self.length_R.numpy()[rows]

    def batch(self, rows: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """``ids_BT`` int64, ``is_completion_BT`` bool, ``weight_BT`` float32 of these rows, cut to the
        longest."""
        index_B = torch.from_numpy(rows)
        length = int(self.length_R[index_B].max())
        return (
            self.ids_RT[index_B, :length].long(),
            self.is_completion_RT[index_B, :length],
            self.weight_RT[index_B, :length],
        )

    def num_completion_tokens(self, rows: Indices) -> int:
        """Completion tokens in these rows together."""
        return int(self.is_completion_RT[torch.from_numpy(rows)].sum())


def read_sources(sources: Sequence[Source], *, codec_id: str, tokens_per_image: int, seed: int) -> list[Rows]:
    """Read, select, limit and check every source.

    Raises :class:`InputError` that names the source for a missing folder, another schema, no usable row,
    rows without codes, and rows whose codes were made by another codec than the model's ``codec_id``.
    """
    return [
        _read_source(source, codec_id, tokens_per_image, np.random.default_rng([seed, number]))
        for number, source in enumerate(sources)
    ]


def tensorise(rows: Sequence[Rows], vlm: UnifiedVLM, task: Task, weights: Weights) -> TokenSet:
    """Lay out every row for ``task`` and pack all sources, in order, into one :class:`TokenSet`."""
    table = pa.concat_tables([part.table for part in rows])
    source_RN, target_RN = (_codes(table, name) for name in ("source_codes", "target_codes"))
    actions = table.column("action").to_pylist()
    packed = []
    for start in range(0, len(actions), _ROWS_AT_A_TIME):
        span = slice(start, start + _ROWS_AT_A_TIME)
        segments = [
            vlm.layout(task, source=source, action=action, target=target)
            for source, action, target in zip(
                source_RN[span].tolist(), actions[span], target_RN[span].tolist(), strict=True
            )
        ]
        ids_BT, is_completion_BT, is_image_BT = pack(segments, vlm.pad_id)
        length_B = torch.tensor([sum(len(segment.ids) for segment in row) for row in segments])
        packed.append((ids_BT.int(), is_completion_BT, is_image_BT, length_B))
    ids_RT = _stack([part[0] for part in packed], vlm.pad_id)
    is_completion_RT = _stack([part[1] for part in packed], 0)
    weight_RT = torch.ones(ids_RT.shape)
    if weights.enabled and task == "fdm":
        change_RN = torch.from_numpy(_flat(table, "change").reshape(source_RN.shape).astype(np.float32))
        # Row-major on both sides: the n-th completed image token of a row takes the row's n-th weight.
        is_weighted_RT = is_completion_RT & _stack([part[2] for part in packed], 0)
        weight_RT[is_weighted_RT] = recognition_weights(change_RN, weights).flatten()
    return TokenSet(
        ids_RT,
        is_completion_RT,
        weight_RT,
        torch.cat([part[3] for part in packed]),
        tuple(table.column("triplet_id").to_pylist()),
        np.repeat(np.arange(len(rows)), [part.table.num_rows for part in rows]),
        _flat(table, "change").reshape(source_RN.shape).mean(axis=1, dtype=np.float64),
    )


def _read_source(source: Source, codec_id: str, tokens_per_image: int, generator: np.random.Generator) -> Rows:
    folder = Path(source.path)
    folder = folder / "triplets" if (folder / "triplets").is_dir() else folder
    table = read_table(folder, columns=list(COLUMNS)).sort_by("triplet_id")
    if source.selection:
        table = _select(table, source)
    usable = table.filter(pc.equal(table.column("status"), "ok"))
    num_skipped = table.num_rows - usable.num_rows
    if usable.num_rows == 0:
        raise InputError(f"{folder} has no row to train on ({table.num_rows} rows, {num_skipped} not of status 'ok')")
    _check_codes(usable, folder, codec_id, tokens_per_image)
    if 0 < source.limit < usable.num_rows:
        chosen = np.sort(generator.choice(usable.num_rows, source.limit, replace=False))
        usable = usable.take(pa.array(chosen))
    return Rows(source, usable, num_skipped)


def _select(table: pa.Table, source: Source) -> pa.Table:
    files = [str(file) for file in table_files(source.selection)]
    if not files:
        raise InputError(f"no Parquet file below selection {source.selection}")
    names = pads.dataset(files).schema.names
    if "triplet_id" not in names:
        raise InputError(f"{source.selection} lacks the column 'triplet_id'; columns found: {', '.join(names)}")
    wanted = pc.unique(pads.dataset(files).to_table(columns=["triplet_id"]).column("triplet_id"))
    unknown = wanted.filter(pc.invert(pc.is_in(wanted, table.column("triplet_id").combine_chunks())))
    if len(unknown):
        raise InputError(
            f"{source.selection} selects {len(unknown)} triplets that {source.path} does not hold, "
            f"{unknown[0]} among them"
        )
    return table.filter(pc.is_in(table.column("triplet_id"), wanted))


def _check_codes(table: pa.Table, folder: Path, codec_id: str, tokens_per_image: int) -> None:
    num_bare = table.num_rows - len(table.column("source_codes").drop_null())
    if num_bare:
        raise InputError(
            f"{folder}: {num_bare} of {table.num_rows} triplets have no image codes; "
            f"make them with jobs.ingest and codec {codec_id}"
        )
    for found in pc.unique(table.column("codec")).to_pylist():
        if found != codec_id:
            raise InputError(
                f"{folder} holds codes of codec {found}, the base model reads codec {codec_id}; "
                "make them anew with jobs.ingest and the base model's codec"
            )
    for name in ("source_codes", "target_codes", "change"):
        for length in pc.unique(pc.list_value_length(table.column(name))).to_pylist():
            if length != tokens_per_image:
                raise InputError(
                    f"{folder}: {name} of length {length}, expected {tokens_per_image}, the codec's tokens per image"
                )


def _flat(table: pa.Table, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.uint16]]:
    values: np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.uint16]]
    values = pc.list_flatten(table.column(name)).to_numpy()
    return values


def _codes(table: pa.Table, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32 | np.uint16]]:
    return _flat(table, name).reshape(table.num_rows, -1)


def _stack(parts_BT: Sequence[Tensor], fill: int) -> Tensor:
    """Concatenate along rows, padding on the right to the longest."""
    length = max(part.shape[1] for part in parts_BT)
    return torch.cat([torch.nn.functional.pad(part, (0, length - part.shape[1]), value=fill) for part in parts_BT])
