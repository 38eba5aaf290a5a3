"""Gather the data of figure 3 from data sets: one triplet each, weighed by what it stores or by a codec."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from wm.errors import InputError, to_line
from wm.evaluation.paper.cells import Absent
from wm.evaluation.paper.figures.class_scores import SET_TITLES
from wm.evaluation.paper.figures.heat_maps import HeatMaps, WeightedTriplet, to_weights
from wm.evaluation.paper.sources import TOY_DATASETS, Source, Sources
from wm.evaluation.predictions import read_image_bytes
from wm.images import Pixels, decode_image, fit_square
from wm.models import change_map, load_codec
from wm.tables import checked_files, open_parquet, triplets_folder

if TYPE_CHECKING:
    from wm.models import ImageCodec

STAGES = ("ingest", "annotate", "tabletop")
"""Stages that write triplets."""
_TITLES = {
    "action-genome": "AG",
    "something": "Something-Something",
    "something-something-v2": "Something-Something",
    "magicbrush": "MagicBrush",
    "kubric": "Kubric",
    **SET_TITLES,
}
"""Data set → its name in the paper, in the figure's order."""


def read_heat_maps(sources: Sources) -> HeatMaps | Absent:
    """Choose a triplet of every data set, and weigh its tokens.

    Weights are those that the data set stores; else the codec of the options gives them.

    Args:
        sources: The results.

    Returns:
        The data, in the paper's order of sets; absent without a data set that has a triplet.

    Raises:
        InputError: A triplet of the options is of no data set, or a file is damaged.
    """
    codec = load_codec(sources.options.codec) if sources.options.codec else None
    triplets, missing = [], set(sources.options.weighted_triplets)
    for source in sources.of(*STAGES):
        files = [file for file in checked_files(triplets_folder(source.folder)) if open_parquet(file).metadata.num_rows]
        if files:
            triplets.append(_read_triplet(source, files, sources, codec))
            missing -= set(_list_ids(files)) if missing else set()
    if not triplets:
        return Absent(
            "no data set with a triplet", "wm annotate paper/annotate-ucf101 videos=VIDEOS idm=IDM out=ANNOTATED"
        )
    # A misspelt id would show another triplet in silence.
    if missing:
        raise InputError(f"weighted_triplets: {min(missing)!r:.100} is of none of the {len(triplets)} data sets")
    # The paper's sets in its order, then those that it does not have.
    order = list(_TITLES.values())
    triplets.sort(key=lambda triplet: order.index(triplet.title) if triplet.title in order else len(order))
    is_toy = sources.is_toy or any(triplet.title in TOY_DATASETS for triplet in triplets)
    return HeatMaps(tuple(triplets), is_toy)


def _read_triplet(
    source: Source, files: Sequence[Path], sources: Sources, codec: "ImageCodec | None"
) -> WeightedTriplet:
    dataset = str(source.recipe("dataset", "") or source.folder.name)
    # The title is part of the seed: a set's choice does not depend on the other sets.
    title = _TITLES.get(dataset, dataset)
    file, row = _choose_row(files, sources.options.weighted_triplets, f"{sources.options.seed} {title}")
    action, change = _read_facts(file, row)
    source_HWC, target_HWC = (
        decode_image(read_image_bytes(file, [row], f"{side}_image")[0], f"{side}_image of row {row} in {file}")
        for side in ("source", "target")
    )
    # 1. The weights that the set stores need no codec.
    weights = None if change is None else to_weights(np.array(change))
    if weights is None and codec is not None:
        squares = [fit_square(image, codec.side_px)[None] for image in (source_HWC, target_HWC)]
        features = [codec.encode_with_features(square)[1] for square in squares]
        weights = to_weights(change_map(*features)[0].double().cpu().numpy())
    if weights is None:
        reason = "no weights stored: give figures.codec=MODEL"
        return WeightedTriplet(title, action, source_HWC, target_HWC, None, reason)
    # 2. The codec sees the middle square alone, so that the tokens lie over it.
    return WeightedTriplet(title, action, _cut_square(source_HWC), _cut_square(target_HWC), weights)


def _cut_square(pixels_HWC: Pixels) -> Pixels:
    return fit_square(pixels_HWC, min(pixels_HWC.shape[:2]))


def _list_ids(files: Sequence[Path]) -> list[str]:
    return [
        triplet_id
        for file in files
        for triplet_id in open_parquet(file).read(columns=["triplet_id"]).column("triplet_id").to_pylist()
    ]


def _choose_row(files: Sequence[Path], triplet_ids: Sequence[str], seed: str) -> tuple[Path, int]:
    """Find the first of these triplets, or choose one by seed, for which no column is read."""
    if triplet_ids:
        for file in files:
            ids = open_parquet(file).read(columns=["triplet_id"]).column("triplet_id").to_pylist()
            row = next((number for number, triplet_id in enumerate(ids) if triplet_id in triplet_ids), None)
            if row is not None:
                return file, row
    # Counts are in the files' ends.
    counts = [open_parquet(file).metadata.num_rows for file in files]
    number = random.Random(seed).randrange(sum(counts))
    for file, count in zip(files, counts, strict=True):
        if number < count:
            return file, number
        number -= count
    raise AssertionError("unreachable: the number is below the sum of the counts")


def _read_facts(file: Path, row: int) -> tuple[str, list[float] | None]:
    """Read action and stored change of one row; only its row group is read."""
    parquet, begin = open_parquet(file), 0
    try:
        for group in range(parquet.metadata.num_row_groups):
            count = parquet.metadata.row_group(group).num_rows
            if row < begin + count:
                table = parquet.read_row_group(group, columns=["action", "change"]).slice(row - begin, 1)
                facts = table.to_pylist()[0]
                return facts["action"], facts["change"]
            begin += count
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error
    raise InputError(f"{file} has no row {row}")
