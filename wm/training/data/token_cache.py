"""Keep the tokens of a source on disk: written once from Parquet, memory-mapped by every worker of a node.

A folder named by a digest of all that decides its content (the Parquet files, the selection, limit and seed, codec and
tokenizer) holds

| file | what |
| --- | --- |
| ``rows.bin`` | a row's codes of the source, codes of the target (uint16 or uint32) and ``change`` (float32) |
| ``actions.bin`` | int32 vocabulary ids of the actions one after another |
| ``action_ends.npy``, ``change_mean.npy``, ``name_ends.npy``, ``names.bin`` | of each row; mean of ``change``; ids |
| ``order.npy`` | int64: position of each row, rows being numbered in the order of their ``triplet_id`` |
| ``facts.json`` | counts; the sizes that the files must have |

Rows are in the order of the Parquet files, so that writing is one pass forwards; training reads rows at random anyhow.
Task, recognition weights and prompt layout are not in it: an inverse and a forward model share one. How folders are
written and shared: :mod:`wm.training.data.cache_folders`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wm.errors import InputError
from wm.runs import write_json
from wm.training.data.cache_folders import FACTS, check_sizes, ensure_folder, name_folder, synced
from wm.training.data.shared_tokens import fetch_shared, is_here
from wm.training.data.sources import CodecShape, Codes, RowSelection, Source
from wm.training.data.tokenized import SourceFacts, SourceReader, check_has_rows

FORMAT = 1


class SourceTokens:
    """A source's rows, R of them sorted by ``triplet_id``; only requested rows are read."""

    def __init__(self, folder: Path, source: Source) -> None:
        facts = json.loads((folder / FACTS).read_text())
        check_sizes(folder, facts["sizes"])
        self.folder = folder
        self._record = _record_type(facts["codes"], facts["tokens_per_image"])
        # Mapped, not read: all workers of a node share the pages.
        self._rows = np.memmap(folder / "rows.bin", np.uint8, "r", shape=(facts["rows"], self._record.itemsize))
        self._actions = np.memmap(folder / "actions.bin", "<i4", "r", shape=(facts["action_tokens"],))
        self._names = np.memmap(folder / "names.bin", np.uint8, "r", shape=(facts["name_bytes"],))
        self._order_R, self._action_ends, self._name_ends, change_mean = (
            np.load(folder / f"{name}.npy", mmap_mode="r")
            for name in ("order", "action_ends", "name_ends", "change_mean")
        )
        # Stored in the order of the files, exposed in the order of ids.
        lengths = np.diff(self._action_ends, prepend=0).astype(np.int32)
        self.facts = SourceFacts(
            source, facts["rows"], facts["skipped"], facts["left_out"], lengths[np.asarray(self._order_R)]
        )
        self.change_mean_R: npt.NDArray[np.float32] = change_mean[np.asarray(self._order_R)]

    def gather(self, rows_B: npt.NDArray[np.int64]) -> tuple[Codes, Codes, npt.NDArray[np.float32]]:
        """Return the codes of source and target and ``change``, each (B, N)."""
        # Bytes, because numpy copies a row of them at once and a structure field by field.
        records = self._rows[self._order_R[rows_B]].view(self._record)[:, 0]
        return records["source"], records["target"], records["change"]

    def actions(self, rows_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the vocabulary ids of the rows' actions, one after another."""
        # From row numbers by id to positions in the files.
        at = self._order_R[rows_B]
        length_B = self.facts.action_tokens_R[rows_B].astype(np.int64)
        within = np.arange(length_B.sum()) - np.repeat(np.cumsum(length_B) - length_B, length_B)
        ids_A: npt.NDArray[np.int64] = self._actions[np.repeat(self._action_ends[at] - length_B, length_B) + within]
        return ids_A.astype(np.int64)

    def names(self, rows_B: npt.NDArray[np.int64]) -> list[str]:
        """Return the ``triplet_id`` of rows."""
        return [
            bytes(self._names[int(self._name_ends[at - 1]) if at else 0 : int(self._name_ends[at])]).decode()
            for at in self._order_R[rows_B].tolist()
        ]


def open_source(root: Path, source: Source, number: int, reader: SourceReader, tokenizer_digest: str) -> SourceTokens:
    """Open the tokens of a source in the cache; they are written if missing.

    Args:
        root: Folder of the cache.
        source: The table.
        number: Of the source in the recipe.
        reader: Turns rows into tokens.
        tokenizer_digest: The reader's :meth:`~wm.training.data.tokenized.SourceReader.tokenizer_digest`.

    Returns:
        The tokens.

    Raises:
        InputError: Something is wrong with the rows, or the disk has not the room.
    """
    folder = root / _key(source, number, reader, tokenizer_digest)

    def prepare() -> Callable[[Path], None]:
        selection = reader.select(source, number)
        _check_room(root, selection.num_rows, reader.codec)
        return lambda temporary: _write_files(temporary, source, selection, reader)

    ensure_folder(folder, prepare)
    return SourceTokens(folder, source)


def find_source(
    root: Path, source: Source, number: int, reader: SourceReader, tokenizer_digest: str
) -> SourceTokens | None:
    """Open the tokens as :func:`open_source` does, but return None if they are not in the cache.

    Args:
        root: Folder of the cache.
        source: The table.
        number: Of the source in the recipe, from 0.
        reader: Makes tokens of rows.
        tokenizer_digest: Of the reader's tokenizer.
    """
    folder = root / _key(source, number, reader, tokenizer_digest)
    return SourceTokens(folder, source) if is_here(folder, FACTS) or fetch_shared(folder, FACTS) else None


def _key(source: Source, number: int, reader: SourceReader, tokenizer_digest: str) -> str:
    codec = reader.codec
    # Task and weights do not change the content.
    facts = [FORMAT, tokenizer_digest, [codec.codec_id, codec.tokens_per_image, codec.num_codes]]
    return name_folder(source, number, reader.seed, facts)


def _write_files(folder: Path, source: Source, selection: RowSelection, reader: SourceReader) -> None:
    codec, left_out = reader.codec, Counter[str]()
    lengths, name_lengths, means, ranks = [], [], [], []
    record = _record_type(codec.code_type.str, codec.tokens_per_image)
    with ExitStack() as stack:
        rows, actions, names = (
            stack.enter_context(synced(folder / f"{name}.bin")) for name in ("rows", "actions", "names")
        )
        # 1. One pass over the rows; what is small stays in memory.
        for chunk, ids_A, length_P in reader.chunks(source, selection, left_out):
            block = np.empty(len(chunk.rank_P), record)
            block["source"], block["target"], block["change"] = chunk.source_PN, chunk.target_PN, chunk.change_PN
            rows.write(block.tobytes())
            actions.write(ids_A.astype("<i4", copy=False).tobytes())
            texts = [name.encode() for name in chunk.names.to_pylist()]
            names.write(b"".join(texts))
            lengths.append(length_P)
            name_lengths.append(np.array([len(text) for text in texts], np.int32))
            means.append(chunk.change_PN.mean(axis=1, dtype=np.float64).astype(np.float32))
            ranks.append(chunk.rank_P)
    # 2. Where each row is stored, by the order of their ids.
    rank_R = np.concatenate(ranks) if ranks else np.zeros(0, np.int64)
    check_has_rows(source, len(rank_R), left_out)
    arrays = {
        "order": np.argsort(rank_R),
        "action_ends": np.concatenate(lengths).cumsum(dtype=np.int64),
        "name_ends": np.concatenate(name_lengths).cumsum(dtype=np.int64),
        "change_mean": np.concatenate(means),
    }
    # Small arrays in numpy's own format, which is mapped too.
    for name, values in arrays.items():
        with synced(folder / f"{name}.npy") as file:
            np.save(file, values)
    # 3. The facts last: a folder without them is not read.
    write_json(
        folder / FACTS,
        {
            "rows": len(rank_R),
            "skipped": selection.num_skipped,
            "left_out": dict(+left_out),
            "codes": codec.code_type.str,
            "tokens_per_image": codec.tokens_per_image,
            "action_tokens": int(arrays["action_ends"][-1]),
            "name_bytes": int(arrays["name_ends"][-1]),
            "sizes": {file.name: file.stat().st_size for file in sorted(folder.iterdir())},
        },
    )


def _record_type(codes: str, tokens_per_image: int) -> np.dtype[np.void]:
    return np.dtype(
        [("source", codes, tokens_per_image), ("target", codes, tokens_per_image), ("change", "<f4", tokens_per_image)]
    )


def cache_bytes(num_rows: int, codec: CodecShape) -> int:
    """Return the bytes of rows in the cache, but for actions and ids, which are few.

    Args:
        num_rows: Of a source.
        codec: Gives the size of a row.
    """
    return num_rows * _record_type(codec.code_type.str, codec.tokens_per_image).itemsize


def _check_room(root: Path, num_rows: int, codec: CodecShape) -> None:
    size = cache_bytes(num_rows, codec)
    free = shutil.disk_usage(root).free
    if size > free:
        raise InputError(
            f"the tokens of {num_rows:,} triplets need {size / 1e9:.1f} GB in {root}, which has {free / 1e9:.1f} GB "
            "free; give another folder as data.token_cache"
        )
