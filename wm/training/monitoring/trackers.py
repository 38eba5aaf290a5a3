"""Send a run's figures to TensorBoard, MLflow or Weights & Biases, besides the run's own files. Rank 0 alone does.

TensorBoard's files are written by tensorboardX, which needs nothing but protobuf; the other two are imported when a
recipe asks for them. ``metrics.jsonl`` remains the record of a run: trackers follow it, and after a resume each shows
a step once.
"""

import importlib.util
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from wm.errors import InputError
from wm.files.mirror import to_uri
from wm.images import Pixels
from wm.paths import check_tracking_uri
from wm.training.recipe import TrainRecipe

_log = logging.getLogger(__name__)
TENSORBOARD = "tensorboard"
NOTES = _MLFLOW_RUN, _WANDB_RUN = ".mlflow_run", ".wandb_run"
"""Below ``out``: the runs of MLflow and W&B, which a resumed run continues."""
_MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Tracker → module, which is also what pip calls it."""


@dataclass(frozen=True)
class Histogram:
    """Counts (bins,) of values between ``edges`` (bins + 1), the last of which may be infinite."""

    edges: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    total: float
    """Sum of the values."""
    squares: float
    """Sum of their squares."""

    @classmethod
    def count(cls, edges: npt.NDArray[np.float64], values: npt.NDArray[np.float32]) -> Self:
        """Count values.

        Args:
            edges: Of the bins, (bins + 1,), ascending.
            values: (n,); those below the first edge do not count.
        """
        # In double precision, since sums are of many values of about 1.
        exact = values.astype(np.float64)
        counts = np.histogram(exact, bins=edges)[0].astype(np.float64)
        return cls(edges, counts, float(exact.sum()), float(np.square(exact).sum()))

    def to_vector(self) -> npt.NDArray[np.float64]:
        """Return one vector, to be summed over workers."""
        return np.concatenate((self.counts, [self.total, self.squares]))

    @classmethod
    def from_vector(cls, edges: npt.NDArray[np.float64], vector: npt.NDArray[np.float64]) -> Self:
        """Restore a histogram.

        Args:
            edges: Of the bins, (bins + 1,).
            vector: (bins + 2,), a sum over workers of :meth:`to_vector`.
        """
        return cls(edges, vector[:-2], float(vector[-2]), float(vector[-1]))

    def limits(self) -> tuple[float, float]:
        """Return the outermost edges of the bins that are not empty; infinity becomes a finite number."""
        filled = np.flatnonzero(self.counts)
        return float(self.edges[filled[0]]), float(self.finite_edges[filled[-1] + 1])

    @property
    def finite_edges(self) -> npt.NDArray[np.float64]:
        """Return the edges with a finite number for infinity, which trackers cannot show."""
        edges: npt.NDArray[np.float64] = np.minimum(self.edges, 2 * self.edges[-2])
        return edges


Value = float | str | Histogram | Pixels
"""What can be logged; pixels (H, W, 3) are uint8 RGB."""


class Tracker(Protocol):
    """A destination of figures."""

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log figures.

        Args:
            step: Steps done.
            values: By name; kinds that the tracker does not know are left out.
        """
        ...

    def flush(self) -> None:
        """Make visible to others what has been logged."""
        ...

    def close(self) -> None:
        """Finish: nothing more is logged."""
        ...


class Trackers:
    """All trackers of a run as one. One that fails (a server that is gone) is reported and left out: no training ends
    for it."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log figures by name after ``step`` steps."""
        self._call_each(lambda tracker: tracker.log(step, values))

    def flush(self) -> None:
        """Make visible to others what has been logged."""
        self._call_each(lambda tracker: tracker.flush())

    def close(self) -> None:
        """Finish: nothing more is logged."""
        self._call_each(lambda tracker: tracker.close())

    def _call_each(self, method: Callable[[Tracker], None]) -> None:
        # Any exception: a tracker is somebody else's code and network, of no importance to the model.
        for tracker in tuple(self._trackers):
            try:
                method(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                name, kind = type(tracker).__name__, type(error).__name__
                _log.warning("%s is no longer logged to (%s: %s); metrics.jsonl is", name, kind, error)


def check_trackers(names: Sequence[str]) -> None:
    """Check that figures can be logged, before any work.

    Args:
        names: The recipe's ``logging.trackers``.

    Raises:
        InputError: A package is missing, or figures would be lost at the tracker's address.
    """
    for name in names:
        module = _MODULES[name]
        if importlib.util.find_spec(module) is None:
            raise InputError(
                f"logging.trackers = {name!r}: the package {module} is not installed (pip install {module})"
            )
        if name == "mlflow":
            # A folder in the working directory of a submitted Ray job is lost with the session.
            try:
                check_tracking_uri("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI") or "mlruns")
            except ValueError as error:
                raise InputError(f"logging.trackers = 'mlflow': {error}") from error


def open_trackers(recipe: TrainRecipe, first: int) -> Trackers:
    """Open the trackers of a run.

    Args:
        recipe: Names the trackers.
        first: Steps that a resumed run has done.
    """
    # Again on the worker, which may be on another node than the driver.
    names = recipe.logging.trackers
    check_trackers(names)
    classes: dict[str, Callable[[TrainRecipe, int], Tracker]]
    classes = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    return Trackers([classes[name](recipe, first) for name in names])


class TensorBoard:
    """Event files in ``out/tensorboard``; those of steps that a resumed run repeats are hidden."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        from tensorboardX import SummaryWriter

        folder = Path(recipe.out) / TENSORBOARD
        resumed = folder.is_dir()
        # A file's name holds the second alone: two starts within one second would write into the same file.
        suffix = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(str(folder), purge_step=first + 1 if resumed else None, filename_suffix=suffix)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log figures, histograms, images and texts."""
        for name, value in values.items():
            if isinstance(value, Histogram):
                low, high = value.limits()
                # tensorboardX's own histogram would need all values; counts are enough.
                sums = (sum(value.counts.tolist()), value.total, value.squares)
                edges = value.finite_edges[1:].tolist()
                self._writer.add_histogram_raw(name, low, high, *sums, edges, value.counts.tolist(), step)
            elif isinstance(value, np.ndarray):
                self._writer.add_image(name, value, step, dataformats="HWC")
            elif isinstance(value, str):
                self._writer.add_text(name, value, step)
            else:
                self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write to the disk."""
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class MLflow:
    """A run at ``MLFLOW_TRACKING_URI``, continued after a resume: steps that it has are not logged again."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        note = Path(recipe.out) / _MLFLOW_RUN
        # A resumed run logs into the same MLflow run.
        if note.is_file():
            self._run = note.read_text().strip()
            history = self._client.get_metric_history(self._run, "train/loss")
            self._last_step = max((metric.step for metric in history), default=0)
            return
        self._last_step = 0
        # MLflow's low-level client does not read this variable by itself.
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "wm")
        experiment = self._client.get_experiment_by_name(title)
        number = experiment.experiment_id if experiment else self._client.create_experiment(title)
        self._run = self._client.create_run(number, run_name=to_uri(recipe.out)).info.run_id
        for name, setting in recipe.model_dump(mode="json").items():
            # A table's keys are parameters of their own, by which MLflow can filter runs.
            items = (
                {f"{name}.{key}": item for key, item in setting.items()}
                if isinstance(setting, dict)
                else {name: setting}
            )
            for key, item in items.items():
                self._client.log_param(self._run, key, str(item)[:500])
        # Noted last: a run that was not set up completely is made again.
        note.write_text(self._run)

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log figures as metrics, images and texts as artefacts; MLflow has no histograms."""
        for name, value in values.items():
            if isinstance(value, np.ndarray):
                self._client.log_image(self._run, value, artifact_file=f"{name}/step-{step:06d}.png")
            elif isinstance(value, str):
                self._client.log_text(self._run, value, f"{name}/step-{step:06d}.txt")
            elif not isinstance(value, Histogram) and step > self._last_step:
                self._client.log_metric(self._run, name.replace("#", "-"), value, step=step)

    def flush(self) -> None:
        """Do nothing: figures are sent at once."""

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)


class WandB:
    """A run in ``WANDB_PROJECT``, continued after a resume: W&B refuses steps that it has."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        import wandb

        note = Path(recipe.out) / _WANDB_RUN
        if not note.is_file():
            note.write_text(uuid.uuid4().hex[:16])
        self._wandb: Any = wandb
        # The same id after a resume: W&B continues its run.
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "wm"),
            id=note.read_text().strip(),
            name=to_uri(recipe.out),
            config=recipe.model_dump(mode="json"),
            dir=recipe.out,
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log figures, histograms, images and texts."""
        self._run.log({name: self._convert(value) for name, value in values.items()}, step=step)

    def _convert(self, value: Value) -> object:
        if isinstance(value, Histogram):
            return self._wandb.Histogram(np_histogram=(value.counts, value.finite_edges))
        return self._wandb.Image(value) if isinstance(value, np.ndarray) else value

    def flush(self) -> None:
        """Do nothing: W&B sends by itself."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()
