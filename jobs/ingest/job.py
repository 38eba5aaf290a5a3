"""Turn a human-labelled set into triplets, with image codes and change weights if a codec is given: pairs of images in
AURORA's layout, MagicBrush's Parquet files, EPIC-Kitchens' narrated segments, the labelled videos of
Something-Something v2, and the instructions that AURORA gives some of these."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

from jobs.ingest.recipe import IngestRecipe
from jobs.ingest.report import print_passed_over, print_plan, print_result
from jobs.ingest.rows import LoadedPair, digest_rows, list_rows, load_row
from jobs.shared.pair_codes import encode_pairs
from jobs.shared.ray_session import connect, quiet_data
from wm.buckets import localise
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import count_changes
from wm.datasets.layouts.base import ImagePair, Problem, StoredPair, VideoSegment
from wm.datasets.layouts.stored_images import StoredImages
from wm.errors import InputError
from wm.records import (
    REJECT_SCHEMA,
    STAGE_TABLES,
    TRIPLET_SCHEMA,
    CodeColumns,
    RejectRow,
    TripletRow,
    reject_row,
    stable_id,
    triplet_row,
)
from wm.runs import Run, digest_of, read_run
from wm.tables import fill_empty_tables, has_files, read_table, table_files, write_table
from wm.video.isolation import IsolatedProcess

ListedPair: TypeAlias = ImagePair | StoredPair | VideoSegment
"""A row whose images can be looked for."""
ENCODE_BATCH = 32
"""Pairs of images encoded at once: bounds the memory at 512 px."""


class ShardRange(TypedDict):
    """A shard's number and its rows, from ``start`` to ``stop`` (half open)."""

    number: int
    start: int
    stop: int


class ShardReport(TypedDict):
    """How many rows of a shard were written, and the error of the disk or ""."""

    rows: int
    problem: str


class Ingestor:
    """Turns one shard's rows into Parquet files; holds the codec. Runs as a Ray Data actor."""

    def __init__(self, recipe: IngestRecipe) -> None:
        """Load the codec and read the list once."""
        self.recipe = recipe = localise(recipe)
        # Once an actor: shards name ranges of these rows.
        self.rows = list_rows(recipe)
        self.process = IsolatedProcess()
        self.stored = StoredImages()
        self.codec = None
        if recipe.codec:
            import torch

            from wm.models import load_codec

            # Actors share the cores.
            torch.set_num_threads(1)
            self.codec = load_codec(recipe.codec)

    def __call__(self, shard: ShardRange) -> ShardReport:
        """Write the triplets and rejects of one shard."""
        rows = self.rows[shard["start"] : shard["stop"]]
        triplets: list[TripletRow] = []
        problems: list[Problem] = []
        # Batches bound the memory; decoding and encoding alternate in one actor.
        for start in range(0, len(rows), ENCODE_BATCH):
            loaded: list[tuple[ListedPair, LoadedPair]] = []
            for row in rows[start : start + ENCODE_BATCH]:
                pair = load_row(self.recipe, self.process, row, self.stored)
                if isinstance(pair, Problem):
                    problems.append(pair)
                elif not isinstance(row, Problem):
                    loaded.append((row, pair))
            triplets += self._triplets(loaded)
        out, name = Path(self.recipe.out), f"part-{shard['number']:05d}.parquet"
        # The rejects first: a shard whose triplets file exists is complete.
        try:
            if problems:
                write_table([self._reject(problem) for problem in problems], out / "rejects" / name, REJECT_SCHEMA)
            write_table(triplets, out / "triplets" / name, TRIPLET_SCHEMA)
        except OSError as error:
            # Raised in a worker it would reach the driver as a long trace of Ray.
            return {"rows": 0, "problem": f"cannot write {name} below {out}: {error}"}
        return {"rows": len(rows), "problem": ""}

    def _triplets(self, rows: list[tuple[ListedPair, LoadedPair]]) -> list[TripletRow]:
        # Ids are made of the row's name, so that every run gives the same.
        sources, targets = ([getattr(pair, side) for _, pair in rows] for side in ("source", "target"))
        codes = [CodeColumns() for _ in rows] if self.codec is None else encode_pairs(self.codec, sources, targets)
        return [
            triplet_row(
                triplet_id=stable_id(self.recipe.dataset, self.recipe.split, row.uri),
                dataset=self.recipe.dataset,
                split=self.recipe.split,
                class_label=row.task,
                action=row.action,
                origin="human",
                license=self.recipe.license,
                source_image=pair.source_image,
                target_image=pair.target_image,
                **pair.video,
                **code_columns,
            )
            for (row, pair), code_columns in zip(rows, codes, strict=True)
        ]

    def _reject(self, problem: Problem) -> RejectRow:
        return reject_row(
            uri=problem.uri,
            stage="ingest",
            outcome="failed",
            reason=problem.reason,
            detail=problem.detail,
            dataset=self.recipe.dataset,
            split=self.recipe.split,
            class_label=problem.task,
        )


def run(recipe: IngestRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Ingest into ``recipe.out``.

    Args:
        recipe: The set, and the codec.
        dry_run: Print what would be done, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The set or the codec cannot be read, or the folder is another run's.
    """
    # 1. Read the list before anything is written: a wrong one costs nothing.
    passed_over: dict[str, Any] = {}
    rows = list_rows(recipe, passed_over)
    inputs = {"file": digest_rows(recipe)}
    if recipe.codec:
        inputs["codec"] = digest_of(recipe.codec)
    stage = Run(recipe.out, "ingest", recipe, inputs)
    is_finished = stage.is_complete()
    if recipe.codec and not is_finished:
        _check_codec(recipe.codec)
    if dry_run or is_finished:
        print_plan(recipe, len(rows), passed_over, is_finished)
        return (read_run(recipe.out) or {}) if is_finished else {}
    print_passed_over(passed_over)
    # 2. Write shard by shard: a killed run resumes at the first one that is missing.
    stage.start(leave=["*.parquet"])
    with stage.timed("ingest_s"):
        _ingest(recipe, stage, len(rows))
    counts = _count_rows(Path(recipe.out), len(rows), has_codes=recipe.codec is not None)
    fill_empty_tables(recipe.out, STAGE_TABLES, "part-00000.parquet")  # before the card, which names every table
    write_dataset_card(recipe.out, title=f"{recipe.dataset}: triplets", license=recipe.license, split=recipe.split)
    record = stage.finish(counts, passed_over=passed_over)
    print_result(recipe, counts)
    return record


def _check_codec(folder: str) -> None:
    """Refuse a folder without a codec here: in an actor the same error would come late and without its words."""
    from wm.models import load_codec

    load_codec(folder)


def _ingest(recipe: IngestRecipe, stage: Run, num_rows: int) -> None:
    # Shards whose triplets are there were finished by an earlier run.
    folder = Path(recipe.out) / "triplets"
    finished = {file.name for file in table_files(folder)} if has_files(folder) else set()
    shards: list[ShardRange] = [
        {"number": number, "start": start, "stop": min(start + recipe.shard_rows, num_rows)}
        for number, start in enumerate(range(0, num_rows, recipe.shard_rows))
        if f"part-{number:05d}.parquet" not in finished
    ]
    if not shards:
        return
    if recipe.resources.num_workers:
        connect()  # before the bar, which what Ray's session has to say would break
    # Counts alone come back; rows are written where they are made.
    ingest = _ingest_on_ray if recipe.resources.num_workers else _ingest_here
    num_finished = num_rows - sum(shard["stop"] - shard["start"] for shard in shards)
    with progress_bar(num_rows, "row", "ingest", num_finished) as bar:
        for report in ingest(recipe, shards):
            if report["problem"]:
                raise InputError(f"{report['problem']}; what is written is kept, the same command resumes")
            stage.check_writer()
            bar.update(report["rows"])


def _ingest_here(recipe: IngestRecipe, shards: Sequence[ShardRange]) -> Iterator[ShardReport]:
    """Write shard after shard in this process."""
    import torch

    # As many threads as an actor, or codes might differ in their last bits; set back for what follows here.
    threads = torch.get_num_threads()
    try:
        yield from map(Ingestor(recipe), shards)
    finally:
        torch.set_num_threads(threads)


def _ingest_on_ray(recipe: IngestRecipe, shards: Sequence[ShardRange]) -> Iterator[ShardReport]:
    """Write the shards in actors of Ray Data; its session is there."""
    import ray

    quiet_data()
    results = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        Ingestor,
        fn_constructor_args=(recipe.with_absolute_paths(),),
        compute=ray.data.ActorPoolStrategy(size=min(recipe.resources.num_workers, len(shards))),
        num_cpus=1,
    )
    yield from results.iter_rows()


def _count_rows(out: Path, num_rows: int, has_codes: bool) -> dict[str, Any]:
    """Count what was written. Without a codec nothing is known of codes, so ``unchanged_codes`` is absent."""
    triplets = read_table(out / "triplets", columns=["class_label"])
    reasons: Counter[str] = Counter()
    if has_files(out / "rejects"):
        reasons.update(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    # Rows in = triplets + rejects, or something was lost in silence.
    if triplets.num_rows + sum(reasons.values()) != num_rows:
        raise InputError(
            f"{out}: {triplets.num_rows} triplets and {sum(reasons.values())} rejects do not add up to "
            f"{num_rows} rows; the input changed while it was read"
        )
    # Codes are read again only where there are any: 4 kB a row.
    by_class = Counter(triplets.column("class_label").to_pylist())
    unchanged = {"unchanged_codes": count_changes(out / "triplets").unchanged} if has_codes else {}
    return {
        "rows": num_rows,
        "triplets": triplets.num_rows,
        **unchanged,
        "rejects": sum(reasons.values()),
        "rejects_by_reason": dict(sorted(reasons.items())),
        "triplets_by_class": dict(sorted(by_class.items())),
    }


def main() -> int:
    """Run the command line."""
    return cli_main(IngestRecipe, run, name="ingest", description=__doc__ or "")
