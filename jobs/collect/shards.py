"""Read the images of some rows of the bench and write them as one file of a prediction set. Runs as a Ray task."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jobs.collect.recipe import CollectRecipe
from wm.buckets import localise
from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.output_files import OutputFile
from wm.evaluation.predictions import PredictionRow, prediction_row, write_predictions
from wm.files.mirror import shown
from wm.images import Pixels, decode_image
from wm.records import REJECT_SCHEMA, RejectRow, reject_row
from wm.tables import write_table


@dataclass(frozen=True)
class Shard:
    """Rows of the bench that go into one file."""

    number: int
    rows: list[BenchRow]
    files: list[list[OutputFile]]  # of each row
    expected: list[str]  # the name that the pattern gives each row

    @property
    def name(self) -> str:
        """Return the name of its file in each table."""
        return f"part-{self.number:05d}.parquet"


def write_shard(shard: Shard, recipe_json: str) -> int:
    """Write the predictions and rejects of a shard. Runs as a Ray task, too.

    Args:
        shard: The rows.
        recipe_json: Folders, system and view, with absolute paths.

    Returns:
        How many rows of the bench it has.

    Raises:
        OSError: The disk is full or may not be written.
    """
    recipe = _load_recipe(recipe_json)
    predictions: list[PredictionRow] = []
    rejects: list[RejectRow] = []
    for row, files, expected in zip(shard.rows, shard.files, shard.expected, strict=True):
        if not files:
            detail = f"no file {expected} below {shown(recipe.folder)} for triplet {row.triplet_id}"
            rejects.append(_build_reject(row, row.triplet_id, "missing_file", detail))
        of_row: dict[tuple[int, str], PredictionRow] = {}
        for file in files:
            try:
                prediction = _load_prediction(row, file, recipe)
            except InputError as error:
                reason = "not_square" if "is no square" in str(error) else "not_an_image"
                rejects.append(_build_reject(row, file.path, reason, str(error)))
                continue
            except (OSError, ValueError, RuntimeError) as error:
                # A loop of links, a link out of the folder, a file that may not be read.
                detail = f"cannot read {file.path}: {error}"
                rejects.append(_build_reject(row, file.path, "unreadable_file", detail))
                continue
            # Equal candidates are one image.
            same = of_row.setdefault((file.run, prediction["pixels_sha256"]), prediction)
            if same is not prediction:
                same["candidates"].append(file.candidate)
        predictions += of_row.values()
    out = Path(recipe.out)
    # The rejects first: a shard whose predictions file exists is complete.
    if rejects:
        write_table(rejects, out / "rejects" / shard.name, REJECT_SCHEMA)
    write_predictions(predictions, out / "predictions" / shard.name)
    return len(shard.rows)


@lru_cache(maxsize=1)
def _load_recipe(recipe_json: str) -> CollectRecipe:
    """Load the recipe with the paths of this node, to which the images are fetched."""
    return localise(CollectRecipe.model_validate_json(recipe_json))


def _load_prediction(row: BenchRow, file: OutputFile, recipe: CollectRecipe) -> PredictionRow:
    root = Path(recipe.folder).resolve()
    # Links are followed first: a folder from elsewhere may name any file of this machine.
    path = (root / file.path).resolve()
    if not path.is_relative_to(root):
        raise OSError(f"it is a link to {path}, out of the folder")
    pixels: Pixels = decode_image(path.read_bytes(), file.path)
    if recipe.view == "square" and pixels.shape[0] != pixels.shape[1]:
        raise InputError(f"{file.path} has {pixels.shape[1]} x {pixels.shape[0]} pixels, which is no square")
    return prediction_row(
        pixels,
        triplet_id=row.triplet_id,
        system=recipe.system,
        run=file.run,
        candidates=[file.candidate],
        view=recipe.view,
        origin="external",
    )


def _build_reject(row: BenchRow, uri: str, reason: str, detail: str) -> RejectRow:
    return reject_row(
        uri=uri,
        stage="collect",
        outcome="failed",
        reason=reason,
        detail=detail,
        dataset=row.dataset,
        split=row.split,
        class_label=row.class_label,
    )
