"""Give Ray the shards of a long annotation in waves, so that the driver's memory does not grow with their number.

A shard that waits is an object of Ray's, with its owner's notes on it; 100 million videos are some million shards.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from jobs.annotate.shards import shard_table
from wm.datasets.scale import SHARDS_A_WAVE

if TYPE_CHECKING:
    from ray.data import Dataset


def run_waves(
    listing: pa.Table,
    pending: Mapping[int, tuple[int, int]],
    apply: "Callable[[Dataset], Dataset]",
    shards_a_wave: int = SHARDS_A_WAVE,
) -> Iterator[Any]:
    """Run a pipeline over shards, a wave after the other.

    Args:
        listing: A row a video.
        pending: First row and number of rows of each shard, by its number.
        apply: Builds the pipeline over a data set with a block a shard.
        shards_a_wave: Shards that Ray holds at a time.

    Yields:
        The pipeline's rows as they come.
    """
    import ray

    # Blocks are built wave by wave too: they are copies of the listing.
    shards = iter(pending.items())
    while wave := list(itertools.islice(shards, shards_a_wave)):
        # not from_arrow, which asks a remote task for each block's size: thousands of tasks, and workers for them
        blocks = ray.data.from_blocks([shard_table(listing, number, *rows) for number, rows in wave])
        yield from apply(blocks).iter_rows()
