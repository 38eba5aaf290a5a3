"""Give triplets the image codes of a codec, or those of another one: the same rows, with codes, in files of the same
names.

Annotation by a model that reads pixels may leave codes out, and each base to train needs those of its own codec.
"""

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from jobs.shared.devices import check_device
from jobs.shared.pair_codes import encode_pairs
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import count_changes
from wm.errors import InputError
from wm.files.atomic import replace_file
from wm.files.mirror import publish
from wm.images import Pixels, decode_image
from wm.models import ImageCodec, load_codec
from wm.paths import ModelPath, OutputPath, TablePath
from wm.records import REJECT_SCHEMA, STAGE_TABLES, TRIPLET_SCHEMA, RejectRow, StoredImage, TripletRow, reject_row
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import (
    checked_files,
    fill_empty_tables,
    has_files,
    open_parquet,
    read_table,
    triplets_folder,
    write_table,
)


class EncodeResources(Recipe):
    """Where the codec runs."""

    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    batch_size: int = Field(default=32, ge=1)
    """Pairs of images encoded at once."""


class EncodeRecipe(Recipe):
    """Which triplets, and whose codes they get."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources"})

    triplets: TablePath
    """Folder of triplets, or of a stage that has them below triplets, such as wm annotate."""
    codec: ModelPath
    """Model folder whose codec makes source_codes, target_codes and change, such as the base to train."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    resources: EncodeResources = EncodeResources()
    """Where the codec runs: resources.device=cuda."""


def run(recipe: EncodeRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the triplets with codes, file by file; a killed run resumes at the first file that is missing.

    Args:
        recipe: The triplets and the codec.
        dry_run: Print what would be written, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The triplets or the codec cannot be read, or the folder is another run's.
    """
    # 1. Check everything.
    check_device(recipe.resources.device)
    inputs = {"triplets": digest_of(recipe.triplets), "codec": digest_of(recipe.codec)}
    stage = Run(recipe.out, "encode", recipe, inputs)
    if stage.is_complete():
        print(f"encode: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    codec = load_codec(recipe.codec, recipe.resources.device)
    files = checked_files(triplets_folder(recipe.triplets))
    num_rows = sum(open_parquet(file).metadata.num_rows for file in files)
    # A card without a row would say nothing of the codec.
    if not num_rows:
        raise InputError(f"no triplet in {recipe.triplets}")
    if dry_run:
        print(f"encode: would give {num_rows:,} triplets the codes of codec {codec.codec_id} in {recipe.out}")
        return {}
    # 2. Write what is missing.
    stage.start(leave=["*.parquet"])
    with stage.timed("encode_s"), progress_bar(num_rows, "row", "encode") as bar:
        for file, name in zip(files, name_outputs(files), strict=True):
            if not (Path(recipe.out) / "triplets" / name).is_file():
                _encode_file(recipe, codec, file, name)
                stage.check_writer()
            bar.update(open_parquet(file).metadata.num_rows)
    # 3. Rows in = rows out + rejects.
    counts = _count_rows(Path(recipe.out), num_rows)
    fill_empty_tables(recipe.out, STAGE_TABLES, "part-00000.parquet")
    write_dataset_card(recipe.out, title="triplets with image codes")
    record = stage.finish(counts, codec=codec.codec_id)
    print(
        f"encode: {counts['triplets']:,} triplets with codes of codec {codec.codec_id} → {recipe.out}/triplets, "
        f"{counts['unchanged_codes']:,} of them without a changed code, {counts['rejects']:,} in {recipe.out}/rejects"
    )
    return record


def name_outputs(files: Sequence[Path]) -> list[str]:
    """Name the output of each file: by its own name, and by its folders too where several files share that.

    Args:
        files: Of one folder and those below it.
    """
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    # One folder of outputs, as its card and readers expect.
    root = os.path.commonpath([file.parent for file in files])
    return ["__".join(file.relative_to(root).parts) for file in files]


def _encode_file(recipe: EncodeRecipe, codec: ImageCodec, file: Path, name: str) -> None:
    """Write the triplets of a file with their codes, and a file of those whose images cannot be read."""
    out, rejects = Path(recipe.out), list[RejectRow]()
    path = out / "triplets" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet = open_parquet(file)
    # Columns of the user's own stay, such as a bench's counterfactual_action.
    more = [field for field in parquet.schema_arrow if field.name not in TRIPLET_SCHEMA.names]
    schema = pa.schema([*TRIPLET_SCHEMA, *more], metadata=TRIPLET_SCHEMA.metadata)
    with replace_file(path) as temporary:
        # A few rows at a time are in memory, whatever the length of the file.
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for batch in parquet.iter_batches(batch_size=recipe.resources.batch_size):
                rows = _encode_rows(cast(list[TripletRow], batch.to_pylist()), codec, rejects)
                if rows:
                    writer.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema))
        # The rejects first: a file whose triplets are there is complete.
        if rejects:
            write_table(rejects, out / "rejects" / name, REJECT_SCHEMA)
    publish(path)


def _encode_rows(rows: list[TripletRow], codec: ImageCodec, rejects: list[RejectRow]) -> list[TripletRow]:
    readable: list[tuple[TripletRow, Pixels, Pixels]] = []
    for row in rows:
        try:
            source, target = _read_image(row, "source_image"), _read_image(row, "target_image")
        except InputError as error:
            # A row of its own, so that no row is lost in silence.
            rejects.append(_build_reject(row, str(error)))
            continue
        readable.append((row, source, target))
    codes = encode_pairs(codec, [source for _, source, _ in readable], [target for _, _, target in readable])
    # Everything else of a row stays: its id, its action and likelihood, where it comes from.
    return [cast(TripletRow, {**row, **columns}) for (row, _, _), columns in zip(readable, codes, strict=True)]


def _read_image(row: TripletRow, column: Literal["source_image", "target_image"]) -> Pixels:
    # A file of another program may lack an image, or its bytes.
    stored = cast(StoredImage | None, row[column])
    data = stored["bytes"] if stored is not None else b""
    return decode_image(data or b"", f"{column} of triplet {row['triplet_id']}")


def _build_reject(row: TripletRow, detail: str) -> RejectRow:
    return reject_row(
        uri=row["triplet_id"],
        stage="encode",
        outcome="failed",
        reason="not_an_image",
        detail=detail,
        dataset=row["dataset"],
        split=row["split"],
        class_label=row["class_label"],
    )


def _count_rows(out: Path, num_rows: int) -> dict[str, Any]:
    # Of the files, so that a resumed run counts what an earlier command wrote.
    changes = count_changes(out / "triplets")
    reasons = Counter[str]()
    if has_files(out / "rejects"):
        reasons.update(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    if changes.rows + reasons.total() != num_rows:
        raise InputError(
            f"{out}: {changes.rows} triplets and {reasons.total()} rejects do not add up to {num_rows} rows; the input "
            "changed while it was read"
        )
    return {
        "rows": num_rows,
        "triplets": changes.rows,
        "unchanged_codes": changes.unchanged,
        "rejects": reasons.total(),
        "rejects_by_reason": dict(sorted(reasons.items())),
    }


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(EncodeRecipe, run, name="encode", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
