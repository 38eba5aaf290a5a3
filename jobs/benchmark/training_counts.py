"""Count the bytes of tensors exactly: at the peak of some work, and kept for the backward pass. Free of Ray."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the bytes of storages that operations make while it is on: ``alive`` now, and at their ``peak``.

    Storages from before do not count; nor does what a kernel allocates and frees inside.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.peak = 0
        self._counted: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        function: Callable[..., object],
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = function(*args, **(kwargs or {}))
        # Operations in place and views return storages that exist already: those of their arguments.
        for storage in _iterate_storages((args, kwargs)):
            self._counted.add(storage)
        for storage in _iterate_storages(result):
            if storage not in self._counted:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._counted.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        # Freed with the last tensor over it, not with the first.
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.alive -= size


def _iterate_storages(values: object) -> Iterable[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def peak_bytes(work: Callable[[], object]) -> int:
    """Count the bytes of tensors that ``work`` makes, where most of them are alive."""
    counter = PeakBytes()
    with counter:
        work()
    return counter.peak


def saved_bytes(forward: Callable[[], object], model: nn.Module) -> int:
    """Count the bytes that a forward pass keeps for its backward pass.

    Args:
        forward: The pass; its result is kept until the count is done.
        model: Its parameters and buffers do not count.

    Returns:
        Bytes of storages, each counted once.
    """
    # Parameters are there with and without a backward pass.
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # until the end, so that no two storages have one address

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = forward()
    total = sum(sizes.values())
    del result
    return total


class ByteMask(nn.Module):
    """``nn.Dropout`` as a GPU computes it, which keeps a byte an element.

    On a CPU torch keeps a number of the input's precision.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with a share ``p`` of it zero and the rest scaled up, in training."""
        return torch.native_dropout(x, self.p, True)[0] if self.training else x


def use_byte_masks(model: nn.Module) -> None:
    """Replace every dropout of a model by a :class:`ByteMask`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, ByteMask(child.p))
