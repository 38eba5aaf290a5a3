"""Stop at a non-finite loss before a checkpoint is taken of it, and report the rows that it came from."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from wm.errors import InputError
from wm.training.monitoring.metrics import source_names
from wm.training.monitoring.records import RankInfo, StepResult
from wm.training.pixels.batches import TrainingSet

_NAMED_ROWS = 4
"""Rows that are named in the message."""


class DivergedError(InputError):
    """Loss or gradient is non-finite; raised on every rank at once."""


class DivergenceCheck:
    """Checks the steps between two exchanges of metrics. Every rank has one and calls it in step."""

    def __init__(self, rank_info: RankInfo, tokens: TrainingSet) -> None:
        self._rank_info, self._tokens = rank_info, tokens
        self._names = source_names([facts.source.path for facts in tokens.facts])
        self._steps: list[StepResult] = []

    def add(self, step_result: StepResult) -> None:
        """Add a finished step."""
        self._steps.append(step_result)

    def check(self, losses: Sequence[float], last_checkpoint: Callable[[], int | None]) -> None:
        """Check the added steps, and forget them; a collective.

        Args:
            losses: Of the global batch, of every added step.
            last_checkpoint: Waits for checkpoints and returns the step of the last complete one; all ranks call it.

        Raises:
            DivergedError: Loss or gradient of a step is non-finite; the first such step is named.
        """
        steps, self._steps = self._steps, []
        # A finite loss with a non-finite gradient counts too: the weights that it leaves are non-finite.
        is_bad = torch.tensor([not math.isfinite(step.grad_norm) for step in steps], device=self._rank_info.device)
        is_bad = is_bad.float()
        # All ranks raise, or none: otherwise the others would wait for this one forever.
        dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)
        for step, loss, bad in zip(steps, losses, is_bad.tolist(), strict=True):
            if bad or not math.isfinite(loss):
                raise DivergedError(self._describe(step, loss, last_checkpoint()))

    def _describe(self, step: StepResult, loss: float, saved: int | None) -> str:
        checkpoint = f"the checkpoint of step {saved} is kept" if saved is not None else "there is no checkpoint yet"
        rate, norm = f"lr {step.lr:.3g}", f"gradient norm {step.grad_norm:.3g}"
        return f"loss is {loss:.6g} at step {step.step} ({rate}, {norm}); {checkpoint}; {self._describe_rows(step)}"

    def _describe_rows(self, step: StepResult) -> str:
        is_bad_B = self._bad_rows(step)
        count, total = int(is_bad_B.sum()), len(step.rows)
        # All or none: the weights are broken, or the gradient alone, and no row stands out.
        if count in (0, total):
            which, rows = f"{'all' if count else 'none'} of the step's {total} triplets have", step.rows
        else:
            which, rows = f"{count} of the step's {total} triplets have", step.rows[is_bad_B]
        # A few names are enough to find the rows.
        examples = rows[:_NAMED_ROWS]
        names = [
            f"{self._names[source]}/{name}"
            for source, name in zip(
                self._tokens.source_of(examples).tolist(), self._tokens.names(examples), strict=True
            )
        ]
        return f"{which} a non-finite likelihood: {', '.join(names)}{', …' if len(rows) > _NAMED_ROWS else ''}"

    def _bad_rows(self, step: StepResult) -> npt.NDArray[np.bool_]:
        """Find the rows of the global batch with a non-finite likelihood, bool (B,); a collective."""
        # Each rank knows its own rows; the sum over ranks is the global batch.
        flags = torch.zeros(len(step.rows), device=self._rank_info.device)
        share = len(step.rows) // self._rank_info.size
        own = flags[self._rank_info.rank * share : (self._rank_info.rank + 1) * share]
        own.copy_(~torch.isfinite(step.rows_2P[0]))
        dist.all_reduce(flags)
        return flags.bool().cpu().numpy()
