"""Build the data loader's work and the step that it feeds, at the nano world's size. Free of Ray."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.benchmark.models import train_step
from wm.models.vlm import UnifiedVLM
from wm.nano.preset import TINY_WORDS, NanoPreset, write_random_base
from wm.records import TRIPLET_SCHEMA, StoredImage, triplet_row
from wm.tables import write_table
from wm.training import Lora, RecognitionWeights, SampleOrder, Source, TokenSet, completion_loss, open_tokens, prepare
from wm.training.data.prefetch import prefetch
from wm.training.step import TokenBatch


@dataclass(frozen=True)
class LoaderShape:
    """How many rows there are, how many a batch has, and how many batches a turn."""

    rows: int = 4096
    batch: int = 32
    batches: int = 64

    def rows_of(self, name: str) -> int:
        """Return the number of rows that a turn of ``loader`` or ``nano_step`` goes through."""
        return self.batch * (self.batches if name == "loader" else 1)


@contextmanager
def loader_work(shape: LoaderShape) -> Iterator[dict[str, Callable[[], object]]]:
    """Build ``loader`` and ``nano_step``, in a temporary folder that is removed after the block.

    ``loader``: the batches of so many steps from the token cache, by the prefetching thread, as
    :func:`wm.training.fit` asks for them. ``nano_step``: forward, backward and AdamW on one of them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vlm = write_random_base(folder / "base", preset=NanoPreset())
        _write_triplets(vlm, folder / "triplets", shape.rows)
        source = Source(path=str(folder / "triplets"))
        tokens = open_tokens([source], vlm, "fdm", RecognitionWeights(), root=folder / "tokens", seed=0)
        # As wm train mixes its sources; here is one.
        order = SampleOrder([tokens.num_rows], [1.0], 0)
        yield {
            "loader": lambda: _load(tokens, order, shape),
            "nano_step": _build_step(vlm, tokens.batch(order.batch(0, shape.batch))),
        }


def _write_triplets(vlm: UnifiedVLM, folder: Path, count: int) -> None:
    """Write triplets of random codes, with actions of 3 to 8 words."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        source_N, target_N = generator.integers(0, vlm.num_codes, (2, vlm.tokens_per_image))
        # Only columns that training reads are filled.
        rows.append(
            triplet_row(
                dataset="random",
                split="train",
                video_uri=f"random/{number}",
                source_image=StoredImage(bytes=b"-", path=None),
                target_image=StoredImage(bytes=b"-", path=None),
                codec=vlm.codec_id,
                source_codes=source_N.tolist(),
                target_codes=target_N.tolist(),
                change=generator.random(vlm.tokens_per_image).tolist(),
                action=" ".join(generator.choice(TINY_WORDS, generator.integers(3, 9))),
                origin="human",
            )
        )
    folder.mkdir()
    write_table(rows, folder / "part.parquet", TRIPLET_SCHEMA)


def _load(tokens: TokenSet, order: SampleOrder, shape: LoaderShape) -> int:
    def build(step: int) -> tuple[TokenBatch, int]:
        rows = order.batch(step, shape.batch)
        return tokens.batch(rows), tokens.num_completion_tokens(rows)

    with closing(prefetch(build, range(shape.batches))) as batches:
        return sum(count for _, count in batches)


def _build_step(vlm: UnifiedVLM, batch: TokenBatch) -> Callable[[], object]:
    prepare(vlm, Lora(), 0)
    # One batch again and again: only its step is timed.
    num_tokens = int(batch[1].sum())
    return train_step(vlm.module, lambda: completion_loss(vlm, *batch, num_tokens))
