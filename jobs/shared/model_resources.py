"""Define the resources of jobs whose Ray tasks load models of either role. Not known here: what they do."""

from pydantic import Field

from jobs.shared.devices import DType
from wm.config import Recipe
from wm.dynamics import BaseSharing


class ModelResources(Recipe):
    """Where the models run, and how much at a time."""

    num_workers: int = Field(default=0, ge=0)
    """Ray tasks at a time; 0: in this process, without Ray. Left out, a cluster that is joined gives one a CPU, unless
    device names another."""
    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    dtype: DType = "float32"
    """Type of the models' weights; bfloat16 halves the memory."""
    batch_size: int = Field(default=64, ge=1)
    """Rows in a forward pass."""
    base_sharing: BaseSharing = "merged"
    """merged: every model has weights of its own while it is loaded. shared: adapters of one base are applied beside
    one copy of its weights: less memory and loading, a little slower, the same up to rounding."""
