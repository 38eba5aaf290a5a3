"""Imagine triplets for self-training: a forward model predicts what actions would do in source images, an inverse model
verifies each prediction, and those it accepts become triplets of origin ``fdm``, for wm select and wm train.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from jobs.imagine import report
from jobs.imagine.recipe import ImagineRecipe
from jobs.imagine.rows import Outcome, build_reject, build_triplets
from jobs.imagine.tries import Try, pair_tries
from jobs.shared.roles import check_roles, load_forward_codec, load_recipe_roles, show_steps
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import Changes, count_changes
from wm.dynamics import Observation, predict_observations
from wm.dynamics.pairs import ModelPair
from wm.errors import InputError
from wm.files.mirror import shown
from wm.images import decode_image
from wm.records import REJECT_SCHEMA, SEED_SCHEME, STAGE_TABLES, TRIPLET_SCHEMA
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import fill_empty_tables, read_table, write_table

SOURCES_PER_PART = 64
"""Source images a file: what a kill can cost."""


def run(recipe: ImagineRecipe, *, dry_run: bool = False) -> RunRecord:
    """Predict, verify and write; a stopped run resumes with the parts that are missing.

    Args:
        recipe: Models, sources, actions.
        dry_run: Check everything and print what would be tried.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: Models, triplets or actions do not allow it.
    """
    # 1. Check models and inputs, and choose what is tried.
    check_roles(recipe, recipe.search)
    names = ("fdm", "idm", "sources", "actions", *(["base"] if recipe.base else []))
    inputs = {name: digest_of(getattr(recipe, name)) for name in names}
    if recipe.pixels.base:
        inputs["pixels.base"] = digest_of(recipe.pixels.base)
    stage = Run(recipe.out, "imagine", recipe, inputs | {"seeds": SEED_SCHEME})
    if stage.is_complete():
        report.print_complete(recipe)
        return read_run(recipe.out) or {}
    with stage.timed("read"):
        codec = load_forward_codec(recipe, recipe.search)
        if codec is not None:
            codec.check_decoder()
        tries = pair_tries(recipe)
    num_tries = sum(map(len, tries))
    if dry_run:
        report.print_plan(recipe, num_tries, len(tries))
        return {}
    # 2. Load the models: they come last, so that bad input need not wait for 7B weights.
    with stage.timed("load"):
        pair = load_recipe_roles(recipe, recipe.search, codec)
    pair.check_actions(attempt.action for attempts in tries for attempt in attempts)
    # 3. Predict and verify, part by part.
    stage.start()
    with stage.timed("imagine"), torch.inference_mode(), progress_bar(len(tries), "source", "imagine") as bar:
        for num_sources in _write_parts(recipe, tries, show_steps(pair, bar)):
            bar.update(num_sources)
    # 4. Count from the files, parts of an earlier attempt included.
    counts = _count(stage.out, num_tries)
    fill_empty_tables(recipe.out, STAGE_TABLES, "part-00000.parquet")  # before the card, which names every table
    title = f"{recipe.dataset}: triplets imagined by a forward and verified by an inverse model"
    write_dataset_card(recipe.out, title=title, license="", split=recipe.split)
    record = stage.finish(counts, **pair.describe())
    report.print_result(recipe, counts)
    return record


def _write_parts(recipe: ImagineRecipe, tries: list[list[Try]], pair: ModelPair) -> Iterator[int]:
    """Write the parts that are missing, and yield each part's number of sources."""
    out = Path(recipe.out)
    for start in range(0, len(tries), SOURCES_PER_PART):
        sources = tries[start : start + SOURCES_PER_PART]
        name = f"part-{start // SOURCES_PER_PART:05d}.parquet"
        if not (out / "triplets" / name).exists():
            outcomes = _predict(recipe, [attempt for attempts in sources for attempt in attempts], pair)
            rejects = [build_reject(recipe, outcome) for outcome in outcomes if outcome.reason(recipe)]
            accepted = [outcome for outcome in outcomes if not outcome.reason(recipe)]
            # Rejects first: a part whose file of triplets exists is complete.
            if rejects:
                write_table(rejects, out / "rejects" / name, REJECT_SCHEMA)
            write_table(build_triplets(recipe, pair, accepted), out / "triplets" / name, TRIPLET_SCHEMA)
        yield len(sources)


def _predict(recipe: ImagineRecipe, attempts: list[Try], pair: ModelPair) -> list[Outcome]:
    """Predict what each try gives."""
    if not attempts:
        return []
    sources = [_observe(pair, attempt) for attempt in attempts]
    predictions = predict_observations(
        pair.forward, pair.inverse, sources, [attempt.action for attempt in attempts], search=recipe.search,
        sampling=recipe.sampling, seed=[attempt.seed for attempt in attempts], batch_size=recipe.resources.batch_size,
    )  # fmt: skip
    return [Outcome(*row) for row in zip(attempts, sources, predictions, strict=True)]


def _observe(pair: ModelPair, attempt: Try) -> Observation:
    """Return the source, with the stored codes where they are of the forward model's codec."""
    row = attempt.row
    # Stored codes need no encoding, and are those that the triplet was made with.
    codes = row["source_codes"] if pair.codec is not None and row["codec"] == pair.codec.codec_id else None
    if codes and pair.codec is not None and pair.shares_codec:
        return Observation.from_codes(codes, pair.codec)
    image_HWC = decode_image(row["source_image"]["bytes"], f"source_image of triplet {row['triplet_id']}")
    return pair.observe(image_HWC, codes)


def _count(out: Path, num_tries: int) -> report.Counts:
    """Count rows and reasons in the files."""
    changes = count_changes(out / "triplets")
    reasons = Counter[str]()
    if (out / "rejects").is_dir():
        reasons.update(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    # Rows in = rows out + rejects, always.
    if changes.rows + reasons.total() != num_tries:
        raise InputError(
            f"{shown(out)}: {changes.rows} triplets and {reasons.total()} rejects do not add up to {num_tries} tries"
        )
    return {
        "tries": num_tries,
        "triplets": changes.rows,
        **_count_codes(changes),
        "rejects": reasons.total(),
        "by_reason": dict(sorted(reasons.items())),
    }


def _count_codes(changes: Changes) -> report.CodeCounts:
    # An editor's images have no codes where the inverse model has none: 0 would be wrong.
    if not changes.without_codes:
        return {"unchanged_codes": changes.unchanged}
    return {"without_codes": changes.without_codes}


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(ImagineRecipe, run, name="imagine", description=__doc__ or "")
