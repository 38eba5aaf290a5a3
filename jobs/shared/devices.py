"""Say where models run: the settings that recipes embed as a table ``resources``, and a check before any work.

Knows nothing of which models those are.
"""

from typing import Literal

import torch
from pydantic import Field

from wm.config import Recipe
from wm.dynamics import BaseSharing
from wm.errors import InputError

DType = Literal["float32", "bfloat16", "float16"]


class DeviceSettings(Recipe):
    """Where a model runs, and how many rows at a time."""

    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    batch_size: int | None = Field(default=None, ge=1)
    """Rows in a forward pass; left out: as many as the memory allows."""


class RolesDeviceSettings(DeviceSettings):
    """Where a forward and an inverse model run, and how they hold their weights."""

    dtype: DType = "float32"
    """Type of their weights; bfloat16 halves the memory."""
    base_sharing: BaseSharing = "merged"
    """merged: each model has weights of its own. shared: adapters of one base are applied beside one copy of its
    weights, for a single GPU: about half the memory, a little slower, the same up to rounding."""


def check_device(name: str) -> None:
    """Check that torch can put a tensor on a device.

    Args:
        name: Such as ``cpu`` or ``cuda:1``.

    Raises:
        InputError: There is no such device, or torch was built without its kind.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device = {name!r}: {str(error).splitlines()[0]:.200}") from error
