"""Exact counts of the bytes of tensors: at the peak of some work, and kept for the backward pass. Free of Ray."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that operations make while it is on: alive now, and at most. What was there before does
    not count; nor what a kernel allocates and frees inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def know(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that are there before."""
        for tensor in tensors:
            self._known.add(tensor.untyped_storage())

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # Operations in place and views return storages that were there: those of their arguments are known.
        self.know(tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes of tensors alive at a time that ``work`` made."""
    counted = PeakBytes()
    with counted:
        work()
    return counted.peak


def saved_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Bytes that ``forward`` keeps for its backward pass, each storage once; parameters and buffers do not count."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # alive until the end, so that no two storages have one address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(sizes.values())
    del result
    return total


class MaskOfBytes(nn.Module):
    """``nn.Dropout`` as a GPU computes it: it keeps a byte an element. On a CPU torch keeps a number of the
    input's precision."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with a share ``p`` of it zero and the rest scaled up, in training."""
        return torch.native_dropout(x, self.p, True)[0] if self.training else x


def with_masks_of_bytes(model: nn.Module) -> None:
    """Replace every dropout of a model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, MaskOfBytes(child.p))
