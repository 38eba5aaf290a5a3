"""Turn a supervised set into triplets, with image codes and change weights if a codec is given: pairs of images in
AURORA's layout, or EPIC-Kitchens' narrated segments of videos."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from jobs.ingest.recipe import IngestRecipe
from jobs.ingest.rows import Pair, entries_of, load_entry
from jobs.shared.ray_session import connect, quiet_data
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import count_changes
from wm.datasets.pairs.aurora import Item, Problem
from wm.datasets.pairs.narrated import Narrated
from wm.datasets.videos.passed_over import describe
from wm.errors import InputError
from wm.records import (
    REJECT_SCHEMA,
    STAGE_TABLES,
    TRIPLET_SCHEMA,
    RejectRow,
    TripletRow,
    fill_empty_tables,
    read_table,
    reject_row,
    stable_id,
    triplet_row,
    write_table,
)
from wm.runs import Run, digest_of, read_run
from wm.video.isolation import IsolatedProcess

ENCODE_BATCH = 32
"""Pairs of images encoded at once: bounds the memory at 512 px."""


class Ingestor:
    """Turns one shard's rows into Parquet files; holds the codec. Runs as a Ray Data actor."""

    def __init__(self, recipe: IngestRecipe) -> None:
        """Load the codec and read the list once."""
        self.recipe = recipe
        self.entries = entries_of(recipe)
        self.process = IsolatedProcess()
        self.codec = None
        if recipe.codec:
            import torch

            from wm.models import load_codec

            torch.set_num_threads(1)
            self.codec = load_codec(recipe.codec)

    def __call__(self, shard: dict[str, Any]) -> dict[str, Any]:
        """Write the triplets and rejects of one shard.

        The rejects are written first, so a shard whose triplets file exists is complete.

        Args:
            shard: ``number``, ``start`` and ``stop`` (half open) of rows.

        Returns:
            ``rows``, how many were done, and ``problem``, the error of the disk or "".
        """
        entries = self.entries[shard["start"] : shard["stop"]]
        triplets: list[TripletRow] = []
        problems: list[Problem] = []
        # Batches bound the memory; decoding and encoding alternate in one actor.
        for start in range(0, len(entries), ENCODE_BATCH):
            rows = []
            for entry in entries[start : start + ENCODE_BATCH]:
                pair = entry if isinstance(entry, Problem) else load_entry(self.recipe, self.process, entry)
                if isinstance(pair, Problem):
                    problems.append(pair)
                elif not isinstance(entry, Problem):
                    rows.append((entry, pair))
            triplets += self._triplets(rows)
        out, name = Path(self.recipe.out), f"part-{shard['number']:05d}.parquet"
        try:
            if problems:
                write_table([self._reject(problem) for problem in problems], out / "rejects" / name, REJECT_SCHEMA)
            write_table(triplets, out / "triplets" / name, TRIPLET_SCHEMA)
        except OSError as error:
            # Raised in a worker it would reach the driver as a long trace of Ray.
            return {"rows": 0, "problem": f"cannot write {name} below {out}: {error}"}
        return {"rows": len(entries), "problem": ""}

    def _codes(self, sources: list[Any], targets: list[Any]) -> list[dict[str, Any]]:
        """Encode pairs of images of any size; return the columns that the codec fills, one dict a pair."""
        if self.codec is None or not sources:
            return [{} for _ in sources]
        import numpy as np

        from wm.images import fit_square
        from wm.models import change_map

        side = self.codec.side_px
        source_BN, source_features = self.codec.encode_with_features(np.stack([fit_square(x, side) for x in sources]))
        target_BN, target_features = self.codec.encode_with_features(np.stack([fit_square(x, side) for x in targets]))
        columns = (source_BN, target_BN, change_map(source_features, target_features))
        return [
            {
                "codec": self.codec.codec_id,
                "source_codes": a.tolist(),
                "target_codes": b.tolist(),
                "change": c.tolist(),
            }
            for a, b, c in zip(*columns, strict=True)
        ]

    def _triplets(self, rows: list[tuple[Item | Narrated, Pair]]) -> list[TripletRow]:
        codes = self._codes([pair.source for _, pair in rows], [pair.target for _, pair in rows])
        return [
            triplet_row(
                triplet_id=stable_id(self.recipe.dataset, self.recipe.split, item.uri),
                dataset=self.recipe.dataset,
                split=self.recipe.split,
                class_label=item.task,
                action=item.action,
                origin="human",
                license=self.recipe.license,
                **pair.columns,
                **code,
            )
            for (item, pair), code in zip(rows, codes, strict=True)
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
    """Ingest into ``recipe.out``; returns the run's record."""
    # 1. Read the list before anything is written: a wrong one costs nothing.
    passed_over: dict[str, Any] = {}
    entries = entries_of(recipe, passed_over)
    inputs = {"file": digest_of(Path(recipe.root) / recipe.file)}
    if recipe.codec:
        inputs["codec"] = digest_of(recipe.codec)
    stage = Run(recipe.out, "ingest", recipe, inputs)
    is_finished = stage.is_complete()
    if recipe.codec and not is_finished:
        _check_codec(recipe.codec)
    for line in describe(passed_over):
        print(f"  {line}")
    if dry_run or is_finished:
        print(
            f"ingest: {'already complete in' if is_finished else 'would write'} {recipe.out}: {len(entries):,} rows of "
            f"{recipe.file}, {'codes by ' + recipe.codec if recipe.codec else 'no codes (no codec given)'}"
        )
        return (read_run(recipe.out) or {}) if is_finished else {}
    # 2. Write shard by shard: a killed run resumes at the first one that is missing.
    stage.start()
    with stage.timed("ingest_s"):
        _ingest(recipe, len(entries))
    counts = _count_rows(Path(recipe.out), len(entries), has_codes=recipe.codec is not None)
    fill_empty_tables(recipe.out, STAGE_TABLES, "part-00000.parquet")  # before the card, which names every table
    write_dataset_card(recipe.out, title=f"{recipe.dataset}: triplets", license=recipe.license, split=recipe.split)
    record = stage.finish(counts, passed_over=passed_over)
    print(
        f"ingest: {counts['rows']:,} rows → {counts['triplets']:,} triplets in {recipe.out}/triplets, "
        f"{counts['rejects']:,} rejects in {recipe.out}/rejects"
    )
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  {reason}: {count}")
    if counts.get("unchanged_codes"):
        print(f"  {counts['unchanged_codes']:,} triplets, not left out, have the same image codes in source and target")
    return record


def _check_codec(folder: str) -> None:
    """Refuse a folder without a codec here: in an actor the same error would come late and without its words."""
    from wm.models import load_codec

    load_codec(folder)


def _ingest(recipe: IngestRecipe, num_rows: int) -> None:
    shards = [
        {"number": number, "start": start, "stop": min(start + recipe.shard_rows, num_rows)}
        for number, start in enumerate(range(0, num_rows, recipe.shard_rows))
        if not (Path(recipe.out) / "triplets" / f"part-{number:05d}.parquet").exists()
    ]
    if not shards:
        return
    connect()
    import ray

    quiet_data()
    workers = min(recipe.num_workers, len(shards))
    results = ray.data.from_items(shards, override_num_blocks=len(shards)).map(
        Ingestor,
        fn_constructor_args=(recipe.with_absolute_paths(),),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    done_rows = num_rows - sum(s["stop"] - s["start"] for s in shards)
    with progress_bar(num_rows, "row", "ingest", done_rows) as bar:
        for row in results.iter_rows():
            if row["problem"]:
                raise InputError(f"{row['problem']}; what is written is kept, the same command resumes")
            bar.update(row["rows"])


def _count_rows(out: Path, num_rows: int, has_codes: bool) -> dict[str, Any]:
    """Count what was written. Without a codec nothing is known of codes, so ``unchanged_codes`` is absent."""
    triplets = read_table(out / "triplets", columns=["class_label"])
    reasons: Counter[str] = Counter()
    if (out / "rejects").is_dir():
        reasons.update(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    # Rows in = triplets + rejects, or something was lost in silence.
    if triplets.num_rows + sum(reasons.values()) != num_rows:
        raise InputError(
            f"{out}: {triplets.num_rows} triplets and {sum(reasons.values())} rejects do not add up to "
            f"{num_rows} rows; the input changed while it was read"
        )
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


if __name__ == "__main__":
    sys.exit(main())
