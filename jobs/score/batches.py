"""Cut prediction sets, and the references that need none, into batches. Opens no image."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count

from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.image_scoring import ScoreBatch
from wm.evaluation.predictions import PredictionFacts, View
from wm.evaluation.rows import CEILING, COPY

CHUNK_ROWS = 32
"""Rows of the bench whose targets are read together."""


def build_references(rows: Sequence[BenchRow], *, with_copy: bool, with_ceiling: bool) -> list[PredictionFacts]:
    """Build the systems that need no prediction: the source itself, and the true target through the codec.

    Args:
        rows: The bench.
        with_copy: Build the first.
        with_ceiling: Build the second.

    Returns:
        A row a system and triplet, in the bench's own files.
    """
    views: dict[str, View] = {}
    if with_copy:
        views[COPY] = "full"
    if with_ceiling:
        views[CEILING] = "square"
    return [
        {
            "triplet_id": row.triplet_id,
            "system": system,
            "run": 0,
            "sampling_seed": 0,
            "decoding": "unknown",
            "candidates": [0],
            "chosen_at": [],
            # Read with the image, as are its sizes: nothing before that needs them.
            "pixels_sha256": "",
            "width_px": 0,
            "height_px": 0,
            "verifier_logprob": None,
            "view": view,
            "file": row.file,
            "row": row.row,
        }
        for system, view in views.items()
        for row in rows
    ]


def cut_batches(facts: Sequence[PredictionFacts], rows: Sequence[BenchRow], images_per_task: int) -> list[ScoreBatch]:
    """Cut images into batches of one file and one chunk of the bench.

    Args:
        facts: All images, those of the references among them.
        rows: The bench.
        images_per_task: Max images of a batch.

    Returns:
        The batches, numbered; the same in every process.
    """
    chunk_of = {row.triplet_id: index // CHUNK_ROWS for index, row in enumerate(rows)}
    # A file has one column that is read, and a chunk one set of targets.
    groups: dict[tuple[str, str, int], list[PredictionFacts]] = {}
    for fact in facts:
        groups.setdefault((fact["system"], fact["file"], chunk_of[fact["triplet_id"]]), []).append(fact)
    numbers = count()
    return [batch for key, group in groups.items() for batch in _cut_group(key, group, rows, images_per_task, numbers)]


def _cut_group(
    key: tuple[str, str, int],
    group: Sequence[PredictionFacts],
    rows: Sequence[BenchRow],
    images_per_task: int,
    numbers: Iterator[int],
) -> Iterator[ScoreBatch]:
    system, file, chunk = key
    columns: Mapping[str, str] = {COPY: "source_image", CEILING: "target_image"}
    for begin in range(0, len(group), images_per_task):
        yield ScoreBatch(
            number=next(numbers),
            file=file,
            column=columns.get(system, "image"),
            facts=[*group[begin : begin + images_per_task]],
            chunk=[*rows[chunk * CHUNK_ROWS : (chunk + 1) * CHUNK_ROWS]],
            through_codec=system == CEILING,
        )
