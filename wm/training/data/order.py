"""Order the rows of an epoch: a pure function of the seed, the epoch and the step.

It knows nothing of workers: every rank computes the same global batch and takes its slice, so any number of
workers, and a run that was killed and started again, see the same rows in the same order.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


class SampleOrder:
    """Epochs over several sources of rows, each source appearing ``weight`` times an epoch.

    Rows of all sources are numbered in one sequence: source 0 first. A weight of 2 shows each row of a
    source twice an epoch, one of 0.5 a random half of them, another half each epoch. Within an epoch the
    order is a permutation.
    """

    def __init__(self, counts: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Set the sources whose rows are ordered.

        Args:
            counts: Rows of each source.
            weights: Positive, one a source.
            seed: 0 or more.
        """
        self._counts = tuple(counts)
        self._weights = tuple(weights)
        self._seed = seed
        self._starts = [0, *np.cumsum(self._counts).tolist()[:-1]]
        self.rows_per_epoch = sum(round(weight * count) for weight, count in zip(weights, counts, strict=True))
        # Two, since a batch may span epochs: a permutation of millions of rows takes seconds.
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def steps_of(self, epochs: float, global_batch: int) -> int:
        """Return the steps that show so many epochs.

        Args:
            epochs: 0 or more.
            global_batch: Rows a step.

        Returns:
            The last batch runs into the next epoch rather than being short.
        """
        # Rounded first: 0.1 epochs of 10 rows are one row, not a little more.
        return int(np.ceil(round(epochs * self.rows_per_epoch) / global_batch))

    def epoch(self, number: int) -> Indices:
        """Return the row numbers of one epoch, int64 (rows_per_epoch,), in training order."""
        return self._epoch(number)

    def batch(self, step: int, global_batch: int) -> Indices:
        """Return the row numbers of a step's global batch.

        Args:
            step: From 0.
            global_batch: Rows a step.

        Returns:
            int64 (global_batch,).
        """
        position, end = step * global_batch, (step + 1) * global_batch
        parts = []
        # A batch may span epochs.
        while position < end:
            number, start = divmod(position, self.rows_per_epoch)
            stop = min(self.rows_per_epoch, start + end - position)
            parts.append(self._epoch(number)[start:stop])
            position += stop - start
        return np.concatenate(parts)

    def _shuffle(self, number: int) -> Indices:
        parts = []
        for source, (start, count, weight) in enumerate(zip(self._starts, self._counts, self._weights, strict=True)):
            # A generator a source and epoch: another source does not change which rows this one shows.
            generator = np.random.default_rng([self._seed, number, source])
            repeats, rest = divmod(round(weight * count), count)
            parts.extend([np.arange(start, start + count)] * repeats)
            parts.append(start + generator.permutation(count)[:rest])
        # The complete epoch is permuted, so that sources mix within a batch.
        rows = np.concatenate(parts).astype(np.int64)
        return np.random.default_rng([self._seed, number]).permutation(rows)


def rank_slice(rows: Indices, rank: int, num_ranks: int) -> Indices:
    """Return the contiguous part of a global batch for one rank.

    Args:
        rows: The global batch, a multiple of ``num_ranks``.
        rank: From 0.
        num_ranks: Processes that train.
    """
    share = len(rows) // num_ranks
    return rows[rank * share : (rank + 1) * share]
