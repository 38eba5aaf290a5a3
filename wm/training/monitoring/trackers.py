"""Where a run's figures go besides its own files: TensorBoard, MLflow, Weights & Biases. Rank 0 alone has boards.

TensorBoard's files are written by tensorboardX, which needs nothing but protobuf; the other two are imported when a
recipe asks for them. ``metrics.jsonl`` remains what a run is known by: boards follow it, and after a resume each shows
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
from wm.images import Pixels
from wm.paths import check_tracking_uri
from wm.training.recipe import TrainRecipe

_log = logging.getLogger(__name__)
TENSORBOARD = "tensorboard"
_MLFLOW_RUN, _WANDB_RUN = ".mlflow_run", ".wandb_run"
_MODULES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb"}
"""Place → module, which is also what pip calls it."""


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
        """Count values from the first edge on."""
        exact = values.astype(np.float64)
        counts = np.histogram(exact, bins=edges)[0].astype(np.float64)
        return cls(edges, counts, float(exact.sum()), float(np.square(exact).sum()))

    def as_vector(self) -> npt.NDArray[np.float64]:
        """Return one vector, to be summed over workers."""
        return np.concatenate((self.counts, [self.total, self.squares]))

    @classmethod
    def of_vector(cls, edges: npt.NDArray[np.float64], vector: npt.NDArray[np.float64]) -> Self:
        """Restore what :meth:`as_vector` gave, summed."""
        return cls(edges, vector[:-2], float(vector[-2]), float(vector[-1]))

    def limits(self) -> tuple[float, float]:
        """Return the outermost edges of the bins that hold something; a finite one in the place of infinity."""
        filled = np.flatnonzero(self.counts)
        low, high = self.edges[filled[0]], self.edges[filled[-1] + 1]
        return float(low), float(high if np.isfinite(high) else 2 * self.edges[-2])


class Board(Protocol):
    """One place for figures. ``step``: steps done."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log figures of a step."""
        ...

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """Log a histogram; a tracker without histograms leaves it out."""
        ...

    def picture(self, step: int, name: str, pixels_HWC: Pixels) -> None:
        """Log an image, uint8 RGB."""
        ...

    def text(self, step: int, name: str, text: str) -> None:
        """Log a few lines."""
        ...

    def flush(self) -> None:
        """Let others see what has been logged."""
        ...

    def close(self) -> None:
        """Finish: nothing more is logged."""
        ...


class Boards:
    """All of a run's boards as one :class:`Board`. One that fails (a server that is gone) is told of and left out:
    no training ends for it."""

    def __init__(self, boards: Sequence[Board] = ()) -> None:
        self._boards = list(boards)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.scalars(step, values))

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.histogram(step, name, histogram))

    def picture(self, step: int, name: str, pixels_HWC: Pixels) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.picture(step, name, pixels_HWC))

    def text(self, step: int, name: str, text: str) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.text(step, name, text))

    def flush(self) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.flush())

    def close(self) -> None:
        """See :class:`Board`."""
        self._each(lambda board: board.close())

    def _each(self, tell: Callable[[Board], None]) -> None:
        for board in tuple(self._boards):
            try:
                tell(board)
            except Exception as error:
                self._boards.remove(board)
                place, kind = type(board).__name__, type(error).__name__
                _log.warning("%s is told no more (%s: %s); metrics.jsonl goes on", place, kind, error)


def need_packages(places: Sequence[str]) -> None:
    """Raise :class:`InputError` that names the package that is missing for one of ``log_to``, or an address of a
    tracker at which the figures would be lost."""
    for place in places:
        module = _MODULES[place]
        if importlib.util.find_spec(module) is None:
            raise InputError(f"log_to = {place!r}: the package {module} is not installed (pip install {module})")
        if place == "mlflow":
            _check_mlflow_uri()


def _check_mlflow_uri() -> None:
    """Refuse a tracking address in the working directory of a submitted Ray job: it would be lost with the session."""
    try:
        check_tracking_uri("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI") or "mlruns")
    except ValueError as error:
        raise InputError(f"log_to = 'mlflow': {error}") from error


def open_boards(recipe: TrainRecipe, first: int) -> Boards:
    """Open the trackers that the recipe names, for a run of which ``first`` steps are done."""
    need_packages(recipe.log_to)
    opened: dict[str, Any] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}
    return Boards([opened[place](recipe, first) for place in recipe.log_to])


class TensorBoard:
    """Event files in ``out/tensorboard``; those of steps that a resumed run does again are hidden."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        from tensorboardX import SummaryWriter

        folder = Path(recipe.out) / TENSORBOARD
        resumed = folder.is_dir()
        # A file's name holds the second alone: a start in the second of another would write over what that one told.
        own = f".{uuid.uuid4().hex[:8]}"
        self._writer = SummaryWriter(str(folder), purge_step=first + 1 if resumed else None, filename_suffix=own)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Board`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """See :class:`Board`."""
        low, high = histogram.limits()
        limits = np.minimum(histogram.edges[1:], 2 * histogram.edges[-2]).tolist()
        counts = histogram.counts.tolist()
        self._writer.add_histogram_raw(
            name, low, high, sum(counts), histogram.total, histogram.squares, limits, counts, step
        )

    def picture(self, step: int, name: str, pixels_HWC: Pixels) -> None:
        """See :class:`Board`."""
        self._writer.add_image(name, pixels_HWC, step, dataformats="HWC")

    def text(self, step: int, name: str, text: str) -> None:
        """See :class:`Board`."""
        self._writer.add_text(name, text, step)

    def flush(self) -> None:
        """See :class:`Board`."""
        self._writer.flush()

    def close(self) -> None:
        """See :class:`Board`."""
        self._writer.close()


class MLflow:
    """A run at ``MLFLOW_TRACKING_URI``, gone on with after a resume: steps that it has are not told again."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        from mlflow.tracking import MlflowClient

        self._client: Any = MlflowClient()
        note = Path(recipe.out) / _MLFLOW_RUN
        if note.is_file():
            self._run = note.read_text().strip()
            told = self._client.get_metric_history(self._run, "train/loss")
            self._told = max((metric.step for metric in told), default=0)
            return
        self._told = 0
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "wm")
        experiment = self._client.get_experiment_by_name(name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(name)
        self._run = self._client.create_run(number, run_name=str(recipe.out)).info.run_id
        for key, value in recipe.model_dump(mode="json").items():
            self._client.log_param(self._run, key, str(value)[:500])
        note.write_text(self._run)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Board`."""
        if step > self._told:
            for name, value in values.items():
                self._client.log_metric(self._run, name.replace("#", "-"), value, step=step)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """MLflow has no histograms."""

    def picture(self, step: int, name: str, pixels_HWC: Pixels) -> None:
        """See :class:`Board`."""
        self._client.log_image(self._run, pixels_HWC, artifact_file=f"{name}/step-{step:06d}.png")

    def text(self, step: int, name: str, text: str) -> None:
        """See :class:`Board`."""
        self._client.log_text(self._run, text, f"{name}/step-{step:06d}.txt")

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """See :class:`Board`."""
        self._client.set_terminated(self._run)


class WandB:
    """A run in ``WANDB_PROJECT``, gone on with after a resume: W&B refuses steps that it has."""

    def __init__(self, recipe: TrainRecipe, first: int) -> None:
        import wandb

        note = Path(recipe.out) / _WANDB_RUN
        if not note.is_file():
            note.write_text(uuid.uuid4().hex[:16])
        self._wandb: Any = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "wm"),
            id=note.read_text().strip(),
            name=str(recipe.out),
            config=recipe.model_dump(mode="json"),
            dir=recipe.out,
            resume="allow",
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :class:`Board`."""
        self._run.log(dict(values), step=step)

    def histogram(self, step: int, name: str, histogram: Histogram) -> None:
        """See :class:`Board`."""
        edges = np.minimum(histogram.edges, 2 * histogram.edges[-2])
        self._run.log({name: self._wandb.Histogram(np_histogram=(histogram.counts, edges))}, step=step)

    def picture(self, step: int, name: str, pixels_HWC: Pixels) -> None:
        """See :class:`Board`."""
        self._run.log({name: self._wandb.Image(pixels_HWC)}, step=step)

    def text(self, step: int, name: str, text: str) -> None:
        """See :class:`Board`."""
        self._run.log({name: text}, step=step)

    def flush(self) -> None:
        """W&B sends by itself."""

    def close(self) -> None:
        """See :class:`Board`."""
        self._run.finish()
