"""Edit the sources of some triplets and write them as one file of a prediction set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jobs.edit.recipe import EditRecipe
from wm.dynamics.editor import ImageEditor, candidate_seed
from wm.dynamics.protocols import SampleFailure
from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.predictions import PredictionRow, prediction_row, read_image_bytes, write_predictions
from wm.images import Pixels, decode_image
from wm.records import REJECT_SCHEMA, RejectRow, reject_row
from wm.tables import write_table


@dataclass(frozen=True)
class Shard:
    """Triplets that go into one file."""

    number: int
    rows: list[BenchRow]

    @property
    def name(self) -> str:
        """Return the name of its file in each table."""
        return f"part-{self.number:05d}.parquet"


@dataclass(frozen=True)
class EditRequest:
    """One image to be made."""

    row: BenchRow
    source: Pixels
    seed: int
    candidate: int


def cut_shards(rows: Sequence[BenchRow], shard_rows: int) -> list[Shard]:
    """Cut the bench into shards, the same in every run.

    Args:
        rows: The bench.
        shard_rows: Triplets of a shard.

    Returns:
        The shards, numbered from 0.
    """
    begins = range(0, len(rows), shard_rows)
    return [Shard(number, [*rows[begin : begin + shard_rows]]) for number, begin in enumerate(begins)]


def write_shard(shard: Shard, recipe: EditRecipe, editor: ImageEditor, on_images: Callable[[int], object]) -> None:
    """Write the predictions and rejects of a shard.

    Args:
        shard: The triplets.
        recipe: Seeds, candidates and output folder.
        editor: The editor.
        on_images: Called with a number of images once they are made, or rejected.

    Raises:
        InputError: A file of the bench is damaged, or the editor cannot be called with its settings.
        OSError: The disk is full or may not be written.
    """
    rejects: list[RejectRow] = []
    predictions: dict[tuple[str, int, str], PredictionRow] = {}
    requests = _list_requests(shard, recipe, editor, rejects)
    each = len(recipe.seeds) * recipe.num_candidates
    on_images(each * len(shard.rows) - len(requests))
    # A few batches at a time, so that progress shows.
    for begin in range(0, len(requests), editor.batch_size):
        batch = requests[begin : begin + editor.batch_size]
        results = editor.edit(
            [request.source for request in batch],
            [request.row.action for request in batch],
            [candidate_seed(request.seed, request.row.triplet_id, request.candidate) for request in batch],
        )
        for request, result in zip(batch, results, strict=True):
            if isinstance(result, SampleFailure):
                rejects.append(_build_reject(request.row, result.reason, f"{_describe(request)}: {result.detail}"))
            else:
                _add_prediction(predictions, request, result, recipe.system_name())
        on_images(len(batch))
    # The rejects first: a shard whose predictions file exists is complete.
    if rejects:
        write_table(rejects, Path(recipe.out) / "rejects" / shard.name, REJECT_SCHEMA)
    write_predictions(predictions.values(), Path(recipe.out) / "predictions" / shard.name)


def _list_requests(
    shard: Shard, recipe: EditRecipe, editor: ImageEditor, rejects: list[RejectRow]
) -> list[EditRequest]:
    """List the images to be made, and add a reject for each triplet that cannot be edited."""
    requests = []
    for row, data in zip(shard.rows, _read_sources(shard), strict=True):
        # Without an instruction an editor changes something or nothing: neither is a prediction.
        if not row.action.strip():
            rejects.append(_build_reject(row, "no_action", f"triplet {row.triplet_id} has no action"))
            continue
        try:
            editor.check_action(row.action)
        except InputError as error:
            rejects.append(_build_reject(row, "long_action", str(error)))
            continue
        try:
            source = decode_image(data, f"source_image of triplet {row.triplet_id}")
        except InputError as error:
            rejects.append(_build_reject(row, "not_an_image", str(error)))
            continue
        pairs = ((seed, candidate) for seed in recipe.seeds for candidate in range(recipe.num_candidates))
        requests += [EditRequest(row, source, seed, candidate) for seed, candidate in pairs]
    # By size: a batch has sources of one size.
    return sorted(requests, key=lambda request: request.source.shape)


def _read_sources(shard: Shard) -> list[bytes]:
    sources: list[bytes] = []
    # Rows of one file follow each other.
    for file, rows in groupby(shard.rows, lambda row: row.file):
        sources += read_image_bytes(file, [row.row for row in rows], "source_image")
    return sources


def _add_prediction(
    predictions: dict[tuple[str, int, str], PredictionRow], request: EditRequest, image: Pixels, system: str
) -> None:
    prediction = prediction_row(
        image,
        triplet_id=request.row.triplet_id,
        system=system,
        sampling_seed=request.seed,
        candidates=[request.candidate],
        view="full",
        origin="external",
    )
    # Equal candidates are one image.
    key = request.row.triplet_id, request.seed, prediction["pixels_sha256"]
    same = predictions.setdefault(key, prediction)
    if same is not prediction:
        same["candidates"].append(request.candidate)


def _describe(request: EditRequest) -> str:
    return f"triplet {request.row.triplet_id}, seed {request.seed}, candidate {request.candidate}"


def _build_reject(row: BenchRow, reason: str, detail: str) -> RejectRow:
    return reject_row(
        uri=row.triplet_id,
        stage="edit",
        outcome="failed",
        reason=reason,
        detail=detail,
        dataset=row.dataset,
        split=row.split,
        class_label=row.class_label,
    )
