"""Run a decoder of the Llama kind on caches of our own: prefixes once, then new tokens of every candidate.

Shape suffixes of :mod:`wm.sampling.cache`, and: X = R x S token rows, S new tokens a row, A heads, H hidden width.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass

import torch
from torch import Tensor

from wm.models.vlm import UnifiedVLM
from wm.sampling.adapted import LowRank, Matrix
from wm.sampling.cache import Prefix, Rows, new_rows
from wm.sampling.kernels.attention import attend_causal, attend_shared, attend_step, attend_tails, can_flash
from wm.sampling.kernels.linear import Linear, Linears, Packs, linear, plain_linear
from wm.sampling.kernels.self_test import FUSED, compare_fused_attention
from wm.sampling.llama_layers import Attend, LlamaLayers
from wm.sampling.model_runner import ModelRunner, PrefixCache, RowCache, StepInput, Stepping
from wm.sampling.weights_view import DecoderView, decoder_view

logger = logging.getLogger(__name__)


class LlamaRunner(ModelRunner):
    """Runs a model by products and kernels of our own; see :class:`~wm.sampling.model_runner.ModelRunner`.

    On a CPU in float32 or bfloat16 all matrices are copied into a quicker layout.

    Args:
        vlm: The model, as it is now.
        rows: How many token rows a pass usually has (a hint).
        merge: Merge adapters into copies of the weights that they change; without, low-rank ones are applied beside
            the weights, and nothing else is copied.
        beside: A runner whose packed copies are used where the weights are the very same tensors.
        stepping: How images are decoded; what fails is replaced by the next simpler way, with a warning in the log.
        kernels: Whether Triton's kernels may be used on a GPU.

    Raises:
        InputError: For a decoder that has no view as a Llama (:func:`~wm.sampling.weights_view.find_unsupported`).
    """

    can_draft = True

    def __init__(
        self,
        vlm: UnifiedVLM,
        *,
        rows: int = 8,
        merge: bool = True,
        beside: "LlamaRunner | None" = None,
        stepping: Stepping = "auto",
        kernels: bool = True,
    ) -> None:
        automatic: Stepping = "graph" if vlm.device.type == "cuda" else "plain"
        super().__init__(vlm, automatic if stepping == "auto" else stepping)
        self.view: DecoderView = decoder_view(vlm, merge=merge)
        self._packs: Packs = Packs(None if beside is None else beside._packs)
        self.layers = LlamaLayers(self.view, rows, self._packs)
        # A family with an image head of its own brings it; else the head's rows of the codes are one, packed.
        own = self.view.image_head
        self._vocabulary = plain_linear(self.view.head)
        self._head = None
        if own is None:
            self._head = linear(_select_rows(self.view.head, vlm.image_rows, self._packs), rows, self._packs)
        self._image_head: Callable[[Tensor], Tensor] = self._head or own or self.logits
        self.kernels = kernels

    def matrices(self) -> Iterator[tuple[str, Linear | Linears]]:
        """Iterate over (name, matrix) of a step's products: project, out, gate, up, down or head."""
        for layer in self.layers.layers:
            yield from (("project", layer.project), ("out", layer.out))
            yield from (("gate", layer.gate), ("up", layer.up), ("down", layer.down))
        if self._head is not None:
            yield "head", self._head

    def weights(self) -> Iterator[Tensor]:
        """Iterate over the tensors of weights, the model's own among them; some come more than once."""
        return _iterate_tensors((self.view, self.layers.layers, self._head, self._vocabulary))

    @property
    def vocabulary_size(self) -> int:
        """Number of vocabulary ids that can be read."""
        return len(self.view.embedding)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.view.embedding.dtype

    def prefill(self, prefixes: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
        """Read prefixes, padded to one length, and return also the hidden states (P, H) of their last tokens."""
        lengths = tuple(map(len, prefixes))
        longest = max(lengths)
        # Padded on the right with the last token: attention is causal, so that padding changes nothing before it.
        ids_PT = torch.tensor([[*ids, *[ids[-1]] * (longest - len(ids))] for ids in prefixes], device=self.device)
        keys: list[Tensor] = []
        values: list[Tensor] = []

        def keep(key_PTGD: Tensor, value_PTGD: Tensor) -> None:
            # Positions side by side in memory: a product of queries with all keys reads them twice as fast that way.
            keys.append(key_PTGD.permute(0, 2, 3, 1).contiguous().transpose(2, 3))
            values.append(value_PTGD.transpose(1, 2).contiguous())

        hidden_PTH = self._causal(ids_PT, keep)
        last_P = torch.tensor([length - 1 for length in lengths], device=self.device)
        each_P = torch.arange(len(lengths), device=self.device)
        return Prefix(tuple(keys), tuple(values), lengths), hidden_PTH[each_P, last_P]

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Compute the hidden states (B, T, H) of complete sequences; nothing is cached."""
        return self._causal(ids_BT, lambda key, value: None)

    def _causal(self, ids_PT: Tensor, keep: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Compute hidden states (P, T, H) and pass each layer's keys and values (P, T, G, D) to ``keep``."""

        def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(*ids_PT.shape, *new.shape[1:]) for new in (query, key, value))
            keep(key, value)
            return attend_causal(query, key, value).reshape(ids_PT.numel(), -1)

        num_rows, length = ids_PT.shape
        positions_X = torch.arange(length, device=self.device).repeat(num_rows)
        return self.layers.run(ids_PT.flatten(), self.layers.rotations(positions_X, length), attend).view(
            num_rows, length, -1
        )

    def reserve(self, num_rows: int, capacity: int) -> Rows:
        """Reserve empty caches for ``capacity`` tokens of each of ``num_rows`` candidates.

        Args:
            num_rows: Candidates of all prefixes, R.
            capacity: Tokens of each, C.
        """
        return new_rows(self.view, num_rows, capacity)

    def extend(
        self, ids_RS: Tensor, prefix: PrefixCache, rows: RowCache, positions: int | Tensor, filled: int
    ) -> Tensor:
        """Compute the hidden states (R, S, H) of the next S tokens of every row, and store their keys and values.

        Args:
            ids_RS: Vocabulary ids.
            prefix: What the rows follow; R is a multiple of P.
            rows: Caches, extended in place.
            positions: Position of the first new token in its row, the same for all, or int64 (R,).
            filled: Length of the longest row after this, at most what was reserved.
        """
        if isinstance(positions, int) and ids_RS.shape[1] == 1:
            return self._step(ids_RS[:, 0], *_own(prefix, rows), positions)[:, None]
        return self._block(ids_RS, *_own(prefix, rows), positions, filled)

    def _step(self, ids_R: Tensor, prefix: Prefix, rows: Rows, position: int) -> Tensor:
        """Compute hidden states (R, H) of one token at the same position of every row: no mask, and few calls."""
        attend = self._attend_step(prefix, rows, position)
        return self.layers.run(ids_R, self._step_rotation(prefix, len(ids_R), position), attend)

    def step(self, inputs: Sequence[StepInput]) -> Tensor:
        """Compute hidden states (X, H) of one token of every row of several batches, in their order.

        Weights are read once for all of them; attention goes batch by batch, so that each may have a position, prefixes
        and rows of its own.
        """
        parts = [(ids, *_own(prefix, rows), position) for ids, prefix, rows, position in inputs]
        if len(parts) == 1:
            return self._step(*parts[0])
        counts = [len(ids) for ids, *_ in parts]
        rotations = [self._step_rotation(prefix, len(ids), position) for ids, prefix, _, position in parts]
        attends = [self._attend_step(prefix, rows, position) for _, prefix, rows, position in parts]
        # A batch without padding has one rotation for all its rows: expanded, so that rows can be joined.
        shape = (-1, *rotations[0][0].shape[1:])
        cosine, sine = (
            torch.cat([part[side].expand(count, *shape[1:]) for part, count in zip(rotations, counts, strict=True)])
            for side in (0, 1)
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            tensors = zip(*(torch.split_with_sizes(tensor, counts) for tensor in (query, key, value)), strict=True)
            return torch.cat(
                [attend_batch(layer, *three) for attend_batch, three in zip(attends, tensors, strict=True)]
            )

        return self.layers.run(torch.cat([ids for ids, *_ in parts]), (cosine, sine), attend)

    def _attend_step(self, prefix: Prefix, rows: Rows, position: int) -> Attend:
        """Build the attention of one new token a row, which also stores its keys and values."""
        padding_PT = prefix.padding()
        is_one_prefix = prefix.count == 1 and self.view.num_heads == self.view.num_groups

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            # Stored before attention: a token looks at itself too.
            own_keys[:, :, position], own_values[:, :, position] = key, value
            own = own_keys[:, :, : position + 1], own_values[:, :, : position + 1]
            if is_one_prefix:
                return attend_step(query, prefix.keys[layer][0], prefix.values[layer][0], *own)
            shared = prefix.keys[layer], prefix.values[layer]
            mixed = attend_shared(query[:, None], *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=None)
            return mixed.reshape(len(query), -1)

        return attend

    def _step_rotation(self, prefix: Prefix, num_rows: int, position: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine (R, 1, D) at each row's position, or (1, 1, D) where all have the same."""
        # One angle for all rows broadcasts, which spares a gather in every layer.
        if not prefix.is_padded:
            position = prefix.lengths[0] + position
            return self.layers.rotations(slice(position, position + 1), position + 1)
        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        return self.layers.rotations(starts_R + position, max(prefix.lengths) + position + 1)

    def _block(self, ids_RS: Tensor, prefix: Prefix, rows: Rows, positions: int | Tensor, filled: int) -> Tensor:
        """Do as :meth:`extend`, for any number of tokens and any positions."""
        num_rows, num_new = ids_RS.shape
        steps_S = torch.arange(num_new, device=self.device)
        first_R = torch.as_tensor(positions, device=self.device).expand(num_rows)
        positions_RS = first_R[:, None] + steps_S
        # Rows may be at different positions (speculative decoding), so each has a mask of its own.
        own_hidden_RSF = torch.arange(filled, device=self.device) > positions_RS[..., None]
        padding_PT = prefix.padding()
        row_R1 = torch.arange(num_rows, device=self.device)[:, None]
        one_group_a_head = self.view.num_heads == self.view.num_groups
        # Rows that begin right after their prefixes need no mask of their own: fused kernels then take them.
        are_tails = (
            isinstance(positions, int)
            and (positions, filled) == (0, num_new)
            and padding_PT is None
            and one_group_a_head
        )

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (new.view(num_rows, num_new, *new.shape[1:]) for new in (query, key, value))
            own_keys, own_values = rows.keys[layer], rows.values[layer]
            own_keys.transpose(1, 2)[row_R1, positions_RS] = key
            own_values.transpose(1, 2)[row_R1, positions_RS] = value
            shared = prefix.keys[layer], prefix.values[layer]
            if are_tails and can_flash(query) and self._fused_agrees():
                return attend_tails(query, key, value, *shared).reshape(num_rows * num_new, -1)
            own = own_keys[:, :, :filled], own_values[:, :, :filled]
            mixed = attend_shared(query, *shared, *own, prefix_hidden_PT=padding_PT, own_hidden=own_hidden_RSF)
            return mixed.reshape(num_rows * num_new, -1)

        starts_R = torch.tensor(prefix.lengths, device=self.device).repeat_interleave(num_rows // prefix.count)
        positions_X = (positions_RS + starts_R[:, None]).flatten()
        rotation = self.layers.rotations(positions_X, max(prefix.lengths) + filled)
        return self.layers.run(ids_RS.flatten(), rotation, attend).view(num_rows, num_new, -1)

    def _fused_agrees(self) -> bool:
        """Return whether the GPU's fused attention gives what plain products give; compared once."""
        if FUSED not in self.self_tests:
            test = compare_fused_attention(self.view.num_heads, self.view.head_width, self.dtype, self.device)
            self.self_tests[FUSED] = test
            if not test.agrees:
                text = test.detail or f"off by {test.error:.3g} standard deviations, at most {test.limit:g}"
                logger.warning("%s failed (%s); continuing with plain products", FUSED, text)
        return self.self_tests[FUSED].agrees

    def image_logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, codes) of the image codes alone."""
        return self._image_head(hidden_XH)

    def logits(self, hidden_XH: Tensor) -> Tensor:
        """Compute the logits (X, vocabulary) of all tokens."""
        return self._vocabulary(hidden_XH)


def _own(prefix: PrefixCache, rows: RowCache) -> tuple[Prefix, Rows]:
    """Narrow caches to this runner's own."""
    if not (isinstance(prefix, Prefix) and isinstance(rows, Rows)):
        raise TypeError("expected caches of this runner")
    return prefix, rows


def _iterate_tensors(value: object) -> Iterator[Tensor]:
    """Iterate over the tensors in dataclasses, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        yield from _iterate_tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _iterate_tensors(part)


def _select_rows(head: Matrix, rows: Tensor, packs: Packs) -> Matrix:
    """Select rows of the head."""
    bias, low_rank = head.bias, head.low_rank
    return Matrix(
        packs.rows_of(head.weight, rows),
        None if bias is None else bias[rows],
        None if low_rank is None else LowRank(low_rank.down, low_rank.up[:, rows]),
    )
