"""Find which stages wait for which, and which may run side by side. Runs nothing and reads no file.

A stage waits for every stage whose folder its recipe reads: the plan's recipes are the graph, but for what
:attr:`jobs.bootstrap.plan.Stage.after` adds.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.annotate.recipe import AnnotateRecipe
from jobs.bootstrap.plan import Stage
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.shared.cluster_size import ClusterSize, fit_to_cluster, read_cluster_size
from jobs.shared.ray_session import is_private, num_logical_cpus
from wm.config import Recipe
from wm.files.mirror import to_path
from wm.paths import path_key
from wm.training import TrainRecipe

_SIZABLE = (TrainRecipe, AnnotateRecipe, EvaluateRecipe)


@dataclass(frozen=True)
class Demand:
    """What a stage takes while it runs."""

    cpus: float
    """Logical CPUs, as Ray counts them."""
    gpus: int
    """Complete GPUs."""
    names_device: bool = False
    """Whether it names its GPU itself, so that none can be assigned to it."""


@dataclass(frozen=True)
class Graph:
    """Stages with what each waits for and takes."""

    stages: Sequence[Stage]
    """In the order of the plan."""
    inputs: Mapping[str, frozenset[str]]
    """Names of the stages that a stage waits for, by its name."""
    demands: Mapping[str, Demand]
    """By name; none is more than ``capacity``."""
    capacity: Demand
    """What this machine, or the joined cluster, has."""
    max_stages: int
    """Stages at a time."""

    def list_startable(self, finished: AbstractSet[str], running: AbstractSet[str]) -> list[Stage]:
        """List the stages to start now, in the order of the plan.

        Args:
            finished: Names of the stages that are complete.
            running: Names of those that run.

        Returns:
            Stages that wait for nothing, as many as there is room for beside those that run.
        """
        # What runs has its share already.
        startable: list[Stage] = []
        cpus = sum(self.demands[name].cpus for name in running)
        gpus = sum(self.demands[name].gpus for name in running)
        for stage in self.stages:
            if len(running) + len(startable) >= self.max_stages:
                break
            if stage.name in finished or stage.name in running or self.inputs[stage.name] - finished:
                continue
            # A large stage that does not fit yet is overtaken by a small one that nothing keeps waiting.
            demand = self.demands[stage.name]
            if cpus + demand.cpus <= self.capacity.cpus and gpus + demand.gpus <= self.capacity.gpus:
                startable.append(stage)
                cpus, gpus = cpus + demand.cpus, gpus + demand.gpus
        return startable


def fit_stages(stages: Sequence[Stage]) -> tuple[list[Stage], ClusterSize | None]:
    """Let stages take what the joined cluster has, where their recipes leave numbers of workers out.

    Args:
        stages: In the order of the plan.

    Returns:
        The stages, and the size of the cluster; None: no cluster is joined, and nothing was changed.
    """
    if is_private():
        return list(stages), None
    # Once for all stages: each would connect to the cluster for it.
    size = read_cluster_size()
    return [
        replace(stage, recipe=fit_to_cluster(stage.recipe, size)) if isinstance(stage.recipe, _SIZABLE) else stage
        for stage in stages
    ], size


def build_graph(stages: Sequence[Stage], out: Path, max_stages: int, size: ClusterSize | None = None) -> Graph:
    """Build the graph of a plan for this machine, or the joined cluster.

    Args:
        stages: In the order of the plan.
        out: Folder of the run.
        max_stages: Stages at a time.
        size: Of the cluster that is joined; None: of this machine.

    Returns:
        The graph; each stage by itself fits the machine.
    """
    demands_by_name = {stage.name: find_demand(stage.recipe) for stage in stages}
    num_gpus = 0
    if any(demand.gpus or demand.names_device for demand in demands_by_name.values()):
        # On a cluster a stage that names a device uses that of this machine, which Ray does not count.
        num_gpus = _count_gpus() if size is None else max(1, int(size.gpus))
    capacity = Demand(num_logical_cpus() if size is None else size.cpus, num_gpus)
    demands = {}
    for name, demand in demands_by_name.items():
        # A stage that names its device may use any: no other GPU stage runs beside it. What is too large for the
        # machine was refused before, or runs on a cluster: there Ray itself lets workers wait.
        gpus = num_gpus if demand.names_device else min(demand.gpus, num_gpus)
        demands[name] = Demand(min(demand.cpus, capacity.cpus), gpus, demand.names_device)
    return Graph(stages, find_inputs(stages, out), demands, capacity, max_stages)


def find_inputs(stages: Sequence[Stage], out: Path) -> dict[str, frozenset[str]]:
    """Find the stages that each stage waits for, mostly those whose folders it reads.

    Args:
        stages: In the order of the plan.
        out: Folder of the run.

    Returns:
        Names by the waiting stage's name.
    """
    # The plan is in an order in which each reads only what stages before it write.
    inputs, before = {}, list[str]()
    for stage in stages:
        names = set(stage.after)
        for path in list_input_paths(stage.recipe):
            # Below the run's folder, the first part is the stage's name.
            parts = Path(to_path(path)).parts
            if parts[: len(out.parts)] != out.parts:
                continue
            # The run's own folder: the report reads all there is.
            names |= set(before if len(parts) == len(out.parts) else {parts[len(out.parts)]})
        inputs[stage.name] = frozenset(names & set(before))
        before.append(stage.name)
    return inputs


def list_input_paths(recipe: Recipe) -> Iterator[str]:
    """List what the input keys of a recipe, and of the tables in it, name.

    Args:
        recipe: Of any command.

    Yields:
        Paths; keys without a value are left out.
    """
    for name, field in type(recipe).model_fields.items():
        # A table has no mark of its own; its keys have.
        mark = path_key(field.metadata)
        yield from _list_paths(getattr(recipe, name), mark is not None and not mark.is_output)


def _list_paths(value: object, is_input: bool) -> Iterator[str]:
    if isinstance(value, Recipe):
        yield from list_input_paths(value)
    elif isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _list_paths(item, is_input)
    elif is_input and isinstance(value, str) and value:
        yield value


def find_demand(recipe: Recipe) -> Demand:
    """Find the CPUs and GPUs that a stage takes at most, as its recipe asks Ray or torch for them.

    Args:
        recipe: Of the stage.
    """
    # As each of these two asks Ray: a worker has one CPU, an actor a share of one.
    if isinstance(recipe, TrainRecipe):
        return Demand(recipe.num_ranks, recipe.num_ranks * recipe.resources.use_gpu)
    if isinstance(recipe, AnnotateRecipe):
        actors = recipe.resources
        annotators = max(actors.num_annotators, actors.max_annotators)
        decoders = max(actors.num_decoders, actors.max_decoders)
        cpus = decoders * actors.cpus_per_decoder + annotators * actors.cpus_per_annotator
        return Demand(cpus, math.ceil(annotators * actors.gpus_per_annotator))
    # The other commands have a device or a number of workers, or neither.
    resources = getattr(recipe, "resources", None)
    device = str(getattr(resources, "device", "cpu"))
    return Demand(max(1, int(getattr(resources, "num_workers", 1))), 0, names_device=device.startswith("cuda"))


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


class GpuPool:
    """GPUs of this machine, each of which one stage has at a time.

    Two private Ray sessions do not know of each other: both would take the first GPU.
    """

    def __init__(self, num_gpus: int) -> None:
        # Where the user has chosen some, those are numbered anew: their own names stay.
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = [name.strip() for name in visible.split(",") if name.strip()]
        self._free = (names or [str(number) for number in range(num_gpus)])[:num_gpus]

    def take(self, demand: Demand) -> list[str]:
        """Take the GPUs of a stage; one that names its device itself, or joins a cluster, gets none assigned."""
        if demand.names_device or not is_private():
            return []
        names, self._free = self._free[: demand.gpus], self._free[demand.gpus :]
        return names

    def give_back(self, names: Sequence[str]) -> None:
        """Give back what :meth:`take` returned."""
        self._free = [*self._free, *names]
