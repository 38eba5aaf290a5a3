"""Run any decoder by transformers' own forward and cache: slower than the fast runner, right by construction.

Prefixes of one length are one batch, so that nothing is ever padded or masked here; the rows of a prefix hold copies
of its keys and values, which the planned budget of tokens does not count: a batch that does not fit is halved as any
other. Rows of a batch are at one position, so that drafts cannot be checked. PEFT's own modules apply adapters.

Shape suffixes of :mod:`wm.sampling.model_runner`.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.adapted import bare
from wm.sampling.model_runner import ModelRunner, PrefixCache, RowCache, StepInput

_HEAD_RULES = ("final_logit_softcapping", "logit_scale", "logits_scaling")
"""Keys of configurations that change logits behind the head, which :meth:`UnifiedVLM.head` leaves out."""
_STATES = ("linear_attention", "mamba", "conv", "recurrent")
"""Kinds of layers that hold a state in place of keys and values: a step could not be repeated."""


@dataclass(frozen=True)
class _Part:
    """Sequences of one length: their numbers among the batch's, and transformers' cache of them, in this order."""

    members: tuple[int, ...]
    length: int
    """Tokens of each one's prefix."""
    cache: DynamicCache

    def select(self, which: Sequence[int]) -> DynamicCache:
        """Return a cache of these (indices into ``members``), in this order: a copy."""
        cache = copy.copy(self.cache)
        index = torch.tensor(which)
        # Layers replace their tensors and never write into them, so that a copy may share what it does not select.
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.reorder_cache(index)
        return cache


@dataclass(frozen=True)
class Prefixes:
    """Prefixes that were read, those of one length together."""

    parts: tuple[_Part, ...]

    @property
    def count(self) -> int:
        """Number of prefixes, P."""
        return sum(len(part.members) for part in self.parts)

    def select(self, which: Sequence[int]) -> "Prefixes":
        """Return these prefixes alone, in this order."""
        return Prefixes(_select(self.parts, which))

    def spread(self, num_rows: int) -> tuple[_Part, ...]:
        """Copy the caches for ``num_rows`` rows, a multiple of P: those of a prefix are neighbours."""
        # transformers attends row by row: each needs a cache of its own.
        each = num_rows // self.count
        return _select(self.parts, [row // each for row in range(num_rows)])


@dataclass
class PrefixedRows:
    """Rows with their prefix; no caches before their first token, which says what they follow."""

    num_rows: int
    parts: tuple[_Part, ...] | None = None

    def select(self, rows: Tensor) -> "PrefixedRows":
        """Return these rows (int64) alone, in this order."""
        indices = rows.tolist()
        return PrefixedRows(len(indices), None if self.parts is None else _select(self.parts, indices))


def _select(parts: Sequence[_Part], which: Sequence[int]) -> tuple[_Part, ...]:
    """Select sequences by their numbers, repeated ones too; they are numbered anew in this order."""
    where = {member: (part, index) for part in parts for index, member in enumerate(part.members)}
    # Parts keep their lengths; what leaves a part empty drops it.
    selected = []
    for part in parts:
        chosen = [(number, where[old][1]) for number, old in enumerate(which) if where[old][0] is part]
        if chosen:
            members, indices = zip(*chosen, strict=True)
            selected.append(_Part(members, part.length, part.select(indices)))
    return tuple(selected)


class TransformersRunner(ModelRunner):
    """Runs a model by its family's own ``body`` and ``head``; see :class:`~wm.sampling.model_runner.ModelRunner`.

    Args:
        vlm: The model. It is evaluated as it is at each pass: weights are neither copied nor merged.

    Raises:
        InputError: For a decoder whose logits or caches follow rules that are not known here.
    """

    def __init__(self, vlm: UnifiedVLM) -> None:
        _check_rules(vlm)
        super().__init__(vlm, "plain")
        self._vlm = vlm

    @property
    def vocabulary_size(self) -> int:
        """Number of vocabulary ids that can be read."""
        words = len(bare(self._vlm.inner.get_input_embeddings()).weight)
        # A family whose codes have embeddings of their own numbers them behind the text.
        return max(words, int(self.image_rows.max()) + 1)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        weight: Tensor = next(self._vlm.module.parameters())
        return weight.dtype

    def weights(self) -> Iterator[Tensor]:
        """Iterate over the model's own tensors; there are no others."""
        return chain(self._vlm.module.parameters(), self._vlm.module.buffers())

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> tuple[Prefixes, Tensor]:
        """Read prefixes, those of one length in one pass."""
        # Nothing is padded: a mask, or rotary positions behind padding, would be one more thing to get right.
        by_length: dict[int, list[int]] = {}
        for number, ids in enumerate(prefixes):
            by_length.setdefault(len(ids), []).append(number)
        parts, last_states, order = [], [], list[int]()
        for length, members in by_length.items():
            ids_BT = torch.tensor([list(prefixes[number]) for number in members], device=self.device)
            # Without a configuration, so that every layer keeps all tokens: a window's mask hides what is out of
            # sight, and a step that failed can be taken back.
            cache = DynamicCache()
            last_states.append(self._body(ids_BT, cache, 0)[:, -1])
            parts.append(_Part(tuple(members), length, cache))
            order += members
        # Back to the caller's order.
        last_PH = torch.cat(last_states)
        return Prefixes(tuple(parts)), torch.empty_like(last_PH).index_copy_(0, self._index(order), last_PH)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, H) of complete sequences; nothing is cached."""
        return self._body(ids_BT, None, 0)

    def reserve(self, num_rows: int, capacity: int) -> PrefixedRows:
        """Build empty caches, which grow as they are filled.

        Args:
            num_rows: Rows of all prefixes, R.
            capacity: Not used.
        """
        return PrefixedRows(num_rows)

    def extend(
        self, ids_RS: Tensor, prefix: PrefixCache, rows: RowCache, positions: int | Tensor, filled: int
    ) -> Tensor:
        """Compute the hidden states (R, S, H) of the next S tokens of every row, all at one position.

        Args:
            ids_RS: Vocabulary ids.
            prefix: What the rows follow; R is a multiple of P.
            rows: Caches, extended in place.
            positions: Position of the first new token, the same for all rows.
            filled: Not used: caches grow by themselves.
        """
        if not (isinstance(prefix, Prefixes) and isinstance(rows, PrefixedRows) and isinstance(positions, int)):
            raise TypeError("expected caches of this runner, and one position for all rows")
        # The rows' first token says what they follow.
        if rows.parts is None:
            rows.parts = prefix.spread(rows.num_rows)
        states, order = [], list[int]()
        for part in rows.parts:
            start = part.length + positions
            # Tokens of a pass that failed, in this part or another, are forgotten: it is repeated.
            _truncate(part.cache, start)
            states.append(self._body(ids_RS[self._index(part.members)], part.cache, start))
            order += part.members
        hidden_RSH = torch.cat(states)
        return torch.empty_like(hidden_RSH).index_copy_(0, self._index(order), hidden_RSH)

    def step(self, inputs: Sequence[StepInput]) -> Tensor:
        """Compute the hidden states (X, H) of one token of every row, batch by batch."""
        return torch.cat(
            [self.extend(ids[:, None], prefix, rows, at, at + 1)[:, 0] for ids, prefix, rows, at in inputs]
        )

    def image_logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, codes) of the image codes alone."""
        with _evaluating(self._vlm.module):
            return self._vlm.head(hidden_XH, self.image_rows)

    def logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, V) of the text's head."""
        with _evaluating(self._vlm.module):
            logits_XV: Tensor = self._vlm.inner.lm_head(hidden_XH)
        return logits_XV

    def _body(self, ids_BT: Tensor, cache: DynamicCache | None, start: int) -> Tensor:
        positions_BT = torch.arange(start, start + ids_BT.shape[1], device=self.device).expand(ids_BT.shape)
        with _evaluating(self._vlm.module):
            return self._vlm.body(ids_BT, cache, positions_BT)

    def _index(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self.device)


def _check_rules(vlm: UnifiedVLM) -> None:
    """Raise :class:`InputError` for rules that a pass of body and head, over keys and values, would leave out."""
    name, config = type(vlm.inner).__name__, getattr(vlm.inner, "config", None)
    if config is None:
        raise InputError(f"{name} cannot be sampled from: it is no model of transformers")
    config = config.get_text_config()
    # Training leaves them out as well, so that a model trained here would not know them.
    for rule in _HEAD_RULES:
        value = getattr(config, rule, None)
        if value not in (None, 0, 1):
            raise InputError(f"{name} cannot be sampled from: {rule} = {value!r} changes its logits behind the head")
    for kind in getattr(config, "layer_types", None) or ():
        if any(word in kind for word in _STATES):
            raise InputError(f"{name} cannot be sampled from: layers of the kind {kind!r} hold no keys and values")


def _truncate(cache: DynamicCache, length: int) -> None:
    """Drop all tokens of a cache from ``length`` on."""
    # Layer by layer: a pass that failed half-way has extended only the first ones.
    for layer in cache.layers:
        if layer.get_seq_length() > length:
            layer.keys, layer.values = layer.keys[..., :length, :], layer.values[..., :length, :]


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Leave out dropout and the like while a model that is being trained is sampled from."""
    # By module, as some may be in evaluation mode on purpose.
    training = [part for part in module.modules() if part.training] if module.training else []
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True
