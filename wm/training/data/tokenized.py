"""Read rows of a source with their actions as vocabulary ids, for the token cache and for the counts of a dry run.

A row whose action cannot be learned is left out and counted, because one odd text among millions should not stop a
run: an empty action teaches nothing, and one with a reserved token would be taken for structure. A damaged table, or
one of another codec, is an error (:mod:`wm.training.data.sources`).

Shape suffixes: R rows of a source, P rows of a chunk, A tokens of all its actions one after another.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.training.data.sources import CodecShape, RowChunk, RowSelection, Source, read_chunks, select_rows

EMPTY, RESERVED = "empty action", "reserved token in the action"
"""Why a row is left out."""


@dataclass(frozen=True)
class SourceFacts:
    """A source as training sees it, without its rows."""

    source: Source
    num_rows: int
    num_skipped: int
    """Rows left out because their ``status`` is not ``ok``."""
    left_out: dict[str, int]
    """Rows left out because of their action: reason, count."""
    action_tokens_R: npt.NDArray[np.int32]  # noqa: N815
    """Tokens of each row's action, rows sorted by ``triplet_id``."""


@dataclass(frozen=True)
class SourceReader:
    """Turns rows into tokens: the same for all sources of a run."""

    vlm: UnifiedVLM
    codec: CodecShape
    seed: int

    def tokenizer_digest(self) -> str:
        """Digest the tokenizer and the ids that an action may not hold."""
        # Fast tokenizers have all their rules in one text; of others the vocabulary must do.
        backend = getattr(self.vlm.tokenizer, "backend_tokenizer", None)
        text = backend.to_str() if backend is not None else json.dumps(self.vlm.tokenizer.get_vocab())
        return hashlib.sha256((text + json.dumps(sorted(self.vlm.reserved_ids))).encode()).hexdigest()

    def select(self, source: Source, number: int) -> RowSelection:
        """Select the rows of a source.

        Args:
            source: The table.
            number: Of the source in the recipe, from 0; with the seed it samples the limit.
        """
        return select_rows(source, np.random.default_rng([self.seed, number]))

    def chunks(
        self, source: Source, selection: RowSelection, left_out: Counter[str]
    ) -> Iterator[tuple[RowChunk, npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Read the selected rows whose action can be learned.

        Args:
            source: The table.
            selection: Its selected rows.
            left_out: Is added to: rows by the reason for which they are left out.

        Yields:
            Chunks, with ``ids_A`` and ``length_P`` of their actions.
        """
        reserved = np.array(sorted(self.vlm.reserved_ids), np.int64)
        for chunk in read_chunks(source, selection, self.codec):
            texts = [action or "" for action in chunk.actions]
            # One call a chunk: fast tokenizers work on all texts in parallel.
            ids: list[list[int]] = self.vlm.tokenizer(texts, add_special_tokens=False)["input_ids"]
            length_P = np.array([len(row) for row in ids], np.int32)
            ids_A = np.fromiter((token for row in ids for token in row), np.int32, int(length_P.sum()))
            row_A = np.repeat(np.arange(len(ids)), length_P)
            is_reserved_P = np.zeros(len(ids), np.bool_)
            is_reserved_P[row_A[np.isin(ids_A, reserved)]] = True
            # An empty action teaches nothing; a reserved token in it would be taken for structure.
            left_out.update({EMPTY: int((length_P == 0).sum()), RESERVED: int(is_reserved_P.sum())})
            is_usable_P = ~is_reserved_P & (length_P > 0)
            yield _filter(chunk, is_usable_P), ids_A[is_usable_P[row_A]], length_P[is_usable_P]

    def survey(self, source: Source, number: int) -> SourceFacts:
        """Read and check all that training would, and count.

        Args:
            source: The table.
            number: Of the source in the recipe, from 0; with the seed it samples the limit.
        """
        selection = self.select(source, number)
        left_out: Counter[str] = Counter()
        length_R = np.full(selection.num_rows, -1, np.int32)
        for chunk, _, length_P in self.chunks(source, selection, left_out):
            length_R[chunk.rank_P] = length_P
        # Rows that were left out have kept their -1.
        length_R = length_R[length_R >= 0]
        check_has_rows(source, len(length_R), left_out)
        return SourceFacts(source, len(length_R), selection.num_skipped, dict(+left_out), length_R)


def check_has_rows(source: Source, num_rows: int, left_out: Counter[str]) -> None:
    """Raise :class:`InputError` with the reasons if no row is left.

    Args:
        source: The table.
        num_rows: Rows that training uses.
        left_out: Number of other rows by reason.
    """
    if num_rows == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in (+left_out).items())
        raise InputError(f"{source.folder} has no row to train on (left out: {reasons})")


def _filter(chunk: RowChunk, mask_P: npt.NDArray[np.bool_]) -> RowChunk:
    if mask_P.all():
        return chunk
    return RowChunk(
        chunk.rank_P[mask_P],
        chunk.names.filter(pa.array(mask_P)),
        list(itertools.compress(chunk.actions, mask_P.tolist())),
        chunk.source_PN[mask_P],
        chunk.target_PN[mask_P],
        chunk.change_PN[mask_P],
    )
