"""Build batches of tensors from row numbers: the tokens of all sources behind one index.

Nothing is read ahead: a batch gathers its rows from the memory-mapped token cache
(:mod:`wm.training.data.token_cache`) and lays them out (:mod:`wm.training.data.prompt_batches`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.prompts import Task
from wm.models.vlm import UnifiedVLM
from wm.training.data.order import Indices
from wm.training.data.prompt_batches import RowLayout
from wm.training.data.sources import CodecShape, Source
from wm.training.data.token_cache import SourceTokens, open_source
from wm.training.data.tokenized import SourceFacts, SourceReader
from wm.training.loss import RecognitionWeights, recognition_weights

TOO_LONG = "row too long for the model"
"""Why a row is left out beside the reasons of :mod:`wm.training.data.tokenized`: it needs more positions than there
are."""
NUM_QUANTILES = 4
"""Parts into which rows are sorted by how much their image changes."""


class TokenSet:
    """Training rows of all sources, numbered from 0: those of the first source by ``triplet_id``, and so on.

    Shape suffixes: B requested rows, T tokens of the longest of them.
    """

    def __init__(
        self, sources: Sequence[SourceTokens], vlm: UnifiedVLM, task: Task, recognition: RecognitionWeights
    ) -> None:
        """Index the rows; those longer than the model's positions are left out and counted in ``facts``.

        Args:
            sources: Their tokens.
            vlm: The model.
            task: ``idm`` or ``fdm``.
            recognition: Weights of the target's image tokens.

        Raises:
            InputError: A source has no row that fits, or the model's family does not know the task.
        """
        self._layout = RowLayout(vlm, task)
        self._recognition = recognition if recognition.enabled and task == "fdm" else None
        self._sources = list(sources)
        # Rows are numbered after those that do not fit are left out: numbers are dense for sampling.
        fitting = [fitting_rows(source.facts, self._layout, vlm.max_positions) for source in sources]
        self.facts: list[SourceFacts] = [facts for _, facts in fitting]
        """Of each source, without the rows that are too long."""
        self._rows = [rows for rows, _ in fitting]
        counts = [facts.num_rows for facts in self.facts]
        self._starts = np.cumsum([0, *counts])
        self.num_rows = int(self._starts[-1])
        self._action_tokens = np.concatenate([facts.action_tokens_R for facts in self.facts])
        # Quantiles are of all rows that are trained on, so that losses of two runs over the same data compare.
        change = [source.change_mean_R[rows] for source, rows in zip(sources, self._rows, strict=True)]
        self._change_mean = np.concatenate(change)
        parts = np.arange(1, NUM_QUANTILES) / NUM_QUANTILES
        self.change_edges: npt.NDArray[np.float64] = np.quantile(self._change_mean, parts)
        """Mean ``change`` of a row at which each quantile but the first begins, over all rows."""

    def __len__(self) -> int:
        return self.num_rows

    def batch(self, rows: Indices) -> tuple[Tensor, Tensor, Tensor]:
        """Build the batch of these rows, padded on the right to the longest.

        Returns:
            ``ids_BT`` int64, ``is_completion_BT`` bool, ``weight_BT`` float32, which is 1 outside the image that is
            learned.
        """
        source_BN, target_BN, change_BN, action_A = self._gather(rows)
        ids_BT, is_completion_BT, groups = self._layout.fill(
            source_BN, target_BN, action_A, self._action_tokens[rows].astype(np.int64)
        )
        weight_BT = np.ones(ids_BT.shape, np.float32)
        if self._recognition is not None:
            weight_BN = recognition_weights(torch.from_numpy(change_BN), self._recognition).numpy()
            # Where the learned image is depends on the length of the action.
            for members, template in groups:
                weight_BT[members[:, None], template.weighted_at] = weight_BN[members]
        return torch.from_numpy(ids_BT), torch.from_numpy(is_completion_BT), torch.from_numpy(weight_BT)

    def num_completion_tokens(self, rows: Indices) -> int:
        """Count the completion tokens in these rows together; nothing is read."""
        return sum(
            int(count) * self._layout.template(int(length)).num_completion_tokens
            for length, count in zip(*np.unique(self._action_tokens[rows], return_counts=True), strict=True)
        )

    def lengths(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Count the tokens of each of these rows, int64 (B,)."""
        unique, at = np.unique(self._action_tokens[rows], return_inverse=True)
        return np.array([self._layout.length(int(length)) for length in unique], np.int64)[at]

    def source_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Return the number of the source of each of these rows, int64 (B,)."""
        number_B: npt.NDArray[np.int64] = np.searchsorted(self._starts, rows, side="right") - 1
        return number_B

    def change_quantile_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Return which part of all rows, sorted by their mean ``change``, each belongs to: 0 (min) to
        ``NUM_QUANTILES`` - 1. Rows that change equally belong together."""
        return np.searchsorted(self.change_edges, self._change_mean[rows].astype(np.float64), side="left")

    def names(self, rows: Indices) -> list[str]:
        """Return the ``triplet_id`` of these rows."""
        number_B = self.source_of(rows)
        return [
            self._sources[number].names(self._local(number, rows[at : at + 1]))[0]
            for at, number in enumerate(number_B.tolist())
        ]

    def _local(self, number: int, rows: Indices) -> Indices:
        """Convert row numbers to those within one source."""
        local_B: Indices = self._rows[number][rows - self._starts[number]]
        return local_B

    def _gather(
        self, rows: Indices
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        number_B = self.source_of(rows)
        parts = []
        actions: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)] * len(rows)
        # One gather a source and column, not one a row.
        for number in np.unique(number_B).tolist():
            at = np.flatnonzero(number_B == number)
            local = self._local(number, rows[at])
            parts.append((at, *self._sources[number].gather(local)))
            ends = np.cumsum(self._action_tokens[rows[at]])
            for position, action in zip(
                at.tolist(), np.split(self._sources[number].actions(local), ends[:-1]), strict=True
            ):
                actions[position] = action
        # Back into the order of ``rows``, in which sources alternate.
        shape = (len(rows), parts[0][1].shape[1])
        source_BN, target_BN = np.empty(shape, np.int64), np.empty(shape, np.int64)
        change_BN = np.empty(shape, np.float32)
        for at, source, target, change in parts:
            source_BN[at], target_BN[at], change_BN[at] = source, target, change
        return source_BN, target_BN, change_BN, np.concatenate(actions)


def fitting_rows(facts: SourceFacts, layout: RowLayout, max_positions: int) -> tuple[Indices, SourceFacts]:
    """Select the rows that the model has positions for.

    Args:
        facts: Of all rows of a source.
        layout: Of the rows.
        max_positions: Of the model.

    Returns:
        Numbers of the rows, and the facts of these alone.

    Raises:
        InputError: No row fits.
    """
    # Rows of one length fit alike: lengths are few.
    lengths, at = np.unique(facts.action_tokens_R, return_inverse=True)
    # The last token of a row is predicted and not read: it needs no position.
    fits = np.array([layout.length(int(length)) - 1 <= max_positions for length in lengths])
    rows = np.flatnonzero(fits[at])
    num_long = facts.num_rows - len(rows)
    if not len(rows):
        shortest = min(layout.length(int(length)) for length in lengths)
        raise InputError(
            f"{facts.source.folder} has no row to train on: the shortest has {shortest} tokens, the model reads "
            f"{max_positions}"
        )
    left_out: Mapping[str, int] = facts.left_out | ({TOO_LONG: num_long} if num_long else {})
    return rows, SourceFacts(facts.source, len(rows), facts.num_skipped, dict(left_out), facts.action_tokens_R[rows])


def open_tokens(
    sources: Sequence[Source], vlm: UnifiedVLM, task: Task, recognition: RecognitionWeights, *, root: Path, seed: int
) -> TokenSet:
    """Open the rows of all sources in the token cache, which is written where it is missing.

    Args:
        sources: Tables of triplets.
        vlm: The model; of its weights none are used.
        task: ``idm`` or ``fdm``.
        recognition: Weights of the target's image tokens.
        root: Folder of the cache.
        seed: Samples the limits.

    Returns:
        All rows behind one index.

    Raises:
        InputError: It names the source with a missing folder, another schema, no usable row, rows without codes, or
            codes of another codec than the model's.
    """
    reader = SourceReader(vlm, CodecShape(vlm.codec_id, vlm.tokens_per_image, len(vlm.image_rows)), seed)
    tokenizer_digest = reader.tokenizer_digest()
    parts = [open_source(root, source, number, reader, tokenizer_digest) for number, source in enumerate(sources)]
    return TokenSet(parts, vlm, task, recognition)
