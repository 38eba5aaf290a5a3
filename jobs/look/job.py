"""Look at your own videos before any model is there: motion curves, key-frames and proposed pairs, as a page.

    wm look VIDEOS
    wm look 'clips/*.mp4' keyframes.max_keyframes=8 filters.static=on

VIDEOS is a folder, a quoted glob, a list or one file, local or remote, as annotate takes it. Within budget_s seconds
clips from all over the set are read, and the page that opens in a browser shows what an annotation with these settings
would make of them. The same command resumes with further clips; nothing is written among the videos.
"""

import os
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.annotate.shards import shard_size
from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA, ListedVideo, clip_rows
from jobs.look.cards import build_cards, build_page_data, count_alternatives, count_rule
from jobs.look.folder import default_out
from jobs.look.order import spread_rows
from jobs.look.preview import PREVIEW_S, preview
from jobs.look.reading import ShardRange, StoredClip, load_clips, look_at
from jobs.look.recipe import LookRecipe
from jobs.look.report import describe_result
from jobs.look.verdicts import Verdicts, expect, judge
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.videos.listing import listing_digest, passed_over_of
from wm.datasets.videos.passed_over import describe
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.files.mirror import fetch, list_below, shown, uri_of
from wm.files.uris import is_remote, local_path
from wm.runs import Run, read_run
from wm.tables import write_table
from wm.viewer.clips import write_clips_page

_HUGE = 8.0
"""Files larger than so many times the median come last: one of them may take all of the budget."""


def run(recipe: LookRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Read clips within the budget and write the page, with the tables ``clips`` and ``pairs`` of ``annotate``.

    Args:
        recipe: Which videos, for how long, how key-frames and pairs are chosen.
        dry_run: Report what would be looked at, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: There is no video, or the folder is another run's.
        OSError: The disk is full or not writable.
    """
    deadline = time.monotonic() + (recipe.budget_s or float("inf"))
    # 1. Which clips, in which order.
    listing = list_videos(recipe.videos, layout=recipe.dataset_layout, annotations=recipe.annotations)
    passed_over = passed_over_of(listing)
    if not listing.num_rows:
        raise InputError(f"videos = {recipe.videos!r:.200} holds no video")
    digest = listing_digest(listing)
    out = Path(recipe.out) if recipe.out else default_out(recipe, digest)
    rows = list(islice(spread_rows(listing.column("class_label").to_pylist()), recipe.max_clips))
    stage = Run(out, "look", recipe, {"videos": digest})
    is_complete = stage.is_complete()
    # What another node has looked at.
    if uri_of(out) is not None and list_below(out, missing_ok=True):
        fetch(out)
    clips = load_clips(out)
    # 2. What earlier runs have left.
    pending = _order_pending(listing, rows, clips)
    for line in describe(passed_over):
        print(f"  {line}")
    if dry_run:
        done = f", {len(rows) - len(pending):,} of them are finished" if len(pending) < len(rows) else ""
        page = shown(out / "index.html")
        print(f"look: would look at {len(rows):,} of {listing.num_rows:,} clips{done}; page: {page}")
        return {}
    if is_complete and not pending:
        print(f"look: already complete in {shown(out)}\n  open {shown(out / 'index.html')}")
        return read_run(out) or {}
    # A page of fewer clips is a complete run too: more of them are looked at.
    if is_complete:
        stage.reopen()
    stage.start()
    for folder in ("looked", "page"):
        (out / folder).mkdir(exist_ok=True)
    # 3. Read, then write what is known by then.
    shards = _find_shards(listing, recipe, {*rows, *clips})
    with stage.timed("read_s"):
        _read(listing, shards, pending, recipe, out=out, deadline=deadline, total=len(rows))
    with stage.timed("page_s"):
        return _write(listing, shards, recipe, out, stage)


def _order_pending(listing: pa.Table, rows: Sequence[int], clips: Mapping[int, StoredClip]) -> list[int]:
    """List the rows that are not finished: first those never begun, very large files last."""
    pending = [row for row in rows if row not in clips or clips[row]["unfinished"]]
    uris: list[str] = listing.column("uri").take(pa.array(pending, pa.int64())).to_pylist()
    sizes = [_file_size(uri) for uri in uris]
    limit = _HUGE * float(np.median(sizes)) if sizes else 0.0
    order = sorted(range(len(pending)), key=lambda item: (pending[item] in clips, sizes[item] > limit))
    return [pending[item] for item in order]


def _file_size(uri: str) -> int:
    try:
        return 0 if is_remote(uri) else os.stat(local_path(uri)).st_size  # noqa: PTH116 - of any text
    except (OSError, ValueError):
        return 0


def _find_shards(listing: pa.Table, recipe: LookRecipe, rows: set[int]) -> dict[int, ShardRange]:
    """Map rows to the shard in which an annotation has them."""
    size = shard_size(listing.num_rows, recipe.videos_per_shard)
    starts = {row: row // size * size for row in rows}
    return {row: (start // size, start, min(size, listing.num_rows - start)) for row, start in starts.items()}


def _read(
    listing: pa.Table,
    shards: Mapping[int, ShardRange],
    pending: Sequence[int],
    recipe: LookRecipe,
    *,
    out: Path,
    deadline: float,
    total: int,
) -> None:
    if len(pending) < total:
        print(f"look: resuming, {total - len(pending):,} of {total:,} clips are finished")
    with progress_bar(total, "clip", "look", done=total - len(pending)) as bar:

        def show(video: ListedVideo, clip: StoredClip) -> None:
            # A failure is one of all rules.
            decoding = next(iter(clip["decodings"].values()), None)
            if decoding is None:
                bar.write(f"  not finished within the time: {video['key']}", file=sys.stderr)
                return
            if decoding.get("outcome") == "failed":
                bar.write(f"  not read: {decoding['reason']}: {decoding['detail']}", file=sys.stderr)
            bar.update()

        look_at(listing, shards, pending, recipe, out, deadline=deadline, on_clip=show)


def _write(
    listing: pa.Table,
    shards: Mapping[int, ShardRange],
    recipe: LookRecipe,
    out: Path,
    stage: Run,
) -> dict[str, Any]:
    """Write tables and page from all clips that are stored; returns the run's record."""
    # 1. Verdicts and counts by rule.
    passed_over = passed_over_of(listing)
    clips = load_clips(out)
    listing, notices = _show_beginning(listing, recipe, out, clips)
    shards = {**shards, **_find_shards(listing, recipe, set(clips) - set(shards))}
    verdicts = {rule: judge(listing, shards, clips, recipe, rule) for rule in recipe.rules()}
    own_verdicts = verdicts[recipe.keyframes.rule]
    if not own_verdicts.videos:
        raise InputError(
            f"no clip was read within budget_s = {recipe.budget_s:g} s; give more, or 0 for no limit, or cut long "
            "videos into segments (a list with uri, start_s, end_s)"
        )
    counts = {rule: count_rule(own, recipe) for rule, own in verdicts.items()}
    expectations = {rule: expect(listing, own) for rule, own in verdicts.items()}
    # 2. Tables of the chosen rule, as an annotation writes them.
    _write_tables(own_verdicts, recipe, out)
    # 3. The page.
    cards, failures = build_cards(listing, clips, verdicts, recipe)
    commands = [recipe.annotate_command(), _plan_command(recipe, out)]
    more = {
        "commands": commands,
        "changed": recipe.changed_settings(),
        "passed_over": describe(passed_over),
        "notices": notices,
    }
    data = build_page_data(
        listing,
        recipe,
        counts=counts,
        expectations=expectations,
        failures=failures,
        alternatives=count_alternatives(own_verdicts, recipe),
        more=more,
    )
    num_bytes = write_clips_page(out, _title(recipe), data, cards)
    png_bytes = [size for clip in clips.values() for size in clip["png_bytes"]]
    # 4. The record, from which a plan can start.
    totals = {
        "listed": listing.num_rows,
        **counts[recipe.keyframes.rule],
        "unfinished": sum(clip["unfinished"] for clip in clips.values()),
        "png_bytes_per_image": round(sum(png_bytes) / len(png_bytes)) if png_bytes else None,
        "page_bytes": num_bytes,
    }
    record = stage.finish(totals, passed_over=passed_over, page=shown(out / "index.html"))
    for notice in notices:
        print(f"  {notice}")
    print(describe_result(recipe, totals, expectations[recipe.keyframes.rule], commands, out))
    return record


def _show_beginning(
    listing: pa.Table, recipe: LookRecipe, out: Path, clips: dict[int, StoredClip]
) -> tuple[pa.Table, list[str]]:
    """Put the beginning of a clip in its place where none was read; returns the listing, and what the page says."""
    if not clips or not all(clip["unfinished"] for clip in clips.values()):
        return listing, []
    row = min(clips)
    beginning = preview(listing, row, recipe, out / "page")
    if beginning is None:
        return listing, []
    # Not stored: the next run begins the clip anew.
    listing, clips[row] = beginning
    notice = (
        f"No clip was read within {recipe.budget_s:g} s. This is a segment, the first {PREVIEW_S:g} s of one; "
        "budget_s=0 reads all of it, and a list with uri, start_s, end_s takes it in segments."
    )
    return listing, [notice]


def _write_tables(verdicts: Verdicts, recipe: LookRecipe, out: Path) -> None:
    # One file each, written anew: a look is small.
    videos = [verdicts.videos[row] for row in sorted(verdicts.videos)]
    pairs = [pair.row(recipe.dataset, recipe.filters) for pair in verdicts.all_pairs()]
    write_table(clip_rows(videos), out / "clips" / "part-000000.parquet", CLIPS_SCHEMA)
    write_table(pairs, out / "pairs" / "part-000000.parquet", PAIRS_SCHEMA)


def _plan_command(recipe: LookRecipe, out: Path) -> str:
    rates = 'rates=["keyframes.json", "annotate.json"]'
    return f"wm plan plan/cluster {shlex.join([rates, f'videos={recipe.videos}', f'from_run={shown(out)}'])}"


def _title(recipe: LookRecipe) -> str:
    name = recipe.videos if is_remote(recipe.videos) else os.path.abspath(local_path(recipe.videos))  # noqa: PTH100
    return name.rstrip("/").rpartition("/")[2] or name


def to_settings(arguments: Sequence[str]) -> list[str]:
    """Give the videos, which stand alone on the command line, their key.

    Args:
        arguments: Of the command line.

    Returns:
        The same with ``videos=`` before the one path.

    Raises:
        InputError: Several paths are given: a shell has expanded a glob.
    """
    paths = [text for text in arguments if _is_path(text)]
    if len(paths) > 1:
        raise InputError(
            f"{len(paths):,} paths ({paths[0]!r:.80}, {paths[1]!r:.80}, …); expected one folder, list or video, or a "
            "glob in quotes, such as wm look 'clips/*.mp4'"
        )
    return [f"videos={text}" if _is_path(text) else text for text in arguments]


def _is_path(text: str) -> bool:
    """Return whether an argument names videos: it is no option, no recipe file, no key=value."""
    if text.startswith("-") or text.lower().endswith(".toml"):
        return False
    key = re.match(r"([A-Za-z_]\w*)[\w.]*=", text)
    # A folder may be called a=b; a key of the recipe comes first.
    return key is None or (key[1] not in LookRecipe.model_fields and os.path.exists(text))  # noqa: PTH110 - any text


def main() -> int:
    """Run the command line; return its exit status."""
    # Before the recipe is parsed: a path alone is no setting.
    try:
        arguments = to_settings(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return cli_main(LookRecipe, run, name="look", description=__doc__ or "", argv=arguments)
