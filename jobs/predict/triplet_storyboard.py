"""Draw predictions for triplets beside what truly came: a column a triplet, from the files of the run."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch

from wm.evaluation.heldout import HeldOut
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, Shot, draw_storyboard
from wm.models import ImageCodec

STORYBOARD = "storyboard.png"


def write_triplet_storyboard(
    held_out: HeldOut, files: Sequence[Path], codec: ImageCodec, out: Path, num_rows: int
) -> Path:
    """Draw source, candidates with the verifier's scores, and target of the first triplets.

    Args:
        held_out: The triplets.
        files: All parts of their predictions.
        codec: Decodes the candidates.
        out: Folder of the run.
        num_rows: Triplets to draw.

    Returns:
        The image.
    """
    # The first: limit spreads those that are predicted over the set.
    rows = range(min(num_rows, len(held_out)))
    shots: dict[str, list[Shot]] = {held_out.ids[row]: [] for row in rows}
    # Parts hold the candidates of a triplet best first.
    for prediction in pq.read_table(files, partitioning=None).to_pylist():
        candidates = shots.get(prediction["triplet_id"])
        if candidates is None:
            continue
        lines = [
            f"{prediction['logprob'] / prediction['action_tokens']:.3f} nats/token",
            f"sampled {prediction['times']} of {prediction['draws']} times",
        ]
        pixels = codec.decode(torch.tensor([prediction["codes"]]))[0]
        candidates.append(Shot(pixels, lines, OTHER if candidates else CHOSEN))
    # A column a triplet: one of which fewer candidates differ is shorter.
    columns = [
        Column(
            held_out.actions[row],
            [
                Shot(held_out.source_pixels[row], ["source"]),
                Shot(held_out.target_pixels[row], ["true target"]),
                *shots[held_out.ids[row]],
            ],
        )
        for row in rows
    ]
    path = out / STORYBOARD
    draw_storyboard(columns, path)
    return path
