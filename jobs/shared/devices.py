"""Check the device that a recipe names, before any work. Knows nothing of models."""

import torch

from wm.errors import InputError


def need_device(name: str) -> None:
    """Raise :class:`InputError` unless torch can put a tensor on the device ``name`` (``cpu``, ``cuda:1``)."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such name; a kind this torch was built without
        raise InputError(f"device = {name!r}: {str(error).splitlines()[0]:.200}") from error
