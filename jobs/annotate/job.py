"""Annotate videos without labels: key-frame pairs, their image codes, and the action an IDM reads from them.

Not known here: how a video is decoded (decoder.py), how pairs become rows (annotator.py), what is on disk (shards.py).
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from jobs.annotate.annotator import Annotator
from jobs.annotate.budget import report_of, take_budget
from jobs.annotate.counts import summarise
from jobs.annotate.decoder import Decoder
from jobs.annotate.endpoint import check_endpoint
from jobs.annotate.models import check_base, check_contents, check_models, settle_filters
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.report import print_passed_over, print_plan, print_result, print_without_codes
from jobs.annotate.shards import (
    TABLES,
    cut_shards,
    load_listing,
    shard_name,
    shards_with,
    store_listing,
    tidy,
)
from jobs.annotate.tables import ShardReport
from jobs.annotate.waves import run_waves
from jobs.shared.cluster_size import fit_to_cluster
from jobs.shared.ray_session import check_available, connect, count_gpus, is_private, quiet_data
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.statistics import markdown_table
from wm.datasets.videos.listing import listing_digest, passed_over_of
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.files.mirror import remove
from wm.runs import Run, digest_of, read_run
from wm.tables import fill_empty_tables


def run(recipe: AnnotateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Annotate into ``recipe.out``, or what is missing of a run that was interrupted.

    Args:
        recipe: Videos, IDM and how key-frames are chosen.
        dry_run: Check everything and print what would be done.

    Returns:
        The run's record; on a dry run ``videos`` and ``whole``.

    Raises:
        InputError: Videos, models or the machine do not allow it.
        OSError: The disk is full or not writable.
    """
    recipe = fit_to_cluster(recipe)
    # Models first: a budget of hours opens files to list them.
    check_models(recipe)
    listing, videos_digest = _list_or_resume(recipe)
    inputs = {"videos": videos_digest}
    # Nobody here has seen the weights behind an endpoint: its model's name is in the recipe.
    if recipe.idm:
        inputs["idm"] = digest_of(recipe.idm)
    # The base decides what the codes mean: it is an input like the videos.
    check_base(recipe)
    if recipe.base:
        inputs["base"] = digest_of(recipe.base)
    if recipe.codec:
        inputs["codec"] = digest_of(recipe.codec)
    if (settled := settle_filters(recipe)) is not recipe:
        print_without_codes(recipe)
    recipe = settled
    stage = Run(recipe.out, "annotate", recipe, inputs)
    is_complete = stage.is_complete()
    retried = shards_with(Path(recipe.out), recipe.retry) if recipe.retry else []
    if is_complete and retried and not dry_run:
        stage.reopen()
    is_complete = is_complete and not retried
    shards = cut_shards(listing, recipe.videos_per_shard)
    # A finished run is reported even where its models are gone by now.
    if not is_complete:
        _check_machine(recipe, len(shards))
        check_contents(recipe)
    if dry_run or is_complete:
        return print_plan(recipe, listing, is_complete)
    if recipe.endpoint.base_url:
        check_endpoint(recipe.endpoint, recipe.prompt)
    stage.start(leave=["*.parquet"])  # marks alone say what is left to do
    store_listing(Path(recipe.out), listing, videos_digest)
    return _annotate_missing(recipe, stage, listing, shards, retried)


def _list_or_resume(recipe: AnnotateRecipe) -> tuple[pa.Table, str]:
    """List the videos, with their digest: as they are now, or for a resumed run as they were when it began."""
    # A folder may grow meanwhile, and what failed may have been mended.
    listing = list_videos(recipe.videos, layout=recipe.dataset_layout, annotations=recipe.annotations).slice(
        0, recipe.limit
    )
    digest = listing_digest(listing)
    stored = load_listing(Path(recipe.out))
    resumes = recipe.retry or read_run(recipe.out) is None
    # The digest is that of all videos; with a budget, the part of them that was taken is not looked for again.
    if stored is not None and stored[1] == digest and _is_budget_of(recipe, stored[0]):
        return stored
    if stored is None or stored[1] == digest or not resumes:
        return take_budget(listing, recipe.budget, recipe.limits.time_limit_s), digest
    videos = f"the {stored[0].num_rows:,} videos that were listed then"
    print(f"annotate: {recipe.videos} has changed since the run in {recipe.out} began; it resumes with {videos}")
    return stored


def _is_budget_of(recipe: AnnotateRecipe, listing: pa.Table) -> bool:
    """Return whether a stored listing is what the recipe's budget took."""
    report = report_of(listing)
    return report is not None and report["budget"] == recipe.budget.model_dump()


def _annotate_missing(
    recipe: AnnotateRecipe,
    stage: Run,
    listing: pa.Table,
    shards: Mapping[int, tuple[int, int]],
    retried: Iterable[Path],
) -> dict[str, Any]:
    """Annotate the shards that are not finished, and those whose marks are ``retried``; returns the run's record."""
    # 1. What is left to do.
    print_passed_over(listing)
    out = Path(recipe.out)
    for mark in retried:
        remove(mark)
    finished = tidy(out)
    pending = {number: rows for number, rows in shards.items() if number not in finished}
    num_pending = sum(rows for _, rows in pending.values())
    if finished:
        print(f"annotate: resuming, {listing.num_rows - num_pending:,} of {listing.num_rows:,} videos are finished")
    # 2. The actors do it.
    with stage.timed("annotate_s"):
        traffic = _annotate(recipe, stage, listing, pending)
    # 3. Rows in = rows out + rejects, or the output is not complete.
    tidy(out)
    counts = {"listed": listing.num_rows} | summarise(out)
    if counts["videos"] != listing.num_rows:
        accounted = f"{counts['videos']:,} of {listing.num_rows:,} videos"
        raise InputError(f"{recipe.out} accounts for {accounted}; run the command again")
    fill_empty_tables(out, TABLES, f"{shard_name(0)}.parquet")  # before the card, which names every table
    title, notes = f"{recipe.dataset}: triplets", markdown_table(counts["table7"])
    rows = {name: counts[key] for name, key in (("triplets", "triplets"), ("clips", "videos"), ("pairs", "pairs"))}
    rows["rejects"] = counts["filtered"] + counts["failed"]
    write_dataset_card(out, title=title, license=recipe.license, split=recipe.split, rows=rows, notes=notes)
    budget = report_of(listing)
    more = {} if budget is None else {"budget": budget}
    record = stage.finish(
        counts, annotated_now=num_pending, traffic=traffic, passed_over=passed_over_of(listing), **more
    )
    print_result(recipe, record)
    return record


def _annotate(
    recipe: AnnotateRecipe, stage: Run, listing: pa.Table, pending: Mapping[int, tuple[int, int]]
) -> dict[str, int]:
    """Run the two actor pools over the pending shards; only counts come back, and the bytes that decoders passed on."""
    if not pending:
        return {"block_bytes": 0, "moved_bytes": 0}
    connect()
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    quiet_data()
    decoders, annotators = recipe.resources.pool_sizes(len(pending))
    context = DataContext.get_current()
    block_bytes, context.target_max_block_size = context.target_max_block_size, None  # a shard stays one block

    def annotate(shards: ray.data.Dataset) -> ray.data.Dataset:
        return shards.map_batches(
            Decoder,
            fn_constructor_args=(recipe.clip_settings(), recipe.download_settings(), recipe.dataset),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=decoders.start, max_size=decoders.stop),
            num_cpus=recipe.resources.cpus_per_decoder,
            num_gpus=_gpus_per_decoder(recipe),
            resources=recipe.resources.custom_per_decoder,
        ).map_batches(
            Annotator,
            fn_constructor_args=(recipe.annotator_settings(),),
            batch_size=None,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=annotators.start, max_size=annotators.stop),
            num_cpus=recipe.resources.cpus_per_annotator,
            num_gpus=recipe.resources.gpus_per_annotator,
            resources=recipe.resources.custom_per_annotator,
        )

    try:
        counts = _checked(run_waves(listing, pending, annotate), stage)
        return _show_progress(counts, listing.num_rows, sum(rows for _, rows in pending.values()))
    finally:
        context.target_max_block_size = block_bytes


def _checked(shards: Iterable[Any], stage: Run) -> Iterator[ShardReport]:
    """Yield the reports of finished shards, until another writer has taken the output over."""
    for shard in shards:
        stage.check_writer()
        yield shard


def _show_progress(shards: Iterable[ShardReport], total: int, num_pending: int) -> dict[str, int]:
    """Draw the progress bar from finished shards and sum their bytes; raise what ended the run."""
    started, pairs, reasons = time.perf_counter(), 0, Counter[str]()
    traffic = {"block_bytes": 0, "moved_bytes": 0}
    with progress_bar(total, "video", "annotate", done=total - num_pending) as bar:
        # A full disk keeps its error number: it is no bad input.
        for shard in shards:
            if shard["errno"]:
                raise OSError(shard["errno"], shard["problem"])
            if shard["problem"]:
                raise InputError(shard["problem"])
            pairs += shard["pairs"]
            reasons.update(json.loads(shard["reasons"]))
            traffic["block_bytes"] += shard["block_bytes"]
            traffic["moved_bytes"] += shard["moved_bytes"]
            summary = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
            rate = pairs / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:.1f} pairs/s{'; ' if summary else ''}{summary}", refresh=False)
            bar.update(shard["videos"])
    return traffic


def _check_machine(recipe: AnnotateRecipe, num_shards: int) -> None:
    resources = recipe.resources
    decoders, annotators = (pool.start for pool in resources.pool_sizes(num_shards))
    cpus = decoders * resources.cpus_per_decoder + annotators * resources.cpus_per_annotator
    keys = f"num_decoders = {resources.num_decoders}, resources.num_annotators = {resources.num_annotators}"
    # Both kinds of actors share the GPUs then: the shares are what to change.
    if share := _gpus_per_decoder(recipe):
        shares = f"gpus_per_decoder = {share:g}, resources.gpus_per_annotator = {resources.gpus_per_annotator:g}"
        keys += f", resources.{shares}"
    gpus = decoders * share + annotators * resources.gpus_per_annotator
    check_available(cpus, gpus, f"resources.{keys}")


def _gpus_per_decoder(recipe: AnnotateRecipe) -> float:
    share = recipe.gpus_per_decoder
    # Ray would wait for a GPU without an end; the decoders measure by the CPU then, and report why.
    return 0.0 if share and is_private() and not count_gpus() else share


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(AnnotateRecipe, run, name="annotate", description=__doc__ or "")
