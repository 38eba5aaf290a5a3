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
    """Measure the bytes that ``forward`` keeps for its backward pass, each storage once, without parameters and
    buffers."""
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    # Alive until the end, so that no two storages have one address.
    tensors: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            tensors.append(tensor)
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
