"""Read how much the joined cluster has, so that a stage takes what it can use where its recipe leaves that out.

Not known here: which stages there are, and what each takes.
"""

from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from jobs.shared import ray_session


@dataclass(frozen=True)
class ClusterSize:
    """CPUs and GPUs of all nodes, those that an autoscaler may still add among them."""

    cpus: float
    gpus: float


class Sizable(Protocol):
    """A recipe whose numbers of workers may be left out."""

    @property
    def is_sized(self) -> bool:
        """Return whether it names all of them."""

    def sized_for(self, cpus: float, gpus: float) -> Self:
        """Return it with those that it leaves out.

        Args:
            cpus: Of the cluster.
            gpus: Of the cluster.
        """


SizableT = TypeVar("SizableT", bound=Sizable)


def fit_to_cluster(recipe: SizableT, size: ClusterSize | None = None) -> SizableT:
    """Return a recipe whose numbers of workers, where it leaves them out, are those that the cluster can hold.

    Args:
        recipe: Of a stage. In a session of this machine alone its defaults stay.
        size: Of the cluster; None: it is asked.
    """
    if ray_session.is_private() or recipe.is_sized:
        return recipe
    # Asked once for several stages, where the caller has done so.
    size = size or read_cluster_size()
    return recipe.sized_for(size.cpus, size.gpus)


def read_cluster_size() -> ClusterSize:
    """Ask the cluster that ``RAY_ADDRESS`` names for its size; this process is connected for no longer than before."""
    import ray

    was_connected = ray.is_initialized()
    ray_session.connect()
    try:
        present = ray.cluster_resources()
        sizes = {name: max(present.get(name, 0.0), _max_of_autoscaler(name)) for name in ("CPU", "GPU")}
    finally:
        # The caller may fork processes, of which each connects by itself.
        if not was_connected:
            ray_session.shutdown()
    return ClusterSize(sizes["CPU"], sizes["GPU"])


def _max_of_autoscaler(resource: str) -> float:
    """Return what there is of a resource once the autoscaler has added all nodes; 0 where there is no autoscaler."""
    from ray._private.state import state

    config = state.get_cluster_config()
    groups = [] if config is None else config.node_group_configs
    # A group without a limit has a negative one: what is there now counts alone.
    return float(sum(group.resources.get(resource, 0.0) * max(0, group.max_count) for group in groups))
