"""The data loader's work and the step's that eats it, at the nano world's size. Free of Ray."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.benchmark.training_models import LEARNING_RATE
from wm.models import load_model
from wm.models.checkpoints import save_model
from wm.nano.preset import TINY_WORDS, NanoPreset, build_nano
from wm.records import TRIPLET_SCHEMA, triplet_row, write_table
from wm.training import Lora, RecognitionWeights, SampleOrder, Source, TokenSet, completion_loss, open_tokens, prepare
from wm.training.data.prefetch import prefetch
from wm.training.step import MicroBatch


@dataclass(frozen=True)
class LoaderShape:
    """How many rows there are, how many a batch has, and how many batches a turn."""

    rows: int = 4096
    batch: int = 32
    batches: int = 64

    def rows_of(self, name: str) -> int:
        """Rows that a turn of ``loader`` or ``nano_step`` goes through."""
        return self.batch * (self.batches if name == "loader" else 1)


@contextmanager
def loader_work(shape: LoaderShape) -> Iterator[dict[str, Callable[[], object]]]:
    """``loader``: the batches of so many steps from the token cache, by the prefetching thread, as
    :func:`wm.training.fit` asks for them. ``nano_step``: forward, backward and AdamW on one of them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_nano(folder / "base")
        write_rows(folder / "base", folder / "triplets", shape.rows)
        vlm = load_model(folder / "base")
        source = Source(path=str(folder / "triplets"))
        tokens = open_tokens([source], vlm, "fdm", RecognitionWeights(), root=folder / "tokens", seed=0)
        order = SampleOrder([tokens.num_rows], [1.0], 0)
        yield {
            "loader": lambda: _load(tokens, order, shape),
            "nano_step": _step(vlm, tokens.batch(order.batch(0, shape.batch))),
        }


def write_nano(folder: Path) -> None:
    """Build a model of the nano world's size with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm, codec = build_nano(TINY_WORDS, NanoPreset())
    save_model(vlm, folder, kind="base", codec=codec)


def write_rows(base: Path, folder: Path, count: int) -> None:
    """Triplets of random codes, with actions of 3 to 8 words."""
    vlm: Any = load_model(base)
    generator = np.random.default_rng(0)
    size = vlm.tokens_per_image
    rows = []
    for number in range(count):
        source_N, target_N = generator.integers(0, vlm.num_codes, (2, size))
        row: dict[str, Any] = {
            "dataset": "random",
            "split": "train",
            "video_uri": f"random/{number}",
            "source_image": {"bytes": b"-", "path": None},
            "target_image": {"bytes": b"-", "path": None},
            "codec": vlm.codec_id,
            "source_codes": source_N.tolist(),
            "target_codes": target_N.tolist(),
            "change": generator.random(size).tolist(),
            "action": " ".join(generator.choice(TINY_WORDS, generator.integers(3, 9))),
            "origin": "human",
        }
        rows.append(triplet_row(**row))
    folder.mkdir()
    write_table(rows, folder / "part.parquet", TRIPLET_SCHEMA)


def _load(tokens: TokenSet, order: SampleOrder, shape: LoaderShape) -> int:
    def make(step: int) -> tuple[MicroBatch, int]:
        rows = order.batch(step, shape.batch)
        return tokens.batch(rows), tokens.num_completion_tokens(rows)

    with closing(prefetch(make, range(shape.batches))) as batches:
        return sum(count for _, count in batches)


def _step(vlm: Any, batch: MicroBatch) -> Callable[[], None]:
    prepare(vlm, Lora(), 0)
    trained = [parameter for parameter in vlm.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
    num_tokens = int(batch[1].sum())

    def step() -> None:
        completion_loss(vlm, *batch, num_tokens).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step
