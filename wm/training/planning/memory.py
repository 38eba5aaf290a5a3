"""Estimate the memory of a training step on one device, without weights and without that device.

The step itself is run on torch's ``meta`` device, where tensors have shapes and no numbers, and every storage that it
makes is counted while it lives: what the layers keep is what they would keep. Attention is counted as the kernels do
it that keep no scores (FlashAttention, arXiv 2205.14135). What DeepSpeed holds is added by formula (Rajbhandari et al.,
arXiv 1910.02054).
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wm.models.vlm import UnifiedVLM
from wm.training.data.prompt_batches import Template
from wm.training.kernels.autograd import Context
from wm.training.loss import completion_losses
from wm.training.planning.state_memory import state_memory
from wm.training.recipe import TrainRecipe


@dataclass(frozen=True)
class StepMemory:
    """Bytes of tensors on one device. The parts are each at its largest, which is not at the same moment for all;
    ``peak`` is the most at any moment."""

    weights: int
    """Frozen weights, and buffers."""
    trained: int
    """Trained weights: the adapter, or in full fine-tuning the model."""
    optimizer: int
    """AdamW's moments and DeepSpeed's fp32 copy of what is trained."""
    gradients: int
    communication: int
    """Buffers in which gradients are exchanged, and what ZeRO-3 has gathered."""
    activations: int
    """What the layers keep from the forward for the backward pass, of one micro-batch."""
    logits: int
    """What the head and the loss take beyond that."""
    peak: int

    def as_dict(self) -> dict[str, int]:
        """Return plain values."""
        return asdict(self)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts, while it is on, bytes of the storages that operations allocate, ``live`` now and ``peak``; on any device.

    What existed before does not count, nor what a kernel allocates and frees inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: OpOverload[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Run an operation and count its results; torch calls it."""
        # transformers asks whether positions follow one another: ours do.
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], Tensor) and args[0].is_meta:
            return True
        result = func(*args, **(kwargs or {}))
        # Operations in place and views return storages of their arguments, which are no new ones.
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._known.add(leaf.untyped_storage())
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage() not in self._known:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


@contextmanager
def _without_scores() -> Iterator[None]:
    """Replace attention by one that keeps queries, keys, values, its result and a number a row, as fused kernels do.

    The function itself is exchanged, where all that transformers' layers call finds it, also in a backward pass that
    computes layers again: torch's modes for functions do not reach there.
    """
    former = F.scaled_dot_product_attention

    def counted(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        if not query.is_meta:
            return former(query, key, value, *args, **options)
        result: Tensor = _Attention.apply(query, key, value)  # type: ignore[no-untyped-call]
        return result

    # For all that calls it, until the block ends.
    F.scaled_dot_product_attention = counted
    try:
        yield
    finally:
        F.scaled_dot_product_attention = former


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        # In the memory layout of the kernels.
        result = query.new_empty((rows, length, heads, value.shape[-1])).transpose(1, 2)
        ctx.save_for_backward(query, key, value, result, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


def step_memory(vlm: UnifiedVLM, recipe: TrainRecipe, template: Template, *, stage: int) -> StepMemory:
    """Estimate the memory of one rank's step. Under ``precision = "autocast"`` activations are counted in float32, more
    than they are.

    Args:
        vlm: Prepared for training (:func:`wm.training.adapters.prepare`), on the meta device; it is left in
            the recipe's precision.
        recipe: The run.
        template: Layout of every row of the micro-batches.
        stage: Of ZeRO.

    Returns:
        Bytes, by part and at the peak.
    """
    state = state_memory(vlm.module, recipe, stage=stage)
    trained = [parameter for parameter in vlm.module.parameters() if parameter.requires_grad]
    usage = _run(vlm, recipe, template, trained, shards=1 if stage < 2 else recipe.num_ranks)
    return StepMemory(
        weights=state.weights,
        trained=state.trained,
        optimizer=state.optimizer,
        gradients=state.gradients,
        communication=state.communication,
        activations=usage.activations,
        logits=usage.logits,
        peak=state.constant + max(usage.peak, state.update),
    )


@dataclass
class _Usage:
    activations: int = 0
    logits: int = 0
    peak: int = 0
    """Gradients included."""


def _run(
    vlm: UnifiedVLM, recipe: TrainRecipe, template: Template, trained: list[nn.Parameter], *, shards: int
) -> _Usage:
    """Run one micro-batch, or two where gradients are accumulated; of gradients one of so many ``shards`` is kept."""
    usage = _Usage()
    is_completion_BT = torch.from_numpy(template.is_completion_T).repeat(recipe.rows_per_pass, 1)
    # Shapes alone: which tokens are learned decides sizes, so that mask is a real tensor.
    with torch.device("meta"):
        ids_BT = torch.zeros(is_completion_BT.shape, dtype=torch.int64)
        weight_BT = torch.ones(is_completion_BT.shape)
    live = LiveBytes()
    before = 0

    # Called when the layers are done: what is live then is kept for the backward pass.
    def note(*_: object) -> None:
        usage.activations = live.live - before
        usage.peak, live.peak = max(usage.peak, live.peak), live.live

    with _sharded(trained, shards), _hooked(vlm.decoder, note), _without_scores(), live:
        # From the second pass on the gradients of the first are live too: two passes show the peak.
        for _ in range(min(2, recipe.accumulation_steps)):
            before = live.live
            loss = completion_losses(vlm, ids_BT, is_completion_BT, weight_BT, 1.0)[0]
            usage.logits = live.peak - before - usage.activations
            loss.backward()  # type: ignore[no-untyped-call]
            del loss
    usage.peak = max(usage.peak, live.peak)
    # Several estimates are made of one model.
    for parameter in trained:
        parameter.grad = None
    return usage


@contextmanager
def _hooked(module: nn.Module, note: Callable[..., None]) -> Iterator[None]:
    handle = module.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _sharded(trained: list[nn.Parameter], shards: int) -> Iterator[None]:
    """Keep a share of each gradient: ZeRO from stage 2 on hands the rest to other ranks."""
    shares: dict[Tensor, Tensor] = {}

    def keep_share(parameter: Tensor) -> None:
        if parameter not in shares:
            shares[parameter] = parameter.new_empty(-(-parameter.numel() // shards))
        parameter.grad = None

    hooked = trained if shards > 1 else []
    handles = [weight.register_post_accumulate_grad_hook(keep_share) for weight in hooked]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
