"""Stop at a non-finite loss before a checkpoint is taken of it, and report the rows that it came from."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from wm.errors import InputError
from wm.training.data.batches import TokenSet
from wm.training.monitoring.metrics import Done, World, source_names

_NAMED = 4
"""Rows that are told one by one."""


class DivergedError(InputError):
    """Loss or gradient is non-finite; raised on every rank at once."""


class Finite:
    """Looks at the steps between two exchanges of metrics. Every rank has one and calls it in step."""

    def __init__(self, world: World, tokens: TokenSet) -> None:
        self._world, self._tokens = world, tokens
        self._names = source_names([facts.source.path for facts in tokens.facts])
        self._steps: list[Done] = []

    def add(self, done: Done) -> None:
        """Note a finished step."""
        self._steps.append(done)

    def need(self, losses: Sequence[float], last_checkpoint: Callable[[], int | None]) -> None:
        """Raise :class:`DivergedError` at the first noted step whose loss or gradient is non-finite; else forget them.

        ``losses``: of the global batch, of every noted step. A finite loss with a non-finite gradient counts:
        the weights that it leaves are non-finite too. ``last_checkpoint``: waits for checkpoints and gives the step of
        the last whole one; all ranks call it.
        """
        steps, self._steps = self._steps, []
        is_bad = torch.tensor([not math.isfinite(step.grad_norm) for step in steps], device=self._world.device)
        is_bad = is_bad.float()
        dist.all_reduce(is_bad, op=dist.ReduceOp.MAX)
        for step, loss, bad in zip(steps, losses, is_bad.tolist(), strict=True):
            if bad or not math.isfinite(loss):
                raise DivergedError(self._tell(step, loss, last_checkpoint()))

    def _tell(self, step: Done, loss: float, saved: int | None) -> str:
        checkpoint = f"the checkpoint of step {saved} is kept" if saved is not None else "there is no checkpoint yet"
        rate, norm = f"lr {step.lr:.3g}", f"gradient norm {step.grad_norm:.3g}"
        return f"loss is {loss:.6g} at step {step.step} ({rate}, {norm}); {checkpoint}; {self._tell_rows(step)}"

    def _tell_rows(self, step: Done) -> str:
        is_bad_B = self._bad_rows(step)
        count, total = int(is_bad_B.sum()), len(step.rows)
        if count in (0, total):  # the weights are broken, or the gradient alone: no row stands out
            which, rows = f"{'all' if count else 'none'} of the step's {total} triplets have", step.rows
        else:
            which, rows = f"{count} of the step's {total} triplets have", step.rows[is_bad_B]
        examples = rows[:_NAMED]
        names = [
            f"{self._names[source]}/{name}"
            for source, name in zip(
                self._tokens.source_of(examples).tolist(), self._tokens.names(examples), strict=True
            )
        ]
        return f"{which} a non-finite likelihood: {', '.join(names)}{', …' if len(rows) > _NAMED else ''}"

    def _bad_rows(self, step: Done) -> npt.NDArray[np.bool_]:
        """Return bool (B,) of the global batch; a collective."""
        flags = torch.zeros(len(step.rows), device=self._world.device)
        share = len(step.rows) // self._world.size
        own = flags[self._world.rank * share : (self._world.rank + 1) * share]
        own.copy_(~torch.isfinite(step.rows_2P[0]))
        dist.all_reduce(flags)
        return flags.bool().cpu().numpy()
