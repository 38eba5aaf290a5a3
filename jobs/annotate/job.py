"""Annotate videos without labels: key-frame pairs, their image codes, and the action an IDM reads from
them."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder
from jobs.annotate.recipe import AnnotateRecipe
from jobs.annotate.shards import (
    TABLES,
    cut_shards,
    keep_listing,
    kept_listing,
    shard_name,
    shard_table,
    shards_with,
    sole_writer,
    summarise,
    tidy,
)
from jobs.shared.ray_session import connect, need, quiet_data
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.videos.videos import describe, list_videos, listing_digest, passed_over_of
from wm.errors import InputError
from wm.records import fill_empty_tables
from wm.runs import Run, digest_of, read_run


def run(recipe: AnnotateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Annotate into ``recipe.out``; returns the run's record (on a dry run: what would be done)."""
    listing, listed = _listing(recipe)
    _require_model("idm", recipe.idm)
    _require_manifest(recipe.idm)
    inputs = {"videos": listed, "idm": digest_of(recipe.idm)}
    if recipe.base:
        _require_model("base", recipe.base)
        _require_fit(recipe.idm, recipe.base)
        inputs["base"] = digest_of(recipe.base)
    stage = Run(recipe.out, "annotate", recipe, inputs)
    whole = stage.is_whole()
    again = shards_with(Path(recipe.out), recipe.retry) if recipe.retry else []
    if whole and again and not dry_run:
        stage.reopen()
    whole = whole and not again
    shards = cut_shards(listing, recipe.videos_per_shard)
    if not whole:
        _require_machine(recipe, len(shards))
        _require_codec(recipe)
    if dry_run or whole:
        return _tell_plan(recipe, listing, whole)
    stage.start()
    with sole_writer(Path(recipe.out)):
        keep_listing(Path(recipe.out), listing, listed)
        return _fill(recipe, stage, listing, shards, again)


def _listing(recipe: AnnotateRecipe) -> tuple[pa.Table, str]:
    """The videos and their digest: as they are now, or, where a run is to be gone on with, as they were when it began
    (a folder may grow meanwhile, and what failed may have been mended)."""
    listing = list_videos(recipe.videos, layout=recipe.layout, annotations=recipe.annotations).slice(0, recipe.limit)
    listed = listing_digest(listing)
    begun = kept_listing(Path(recipe.out))
    goes_on = recipe.retry or read_run(recipe.out) is None
    if begun is None or begun[1] == listed or not goes_on:
        return listing, listed
    then = f"the {begun[0].num_rows:,} videos that were listed then"
    print(f"annotate: {recipe.videos} has changed since the run in {recipe.out} began; it goes on with {then}")
    return begun


def _fill(
    recipe: AnnotateRecipe, stage: Run, listing: pa.Table, shards: Mapping[int, tuple[int, int]], again: Iterable[Path]
) -> dict[str, Any]:
    """Annotate the shards that are not finished, and those whose marks are ``again``; returns the run's record."""
    _tell_notes(listing)
    out = Path(recipe.out)
    for mark in again:
        mark.unlink(missing_ok=True)
    done = tidy(out)
    pending = {number: rows for number, rows in shards.items() if number not in done}
    num_pending = sum(rows for _, rows in pending.values())
    if done:
        print(f"annotate: going on, {listing.num_rows - num_pending:,} of {listing.num_rows:,} videos are finished")
    with stage.timed("annotate_s"):
        _annotate(recipe, listing, pending)
    tidy(out)
    counts = {"listed": listing.num_rows} | summarise(out)
    if counts["videos"] != listing.num_rows:
        accounted = f"{counts['videos']:,} of {listing.num_rows:,} videos"
        raise InputError(f"{recipe.out} accounts for {accounted}; run the command again")
    fill_empty_tables(out, TABLES, f"{shard_name(0)}.parquet")  # before the card, which names every table
    write_dataset_card(out, title=f"{recipe.dataset}: triplets", license=recipe.license, split=recipe.split)
    record = stage.finish(counts, annotated_now=num_pending, passed_over=passed_over_of(listing))
    _tell_result(recipe, record)
    return record


def _annotate(recipe: AnnotateRecipe, listing: pa.Table, pending: Mapping[int, tuple[int, int]]) -> None:
    """Run the two actor pools over the pending shards; the driver sees counts only."""
    if not pending:
        return
    connect()
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    quiet_data()
    decoders, annotators = recipe.pools(len(pending))
    context = DataContext.get_current()
    block_bytes, context.target_max_block_size = context.target_max_block_size, None  # a shard stays one block
    try:
        counts = (
            # not from_arrow, which asks a remote task for each block's size: thousands of tasks, and workers for them
            ray.data.from_blocks([shard_table(listing, number, *rows) for number, rows in pending.items()])
            .map_batches(
                Decoder,
                fn_constructor_args=(recipe.clip_settings(), recipe.download_settings(), recipe.dataset),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=decoders.start, max_size=decoders.stop),
                num_cpus=recipe.cpus_per_worker,
            )
            .map_batches(
                Annotator,
                fn_constructor_args=(recipe.annotator_settings(),),
                batch_size=None,
                batch_format="pyarrow",
                compute=ActorPoolStrategy(min_size=annotators.start, max_size=annotators.stop),
                num_cpus=recipe.cpus_per_worker,
                num_gpus=recipe.gpus_per_annotator,
            )
        )
        _watch(counts.iter_rows(), listing.num_rows, sum(rows for _, rows in pending.values()))
    finally:
        context.target_max_block_size = block_bytes


def _watch(shards: Iterable[dict[str, Any]], total: int, num_pending: int) -> None:
    """Draw the progress bar from finished shards; raise what ended the run."""
    started, pairs, reasons = time.perf_counter(), 0, Counter[str]()
    with progress_bar(total, "video", "annotate", done=total - num_pending) as bar:
        for shard in shards:
            if shard["errno"]:
                raise OSError(shard["errno"], shard["problem"])
            if shard["problem"]:
                raise InputError(shard["problem"])
            pairs += shard["pairs"]
            reasons.update(json.loads(shard["reasons"]))
            told = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common(3))
            rate = pairs / (time.perf_counter() - started)
            bar.set_postfix_str(f"{rate:.1f} pairs/s{'; ' if told else ''}{told}", refresh=False)
            bar.update(shard["videos"])


def _require_machine(recipe: AnnotateRecipe, num_shards: int) -> None:
    decoders, annotators = (pool.start for pool in recipe.pools(num_shards))
    key = f"num_workers = {recipe.num_workers}, num_annotators = {recipe.num_annotators}"
    need((decoders + annotators) * recipe.cpus_per_worker, annotators * recipe.gpus_per_annotator, key)


def _require_model(key: str, folder: str) -> None:
    from wm.models import explain_unreadable, hub_hint, is_model_folder, model_folder

    if not model_folder(folder).is_dir():
        raise InputError(f"{key} = {folder!r}: no such model folder{hub_hint(folder)}")
    if not is_model_folder(folder):
        explain_unreadable(model_folder(folder))
        raise InputError(
            f"{key} = {folder!r} is no model folder: it has neither config.json nor adapter_config.json, nor an "
            "original release's params.json"
        )


def _require_manifest(idm: str) -> None:
    """Refuse an adapter without a manifest here: with ``base`` given, only the annotators would read it."""
    from wm.models import is_adapter, model_folder
    from wm.models.checkpoints import need_manifest

    if is_adapter(idm):
        need_manifest(model_folder(idm))


def _require_codec(recipe: AnnotateRecipe) -> None:
    """Read the codec here too: a damaged folder, an adapter without its base, or a threshold that no pair can reach is
    reported before anything starts."""
    from wm.models import load_codec

    num_codes = load_codec(recipe.base or recipe.idm).tokens_per_image
    filters = recipe.filters
    if filters.unchanged == "on" and filters.min_changed_codes > num_codes:
        raise InputError(
            f"filters.min_changed_codes = {filters.min_changed_codes}, but an image has {num_codes} codes: every pair "
            f"would be filtered; expected 1 to {num_codes}"
        )


def _require_fit(idm: str, base: str) -> None:
    """Refuse a base that the adapter's manifest does not name, before anything is decoded."""
    from wm.models import read_manifest

    adapter, found = read_manifest(idm), read_manifest(base)
    if adapter is not None and adapter.kind != "adapter":
        raise InputError(f"idm = {idm!r} is a whole model and no adapter; leave base out")
    if adapter is not None and found is not None and adapter.base_id != found.base_id:
        raise InputError(f"adapter {idm} was trained on base {adapter.base_id}, but {base} is {found.base_id}")


def _tell_plan(recipe: AnnotateRecipe, listing: pa.Table, whole: bool) -> dict[str, Any]:
    classes = pc.count_distinct(listing.column("class_label")).as_py()
    print(
        f"annotate: {'already whole in' if whole else 'would write'} {recipe.out}: {listing.num_rows:,} videos of "
        f"{classes:,} classes from {recipe.videos}, IDM {recipe.idm}"
    )
    _tell_notes(listing)
    if not whole:
        settings = recipe.model_dump(exclude={"videos", "idm", "out"}, exclude_none=True)
        print("  " + ", ".join(f"{key} = {value}" for key, value in settings.items()))
    return {"videos": listing.num_rows, "whole": whole}


def _tell_notes(listing: pa.Table) -> None:
    """Print what the listing passed over."""
    for line in describe(passed_over_of(listing)):
        print(f"  {line}")


def _tell_result(recipe: AnnotateRecipe, record: dict[str, Any]) -> None:
    counts, seconds = record["counts"], max(record["wall_s"], 1e-9)
    print(
        f"annotate: {counts['videos']:,} videos ({counts['video_s']:,.0f} s, {counts['frames']:,} frames) → "
        f"{counts['triplets']:,} triplets of {counts['videos_with_triplets']:,} in {recipe.out}/triplets, "
        f"{counts['filtered']:,} filtered and {counts['failed']:,} failed in {recipe.out}/rejects; "
        f"{record['annotated_now'] / seconds:.1f} videos/s"
    )
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  {reason}: {count}")
    found = ", ".join(f"{reason} {count}" for reason, count in counts["findings"].items())
    print(f"  filters found among {counts['pairs']:,} pairs, those that only score too: {found or 'nothing'}")
    readers = ", ".join(f"{reader} {count}" for reader, count in counts["readers"].items())
    print(f"  frames read by: {readers or 'none'}; decord gave up on {counts['decord_fallbacks']}")
    table = counts["table7"]
    print("  mean length   total length   samples   observations/video   actions/video   words/action")
    means = {name: "–" if table[name] is None else f"{table[name]:.2f}" for name in table}
    per_video = f"{means['observations_per_video']:>20} {means['actions_per_video']:>15}"
    print(
        f"  {means['mean_length_s']:>9} s {table['total_length_h']:>12.4f} h {table['samples']:>9,} {per_video} "
        f"{means['words_per_action']:>14}"
    )
    stages = ", ".join(f"{stage} {value:,.1f} s" for stage, value in counts["stage_s"].items() if value)
    print(f"  time of all actors: {stages}")


def main() -> int:
    """Command line."""
    return cli_main(AnnotateRecipe, run, name="annotate", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
