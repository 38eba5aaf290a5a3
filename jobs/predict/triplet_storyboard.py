"""Draw predictions for triplets beside what truly came: a column a triplet, from the files of the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from jobs.predict.sources import TripletSources
from wm.evaluation.report.storyboard import CHOSEN, OTHER, Column, Shot, draw_storyboard
from wm.images import Pixels, decode_image
from wm.models import ImageCodec

STORYBOARD = "storyboard.png"


def write_triplet_storyboard(
    sources: TripletSources, files: Sequence[Path], codec: ImageCodec | None, out: Path, num_rows: int
) -> Path:
    """Draw source, candidates with the verifier's scores, and target of the first triplets.

    Args:
        sources: The triplets.
        files: All parts of their predictions.
        codec: Decodes the candidates; None: they are images.
        out: Folder of the run.
        num_rows: Triplets to draw.

    Returns:
        The image.
    """
    # The first: limit spreads those that are predicted over the set.
    rows = range(min(num_rows, len(sources)))
    shots: dict[str, list[Shot]] = {sources.ids[row]: [] for row in rows}
    # Parts hold the candidates of a triplet best first.
    for prediction in pq.read_table(files, partitioning=None).to_pylist():
        candidates = shots.get(prediction["triplet_id"])
        if candidates is None:
            continue
        lines = [
            f"{prediction['logprob'] / prediction['action_tokens']:.3f} nats/token",
            f"sampled {prediction['times']} of {prediction['draws']} times",
        ]
        candidates.append(Shot(_read_image(prediction, codec), lines, OTHER if candidates else CHOSEN))
    # A column a triplet: one of which fewer candidates differ is shorter.
    columns = []
    for row in rows:
        source, target = sources.show(row)
        true = [Shot(source, ["source"]), Shot(target, ["true target"])]
        columns.append(Column(sources.actions[row], [*true, *shots[sources.ids[row]]]))
    path = out / STORYBOARD
    draw_storyboard(columns, path)
    return path


def _read_image(prediction: Mapping[str, Any], codec: ImageCodec | None) -> Pixels:
    if codec is None:
        return decode_image(prediction["image"]["bytes"], f"prediction of triplet {prediction['triplet_id']}")
    pixels: Pixels = codec.decode(torch.tensor([prediction["codes"]]))[0]
    return pixels
