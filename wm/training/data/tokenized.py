"""Rows of a source with their actions as vocabulary ids: what the token cache holds and a dry run counts.

A row whose action cannot be learned is left out and counted, because one odd text among millions should not stop a
run: an empty action teaches nothing, and one with a reserved token would be taken for structure. What shows that a
table is damaged or of another codec is an error (:mod:`wm.training.data.sources`).

Shape suffixes: R rows of a source, P rows of a piece, A tokens of all its actions one after another.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.training.data.sources import Chosen, CodecShape, Piece, Source, choose_rows, read_pieces

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
class Reader:
    """What turns rows into tokens: the same for all sources of a run."""

    vlm: UnifiedVLM
    codec: CodecShape
    seed: int

    def speech_digest(self) -> str:
        """Digest the tokenizer and the ids that an action may not hold."""
        tokenizer = getattr(self.vlm.tokenizer, "backend_tokenizer", None)
        spoken = tokenizer.to_str() if tokenizer is not None else json.dumps(self.vlm.tokenizer.get_vocab())
        return hashlib.sha256((spoken + json.dumps(sorted(self.vlm.reserved_ids))).encode()).hexdigest()

    def choose(self, source: Source, number: int) -> Chosen:
        """Choose the rows used of the recipe's source ``number``, which with the seed samples the limit."""
        return choose_rows(source, np.random.default_rng([self.seed, number]))

    def pieces(
        self, source: Source, chosen: Chosen, left_out: Counter[str]
    ) -> Iterator[tuple[Piece, npt.NDArray[np.int32], npt.NDArray[np.int32]]]:
        """Yield chunks without the rows that are left out, which are counted, with ``ids_A`` and ``length_P`` of their
        actions."""
        reserved = np.array(sorted(self.vlm.reserved_ids), np.int64)
        for piece in read_pieces(source, chosen, self.codec):
            texts = [action or "" for action in piece.actions]
            ids: list[list[int]] = self.vlm.tokenizer(texts, add_special_tokens=False)["input_ids"]
            length_P = np.array([len(row) for row in ids], np.int32)
            ids_A = np.fromiter((token for row in ids for token in row), np.int32, int(length_P.sum()))
            row_A = np.repeat(np.arange(len(ids)), length_P)
            is_reserved_P = np.zeros(len(ids), np.bool_)
            is_reserved_P[row_A[np.isin(ids_A, reserved)]] = True
            left_out.update({EMPTY: int((length_P == 0).sum()), RESERVED: int(is_reserved_P.sum())})
            kept_P = ~is_reserved_P & (length_P > 0)
            yield _filtered(piece, kept_P), ids_A[kept_P[row_A]], length_P[kept_P]

    def survey(self, source: Source, number: int) -> SourceFacts:
        """Read and check all that training would, and keep nothing but counts."""
        chosen = self.choose(source, number)
        left_out: Counter[str] = Counter()
        length_R = np.full(chosen.num_rows, -1, np.int32)
        for piece, _, length_P in self.pieces(source, chosen, left_out):
            length_R[piece.rank_P] = length_P
        length_R = length_R[length_R >= 0]
        need_rows(source, len(length_R), left_out)
        return SourceFacts(source, len(length_R), chosen.num_skipped, dict(+left_out), length_R)


def need_rows(source: Source, num_rows: int, left_out: Counter[str]) -> None:
    """Raise :class:`InputError` with the reasons if no row is left."""
    if num_rows == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in (+left_out).items())
        raise InputError(f"{source.folder} has no row to train on (left out: {reasons})")


def _filtered(piece: Piece, kept_P: npt.NDArray[np.bool_]) -> Piece:
    if kept_P.all():
        return piece
    return Piece(
        piece.rank_P[kept_P],
        piece.names.filter(pa.array(kept_P)),
        [action for action, kept in zip(piece.actions, kept_P.tolist(), strict=True) if kept],
        piece.source_PN[kept_P],
        piece.target_PN[kept_P],
        piece.change_PN[kept_P],
    )
