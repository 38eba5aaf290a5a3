"""Where models run: a device that is not there is told before any work."""

import torch

from wm.errors import InputError


def need_device(name: str) -> None:
    """:class:`InputError` unless torch can put a tensor there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # no such name; a kind this torch was built without
        raise InputError(f"device = {name!r}: {str(error).splitlines()[0]:.200}") from error
