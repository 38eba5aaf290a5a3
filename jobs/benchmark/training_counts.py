"""Count bytes of tensors exactly: at the peak of some work, and kept for the backward pass. Free of Ray."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from wm.training.planning.memory import LiveBytes


def peak_bytes(work: Callable[[], object]) -> int:
    """Measure the peak, in bytes, of the tensors that ``work`` allocates."""
    counter = LiveBytes()
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
