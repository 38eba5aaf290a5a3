"""Build batches for a model that reads pixels: its processor's own inputs, and which tokens are learned.

The chat's text and tokens are those that scoring makes (:mod:`wm.models.pixels.chats`).

Shape suffixes: B requested rows, R rows of a source, T tokens of the longest of them.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wm.errors import InputError
from wm.models.pixels.chats import AnswerLength, complete_chat, measure_answers, process, special_tokens
from wm.models.pixels.model import PixelModel
from wm.training.data.batches import NUM_QUANTILES, TOO_LONG, TokenSet
from wm.training.data.order import Indices
from wm.training.data.sources import Source
from wm.training.data.tokenized import EMPTY, RESERVED, SourceFacts, check_has_rows
from wm.training.pixels.store import PairStore, PairSurvey, open_pairs

TrainingSet: TypeAlias = "TokenSet | PairSet"
"""Rows of a run, as codes or as images."""
_TEXTS_AT_ONCE = 4096


class PairSet:
    """Training rows of all sources, numbered from 0: those of the first source by ``triplet_id``, and so on.

    It has the methods of :class:`wm.training.data.batches.TokenSet`.
    """

    def __init__(self, stores: Sequence[PairStore], model: PixelModel) -> None:
        """Index the rows; those that cannot be learned are left out and counted in ``facts``.

        Args:
            stores: The sources.
            model: Of its weights none are used.

        Raises:
            InputError: A source has no usable row, or an image of a size that the processor does not take.
        """
        self._stores, self._processor, self._prefix = list(stores), model.processor, model.prefix
        measured = [measure_rows(store, model) for store in stores]
        # Rows are numbered after those that cannot be learned are left out: numbers are dense for sampling.
        self.facts: list[SourceFacts] = [part.facts for part in measured]
        """Of each source, without the rows that are left out; ``action_tokens_R`` counts the end token too."""
        self._rows = [part.rows for part in measured]
        self._lengths = np.concatenate([part.lengths_R for part in measured])
        self._starts = np.cumsum([0, *(facts.num_rows for facts in self.facts)])
        self.num_rows = int(self._starts[-1])
        self._num_learned = np.concatenate([facts.action_tokens_R for facts in self.facts])
        # Quantiles are of all rows that are trained on, so that losses of two runs over the same data compare.
        change = [store.change_R[rows] for store, rows in zip(stores, self._rows, strict=True)]
        self._change = np.concatenate(change)
        parts = np.arange(1, NUM_QUANTILES) / NUM_QUANTILES
        self.change_edges: npt.NDArray[np.float64] = np.quantile(self._change, parts)
        """Change of a row (:func:`wm.training.pixels.store.pixel_change`) where each quantile but the first begins."""

    def __len__(self) -> int:
        return self.num_rows

    def batch(self, rows: Indices) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Build the batch of these rows, padded on the right to the longest.

        Args:
            rows: Their numbers, B of them.

        Returns:
            ``ids_BT`` int64; ``is_completion_BT`` bool, the answer's tokens and the end; ``weight_BT`` float32, all 1;
            and what else the processor gives, the attention mask among it.
        """
        tokenizer, texts, images = self._processor.tokenizer, [], []
        for number, row in zip(self.source_of(rows).tolist(), rows.tolist(), strict=True):
            store, local = self._stores[number], self._local(number, row)
            texts.append(complete_chat(tokenizer, self._prefix, store.actions[local]))
            images.append(store.images(local))
        # As scoring does: the very text, padded on the right.
        inputs = process(self._processor, texts, images, padding_side="right")
        ids_BT = inputs.pop("input_ids")
        # The learned tokens are the last ones before the padding.
        end_B1 = inputs["attention_mask"].sum(dim=1, keepdim=True)
        start_B1 = end_B1 - torch.from_numpy(self._num_learned[rows].astype(np.int64))[:, None]
        position_T = torch.arange(ids_BT.shape[1])
        is_completion_BT = (position_T >= start_B1) & (position_T < end_B1)
        return ids_BT, is_completion_BT, torch.ones(ids_BT.shape), inputs

    def num_completion_tokens(self, rows: Indices) -> int:
        """Count the completion tokens in these rows together; nothing is read.

        Args:
            rows: Their numbers.
        """
        return int(self._num_learned[rows].sum())

    def lengths(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Count the tokens of each of these rows, those of its images among them, int64 (B,).

        Args:
            rows: Their numbers.
        """
        lengths_B: npt.NDArray[np.int64] = self._lengths[rows]
        return lengths_B

    def source_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Return the number of the source of each of these rows, int64 (B,).

        Args:
            rows: Their numbers.
        """
        number_B: npt.NDArray[np.int64] = np.searchsorted(self._starts, rows, side="right") - 1
        return number_B

    def change_quantile_of(self, rows: Indices) -> npt.NDArray[np.int64]:
        """Return which part of all rows, sorted by how much they change, each belongs to: 0 (min) to
        ``NUM_QUANTILES`` - 1.

        Args:
            rows: Their numbers.
        """
        return np.searchsorted(self.change_edges, self._change[rows].astype(np.float64), side="left")

    def names(self, rows: Indices) -> list[str]:
        """Return the ``triplet_id`` of these rows.

        Args:
            rows: Their numbers.
        """
        numbers = self.source_of(rows).tolist()
        return [
            self._stores[number].names[self._local(number, row)]
            for number, row in zip(numbers, rows.tolist(), strict=True)
        ]

    def _local(self, number: int, row: int) -> int:
        return int(self._rows[number][row - self._starts[number]])


def open_pair_set(sources: Sequence[Source], model: PixelModel, *, root: Path, seed: int) -> PairSet:
    """Open the rows of all sources in the cache of images, which is written where it is missing.

    Args:
        sources: Tables of triplets.
        model: Of its weights none are used.
        root: Folder of the cache.
        seed: Samples the limits.

    Returns:
        All rows behind one index.

    Raises:
        InputError: It names the source with a missing folder, another schema, no usable row, or rows without images.
    """
    return PairSet([open_pairs(root, source, number, seed) for number, source in enumerate(sources)], model)


class MeasuredRows(NamedTuple):
    """The rows of a source that can be learned."""

    rows: Indices
    """Their numbers."""
    facts: SourceFacts
    lengths_R: npt.NDArray[np.int64]  # noqa: N815
    """Tokens of each."""


def measure_rows(store: PairStore | PairSurvey, model: PixelModel) -> MeasuredRows:
    """Select the rows that can be learned, and count the tokens of each.

    Args:
        store: A source.
        model: Of its weights none are used.

    Raises:
        InputError: No row is left, or the processor does not take an image of some size.
    """
    tokenizer, left_out = model.processor.tokenizer, Counter[str]()
    # 1. Actions, each distinct one once.
    special = special_tokens(tokenizer)
    texts = list(dict.fromkeys(store.actions))
    is_usable = {text: bool(text.strip()) and not any(token in text for token in special) for text in texts}
    measured: dict[str, AnswerLength] = {}
    usable = [text for text in texts if is_usable[text]]
    for begin in range(0, len(usable), _TEXTS_AT_ONCE):
        batch = usable[begin : begin + _TEXTS_AT_ONCE]
        measured |= zip(batch, measure_answers(tokenizer, model.prefix, batch), strict=True)
    # 2. Images, each pair of sizes once.
    sizes_R4 = store.sizes_R4
    pairs, at_R = np.unique(sizes_R4, axis=0, return_inverse=True)
    prompts = [_prompt_length(store, model, pair, int((at_R == number).sum())) for number, pair in enumerate(pairs)]
    # 3. Rows that have both, within the positions of the model.
    rows, learned, lengths = [], [], []
    for row, (text, pair) in enumerate(zip(store.actions, at_R.ravel().tolist(), strict=True)):
        if not is_usable[text]:
            left_out[RESERVED if text.strip() else EMPTY] += 1
            continue
        length = prompts[pair] + measured[text].num_added
        # As in scoring: the processor's inputs hold the end too.
        if length > model.max_positions:
            left_out[TOO_LONG] += 1
            continue
        rows.append(row)
        learned.append(measured[text].num_tokens)
        lengths.append(length)
    check_has_rows(store.source, len(rows), left_out)
    facts = SourceFacts(store.source, len(rows), store.num_skipped, dict(left_out), np.array(learned, np.int32))
    return MeasuredRows(np.array(rows, np.int64), facts, np.array(lengths, np.int64))


def _prompt_length(store: PairStore | PairSurvey, model: PixelModel, sizes_4: npt.NDArray[np.int32], count: int) -> int:
    """Count the tokens of the chat with two images of these sizes, by the processor itself."""
    width, height, target_width, target_height = sizes_4.tolist()
    blank = [np.zeros((high, wide, 3), np.uint8) for high, wide in ((height, width), (target_height, target_width))]
    try:
        inputs = process(model.processor, [model.prefix], [blank], padding_side="right")
    except InputError as error:
        raise InputError(f"{store.source.folder}, {count} triplets: {error} (processor of {model.folder})") from error
    return int(inputs["input_ids"].shape[1])
