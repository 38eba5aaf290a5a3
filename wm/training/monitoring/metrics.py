"""Log a run's figures: ``metrics.jsonl``, one line a step, and from it the trackers.

The figures of a window (the steps between two writes) are in its last line. The parts of the ranks are summed in one
exchange a window; nothing else waits for another rank or for the device.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from wm.models.pixels.model import PixelModel
from wm.training.data.batches import NUM_QUANTILES
from wm.training.data.order import SampleOrder, rank_slice
from wm.training.monitoring.records import RankInfo, StepLine, StepResult, WindowFigures, drop_lines_after
from wm.training.monitoring.trackers import Histogram, Trackers, Value
from wm.training.pixels.batches import TrainingSet
from wm.training.planning.flops import mfu, peak_tflops, step_work
from wm.training.recipe import TrainRecipe
from wm.training.step import MicroBatch
from wm.training.trained_models import TrainedModel

METRICS = "metrics.jsonl"
WEIGHT_EDGES: npt.NDArray[np.float64] = np.concatenate(([0.0], 2.0 ** np.arange(-6, 7), [np.inf]))
"""Edges of the bins into which recognition weights are counted: powers of two about their mean, 1."""


class Metrics:
    """Figures of all ranks, exchanged and written once in ``logging.every_steps`` steps."""

    def __init__(
        self,
        rank_info: RankInfo,
        recipe: TrainRecipe,
        first: int,
        *,
        vlm: TrainedModel,
        tokens: TrainingSet,
        order: SampleOrder,
        trackers: Trackers,
    ) -> None:
        """Load the losses of the first ``first`` steps; lines of later ones, from a run that was killed, are dropped.

        Args:
            rank_info: This process.
            recipe: The run.
            first: Steps already done.
            vlm: The prepared model.
            tokens: All rows.
            order: Of the rows.
            trackers: Where the figures go besides.
        """
        self._path = Path(recipe.out) / METRICS
        self.rank_info, self.recipe, self._tokens, self._trackers = rank_info, recipe, tokens, trackers
        self._image_rows = torch.zeros(0) if isinstance(vlm, PixelModel) else vlm.image_rows.cpu()
        self._rows_per_epoch = order.rows_per_epoch
        self._work = None if isinstance(vlm, PixelModel) else step_work(vlm)
        self._peak = peak_tflops(recipe, rank_info.device)
        self._sources = source_names([source.path for source in recipe.triplets])
        # Until the next write: lines of steps, and sums over them.
        self._pending: list[StepLine] = []
        self._window = _Window(self._num_groups, rank_info.device)
        self._since = time.perf_counter()
        self._paused_s = 0.0
        self.paused_s = 0.0
        """Seconds spent inside :meth:`paused`, over all."""
        self.losses: list[float] = []
        # Rank 0 writes the file, so it alone knows the losses from before a resume.
        if rank_info.rank == 0:
            self.losses = [line["loss"] for line in drop_lines_after(self._path, first)]
        _reset_peak(rank_info.device)

    @property
    def _num_groups(self) -> int:
        return len(self._sources) + NUM_QUANTILES

    def add(self, result: StepResult) -> None:
        """Add a finished step."""
        epoch = round(result.step * self.recipe.global_batch_size / self._rows_per_epoch, 4)
        line = StepLine(step=result.step, epoch=epoch, loss=result.loss, lr=result.lr, grad_norm=result.grad_norm)
        self._pending.append(line)
        # Losses by source and by change: of the own rows, until the ranks exchange them.
        rows_P = rank_slice(result.rows, self.rank_info.rank, self.rank_info.size)
        window = self._window
        window.add(self._tokens.source_of(rows_P), result.rows_2P)
        window.add(len(self._sources) + self._tokens.change_quantile_of(rows_P), result.rows_2P)
        # Work: of the global batch, which every rank knows.
        lengths_B = self._tokens.lengths(result.rows)
        window.num_tokens += int(lengths_B.sum())
        window.flops += self._work.flops(lengths_B, result.num_learned) if self._work else float("nan")
        window.micro_batches = result.micro_batches

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave time and memory of the block out of the figures: it is no training."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._paused_s += seconds
            self.paused_s += seconds
            _reset_peak(self.rank_info.device)

    def flush(self) -> list[float]:
        """Average the pending losses over ranks (a collective), append their lines; returns the losses."""
        # 1. One exchange between the ranks a window.
        losses, sums_2G, weights, peak_bytes = self._exchange()
        # 2. Speed, without the time of evaluations.
        now = time.perf_counter()
        seconds = max(now - self._since - self._paused_s, 1e-9)
        self._since, self._paused_s = now, 0.0
        # 3. Lines, of which the last one holds the window's figures.
        if self.rank_info.rank == 0:
            speed = round(len(losses) * self.recipe.global_batch_size / seconds, 1)
            lines: list[StepLine] = [
                {**line, "loss": loss, "samples_per_s": speed} for line, loss in zip(self._pending, losses, strict=True)
            ]
            lines[-1] = {**lines[-1], **self._figures(seconds, sums_2G, weights, peak_bytes)}
            with self._path.open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
            self.losses.extend(losses)
            self._log(lines, weights)
        # 4. A new window.
        self._pending = []
        self._window = _Window(self._num_groups, self.rank_info.device)
        _reset_peak(self.rank_info.device)
        return losses

    def _exchange(self) -> tuple[list[float], npt.NDArray[np.float64], Histogram, int]:
        """Exchange between all ranks losses of the steps, sums of the groups (2, G), weights, and the highest peak of
        memory."""
        # One vector, since every all-reduce waits for the slowest rank.
        device = self.rank_info.device
        weights = self._weights()
        parts = (
            torch.tensor([line["loss"] for line in self._pending], dtype=torch.float64, device=device),
            self._window.sums_2G.flatten(),
            torch.from_numpy(weights.to_vector()).to(device),
        )
        summed = torch.cat(parts)
        dist.all_reduce(summed)
        # A maximum cannot be summed with the rest.
        peak = torch.tensor([_peak_bytes(device)], dtype=torch.float64, device=device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        losses, groups, counted = (part.cpu() for part in torch.split(summed, [len(part) for part in parts]))
        values: list[float] = (losses / self.rank_info.size).tolist()
        return (
            values,
            groups.numpy().reshape(2, -1),
            Histogram.from_vector(WEIGHT_EDGES, counted.numpy()),
            int(peak.item()),
        )

    def _weights(self) -> Histogram:
        """Count the recognition weights of the last step's rows of this rank."""
        values = [np.zeros(0, np.float32)]
        if self.recipe.task == "fdm" and self.recipe.recognition.enabled:
            for ids_BT, is_completion_BT, weight_BT, *_ in self._window.micro_batches:
                is_weighted_BT = is_completion_BT & torch.isin(ids_BT, self._image_rows.to(ids_BT.device))
                values.append(weight_BT[is_weighted_BT].cpu().numpy())
        return Histogram.count(WEIGHT_EDGES, np.concatenate(values))

    def _figures(
        self, seconds: float, sums_2G: npt.NDArray[np.float64], weights: Histogram, peak_bytes: int
    ) -> WindowFigures:
        share = mfu(self._window.flops, seconds, peak=self._peak, num_devices=self.rank_info.size)
        # A source of which the window shows no row has no loss.
        means = [None if count == 0 else round(float(total / count), 6) for total, count in sums_2G.T]
        by_source = dict(zip(self._sources, means, strict=False))
        by_change = {str(number + 1): mean for number, mean in enumerate(means[len(self._sources) :])}
        figures: WindowFigures = {
            "tokens_per_s": round(self._window.num_tokens / seconds, 1),
            "memory_peak_bytes": peak_bytes,
            "loss_by_source": {name: mean for name, mean in by_source.items() if mean is not None},
            "loss_by_change": {name: mean for name, mean in by_change.items() if mean is not None},
        }
        if share is not None:
            figures["mfu"] = round(share, 4)
        if weights.counts.any():
            figures["weight_counts"] = [int(count) for count in weights.counts]
        return figures

    def _log(self, lines: Sequence[StepLine], weights: Histogram) -> None:
        for line in lines:
            values = {"train/loss": line["loss"], "train/lr": line["lr"], "train/grad_norm": line["grad_norm"]}
            self._trackers.log(line["step"], values)
        # Once a window: figures that are means over it.
        last = lines[-1]
        figures: dict[str, Value] = {
            "train/epoch": last["epoch"],
            "speed/samples_per_s": last["samples_per_s"],
            "speed/tokens_per_s": last["tokens_per_s"],
            "memory/peak_gib": last["memory_peak_bytes"] / 2**30,
        }
        if "mfu" in last:
            figures["speed/mfu"] = last["mfu"]
        figures |= {f"loss_by_source/{name}": mean for name, mean in last["loss_by_source"].items()}
        figures |= {f"loss_by_change/quarter_{name}": mean for name, mean in last["loss_by_change"].items()}
        if weights.counts.any():
            figures["recognition_weights"] = weights
        self._trackers.log(last["step"], figures)
        self._trackers.flush()


class _Window:
    """Sums over the steps between two writes; groups G are sources, then quantiles of change."""

    def __init__(self, num_groups: int, device: torch.device) -> None:
        self.sums_2G = torch.zeros(2, num_groups, dtype=torch.float64, device=device)
        self.num_tokens, self.flops = 0, 0.0
        self.micro_batches: Sequence[MicroBatch] = ()

    def add(self, group_P: npt.NDArray[np.int64], rows_2P: Tensor) -> None:
        index = torch.from_numpy(group_P).to(self.sums_2G.device, non_blocking=True)
        self.sums_2G.index_add_(1, index, rows_2P.to(self.sums_2G))


def source_names(paths: Sequence[str]) -> list[str]:
    """Return a short name for each source: its folder's, with a number where two have the same."""
    names: list[str] = []
    for path in paths:
        folder = Path(path)
        # A stage's rows are below its folder, whose name says more.
        name = folder.parent.name if folder.name == "triplets" and folder.parent.name else folder.name
        count = sum(other == name or other.startswith(f"{name}#") for other in names)
        names.append(f"{name}#{count + 1}" if count else name)
    return names


def _peak_bytes(device: torch.device) -> int:
    """Return the peak memory of tensors on a GPU since :func:`_reset_peak`; on a CPU, that of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux gives KiB, macOS bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
