"""Look at your own videos before any model is there: motion curves, key-frames and proposed pairs, as a page.

    wm look VIDEOS
    wm look 'clips/*.mp4' keyframes.max_keyframes=8 filters.static=on

VIDEOS is a folder, a quoted glob, a list or one file, local or remote, as annotate takes it. Within budget_s seconds
clips from all over the set are read, and the page that opens in a browser shows what an annotation with these settings
would make of them. The same command goes on with further clips; nothing is written among the videos.
"""

import hashlib
import json
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

from jobs.annotate.shards import shard_size, sole_writer
from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA, ListedVideo, clip_rows
from jobs.look.cards import build_cards, build_page_data, count_other_settings, count_rule
from jobs.look.order import spread_rows
from jobs.look.reading import Cut, LookedClip, load_looked, look_at
from jobs.look.recipe import LookRecipe
from jobs.look.report import describe_result
from jobs.look.verdicts import Judged, expect, judge
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.videos.folders import is_glob
from wm.datasets.videos.listing import listing_digest, passed_over_of
from wm.datasets.videos.passed_over import describe
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
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
        reasons = "; passed over: " + "; ".join(describe(passed_over)) if passed_over else ""
        raise InputError(f"videos = {recipe.videos!r:.200} holds no video{reasons}")
    digest = listing_digest(listing)
    out = Path(recipe.out) if recipe.out else default_out(recipe, digest)
    rows = list(islice(spread_rows(listing.column("class_label").to_pylist()), recipe.max_clips))
    stage = Run(out, "look", recipe, {"videos": digest})
    is_complete = stage.is_complete()
    looked = load_looked(out)
    # 2. What earlier runs have left.
    pending = _order_pending(listing, rows, looked)
    for line in describe(passed_over):
        print(f"  {line}")
    if dry_run:
        done = f", {len(rows) - len(pending):,} of them are finished" if len(pending) < len(rows) else ""
        print(f"look: would look at {len(rows):,} of {listing.num_rows:,} clips{done}; page: {out / 'index.html'}")
        return {}
    if is_complete and not pending:
        print(f"look: already complete in {out}\n  open {out / 'index.html'}")
        return read_run(out) or {}
    if is_complete:
        stage.reopen()
    stage.start()
    for folder in ("looked", "page"):
        (out / folder).mkdir(exist_ok=True)
    with sole_writer(out, "look"):
        # 3. Read, then write what is known by then.
        cuts = _cut_rows(listing, recipe, {*rows, *looked})
        with stage.timed("read_s"):
            _read(listing, cuts, pending, recipe, out, deadline, len(rows))
        with stage.timed("page_s"):
            return _write(listing, cuts, recipe, out, stage, passed_over)


def default_out(recipe: LookRecipe, digest: str) -> Path:
    """Return the folder of a run whose recipe names none: other videos and other settings have other folders.

    Args:
        recipe: Its identity settings are part of the name.
        digest: Of the listing.
    """
    settings = type(recipe).identity_settings(recipe.model_dump(mode="json"))
    text = json.dumps([settings, digest], sort_keys=True)
    spec = recipe.videos if is_remote(recipe.videos) else os.path.abspath(local_path(recipe.videos))  # noqa: PTH100
    words = [part for part in spec.split("/") if part and not is_glob(part)] or ["videos"]
    name = f"{safe_name(words[-1])}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    if is_remote(recipe.videos) or not _is_among_videos(Path.cwd(), local_path(recipe.videos)):
        return Path("runs", "look", name)
    # Nothing is written among the videos, where the next listing would come across it.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - stays if unknown
    return Path(cache, "wm", "look", name)


def _is_among_videos(folder: Path, videos: str) -> bool:
    """Return whether a folder is one in which the specification looks for videos."""
    fixed = Path(videos)
    while is_glob(fixed.name) or fixed.is_file():
        fixed = fixed.parent
    goes_deeper = Path(videos).is_dir() or "**" in videos
    here, there = folder.resolve(), fixed.resolve()
    return here.is_relative_to(there) if goes_deeper else here == there


def safe_name(text: str) -> str:
    """Convert a text to a part of a file name: letters, digits, dot, dash and underscore, its last 60 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[-60:] or "videos"


def _order_pending(listing: pa.Table, rows: Sequence[int], looked: Mapping[int, LookedClip]) -> list[int]:
    """List the rows that are not finished: first those never begun, very large files last."""
    pending = [row for row in rows if row not in looked or looked[row]["unfinished"]]
    uris: list[str] = listing.column("uri").take(pa.array(pending, pa.int64())).to_pylist()
    sizes = [_file_size(uri) for uri in uris]
    limit = _HUGE * float(np.median(sizes)) if sizes else 0.0
    order = sorted(range(len(pending)), key=lambda item: (pending[item] in looked, sizes[item] > limit))
    return [pending[item] for item in order]


def _file_size(uri: str) -> int:
    try:
        return 0 if is_remote(uri) else os.stat(local_path(uri)).st_size  # noqa: PTH116 - of any text
    except (OSError, ValueError):
        return 0


def _cut_rows(listing: pa.Table, recipe: LookRecipe, rows: set[int]) -> dict[int, Cut]:
    """Map rows to the shard in which an annotation has them."""
    size = shard_size(listing.num_rows, recipe.videos_per_shard)
    starts = {row: row // size * size for row in rows}
    return {row: (start // size, start, min(size, listing.num_rows - start)) for row, start in starts.items()}


def _read(
    listing: pa.Table,
    cuts: Mapping[int, Cut],
    pending: Sequence[int],
    recipe: LookRecipe,
    out: Path,
    deadline: float,
    total: int,
) -> None:
    if len(pending) < total:
        print(f"look: resuming, {total - len(pending):,} of {total:,} clips are finished")
    with progress_bar(total, "clip", "look", done=total - len(pending)) as bar:

        def show(video: ListedVideo, clip: LookedClip) -> None:
            decoding = next(iter(clip["decodings"].values()), None)
            if decoding is None:
                bar.write(f"  not finished within the time: {video['key']}", file=sys.stderr)
                return
            if decoding.get("outcome") == "failed":
                bar.write(f"  not read: {decoding['reason']}: {decoding['detail']}", file=sys.stderr)
            bar.update()

        look_at(listing, cuts, pending, recipe, out, deadline=deadline, on_clip=show)


def _write(
    listing: pa.Table,
    cuts: Mapping[int, Cut],
    recipe: LookRecipe,
    out: Path,
    stage: Run,
    passed_over: Mapping[str, object],
) -> dict[str, Any]:
    """Write tables and page from all clips that are stored; returns the run's record."""
    # 1. Verdicts and counts by rule.
    looked = load_looked(out)
    cuts = {**cuts, **_cut_rows(listing, recipe, set(looked) - set(cuts))}
    judged = {rule: judge(listing, cuts, looked, recipe, rule) for rule in recipe.rules()}
    chosen = judged[recipe.keyframes.rule]
    if not chosen.videos:
        raise InputError(
            f"no clip was read within budget_s = {recipe.budget_s:g} s; give more, or 0 for no limit, or cut long "
            "videos into segments (a list with uri, start_s, end_s)"
        )
    counts = {rule: count_rule(found, recipe) for rule, found in judged.items()}
    expected = {rule: expect(listing, found) for rule, found in judged.items()}
    # 2. Tables of the chosen rule, as an annotation writes them.
    _write_tables(chosen, recipe, out)
    # 3. The page.
    cards, unread = build_cards(listing, looked, judged, recipe)
    commands = [recipe.annotate_command(), _plan_command(recipe, out)]
    more = {"commands": commands, "changed": recipe.changed_settings(), "passed_over": describe(passed_over)}
    data = build_page_data(listing, recipe, counts, expected, unread, count_other_settings(chosen, recipe), more)
    num_bytes = write_clips_page(out, _title(recipe), data, cards)
    png_bytes = [size for clip in looked.values() for size in clip["png_bytes"]]
    totals = {
        "listed": listing.num_rows,
        **counts[recipe.keyframes.rule],
        "unfinished": sum(clip["unfinished"] for clip in looked.values()),
        "png_bytes_per_image": round(sum(png_bytes) / len(png_bytes)) if png_bytes else None,
        "page_bytes": num_bytes,
    }
    record = stage.finish(totals, passed_over=passed_over, page=str(out / "index.html"))
    print(describe_result(recipe, totals, expected[recipe.keyframes.rule], commands, out))
    return record


def _write_tables(judged: Judged, recipe: LookRecipe, out: Path) -> None:
    videos = [judged.videos[row] for row in sorted(judged.videos)]
    pairs = [pair.row(recipe.dataset, recipe.filters) for pair in judged.all_pairs()]
    write_table(clip_rows(videos), out / "clips" / "part-000000.parquet", CLIPS_SCHEMA)
    write_table(pairs, out / "pairs" / "part-000000.parquet", PAIRS_SCHEMA)


def _plan_command(recipe: LookRecipe, out: Path) -> str:
    rates = 'rates=["keyframes.json", "annotate.json"]'
    return f"wm plan plan/cluster {shlex.join([rates, f'videos={recipe.videos}', f'from_run={out}'])}"


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
    try:
        arguments = to_settings(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return cli_main(LookRecipe, run, name="look", description=__doc__ or "", argv=arguments)
