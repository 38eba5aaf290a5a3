"""Write the page: ``index.html`` and a folder ``page`` beside it with style, scripts, data and images.

The columns that filters and cards need are in one script, everything else and the images in blocks of ``BLOCK`` rows
that the page loads as they are looked at.
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wm.runs import write_text
from wm.tables import open_parquet
from wm.templates import render_template
from wm.viewer.details import build_details, build_index, to_index_row
from wm.viewer.rows import ImageCell, IndexRow, Row, read_rows
from wm.viewer.sample import Sample, read_group, sample_rows
from wm.viewer.scripts import build_script
from wm.viewer.source import Source
from wm.viewer.sprites import Sprite, build_sprite
from wm.viewer.summary import list_figures

BLOCK = 8
"""Rows of a block: one image file and one script."""

WEBP_QUALITY = 72
WEB_FILES = (
    "viewer.css", "elements.js", "curve.js", "state.js", "grid.js", "detail.js", "rejects.js", "main.js",
)  # fmt: skip
_REJECT_COLUMNS = ["class_label", "uri", "stage", "detail"]
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Limits:
    """Limits of the page."""

    rows: int = 10_000  # triplets, and again rejects
    image_px: int = 256  # max long side of a stored image
    threads: int = 2  # that encode images


@dataclass
class _Columns:
    """What the page holds of every row at once."""

    rows: list[IndexRow] = field(default_factory=list)
    sizes: list[tuple[int, int, int, int]] = field(default_factory=list)  # of a row's two images, px
    sprites: list[list[int]] = field(default_factory=list)  # of a block: sizes of its sprite and of a cell, px

    @property
    def unreadable(self) -> int:
        """Return the number of images that could not be read."""
        return sum((size[0] == 0) + (size[2] == 0) for size in self.sizes)


@dataclass(frozen=True)
class Plan:
    """Which rows the page will hold."""

    triplets: Sample
    rejects: Sample
    order: dict[str | None, int]  # triplet id → its turn in the selection


def plan_page(source: Source, limits: Limits) -> Plan:
    """Choose the rows.

    Args:
        source: The tables. Triplets are stratified by class (selected ones before all others), rejects by outcome and
            reason.
        limits: How many rows.

    Returns:
        The rows of both tables.

    Raises:
        InputError: It names a damaged file.
    """
    order = _load_selection(source.selection)
    ids = pa.array(list(order), pa.string())

    def triplet_stratum(table: pa.Table) -> pa.Array:
        labels = _to_texts(table["class_label"])
        if not order:
            return labels
        is_selected = pc.if_else(pc.is_in(_to_texts(table["triplet_id"]), value_set=ids), "1", "0")
        return pc.binary_join_element_wise(is_selected, labels, "\x1f")

    def reject_stratum(table: pa.Table) -> pa.Array:
        return pc.binary_join_element_wise(_to_texts(table["outcome"]), _to_texts(table["reason"]), "\x1f")

    # Ids are a long column: they are read only where a selection needs them.
    columns = ["class_label", "triplet_id"] if order else ["class_label"]
    is_first = (lambda name: name.startswith("1\x1f")) if order else (lambda _: False)
    triplets = sample_rows(source.triplets, columns, triplet_stratum, limits.rows, is_first)
    rejects = sample_rows(source.rejects, ["outcome", "reason"], reject_stratum, limits.rows)
    return Plan(triplets, rejects, order)


def write_page(
    source: Source,
    plan: Plan,
    out: Path,
    limits: Limits,
    *,
    title: str,
    on_rows: Callable[[int], object] = lambda _: None,
) -> dict[str, int]:
    """Write ``out/index.html`` and ``out/page``, each completely or not at all, the page's folder first.

    Args:
        source: The tables.
        plan: The rows.
        out: Folder of the page.
        limits: Sizes of the images, and threads.
        title: Headline.
        on_rows: Called with the number of rows just written.

    Returns:
        Counts: ``triplets`` and ``rejects`` of the data set, triplets ``shown``, ``unreadable_pictures``, ``bytes``.

    Raises:
        InputError: It names a damaged file.
    """
    # 1. The page's folder, complete before it gets its name.
    temporary, folder = out / ".page.tmp", out / "page"
    # Left by a run that was killed: its blocks would mix with the new ones.
    for stale in (temporary, folder):
        if stale.exists():
            shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    try:
        columns = _write_blocks(read_rows(source, plan.triplets.picks), temporary, limits, on_rows)
        data = _build_data(source, plan, columns)
        data["chosen"] = sum(row["triplet_id"] in plan.order for row in columns.rows) if source.selection else None
        index = build_script("index", data, build_index(columns.rows, columns.sizes, plan.order))
        (temporary / "index.js").write_text(index, encoding="ascii")
        for name in WEB_FILES:
            (temporary / name).write_bytes((files("wm.viewer") / "web" / name).read_bytes())
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    # 2. The document, last: where it is, the page opens.
    write_text(out / "index.html", render_template("wm.viewer", "web", "index.html", title=title))
    return {
        "triplets": plan.triplets.total,
        "shown": len(columns.rows),
        "rejects": plan.rejects.total,
        "unreadable_pictures": columns.unreadable,
        "bytes": sum(file.stat().st_size for file in [*folder.iterdir(), out / "index.html"]),
    }


def _to_texts(values: pa.ChunkedArray) -> pa.Array:
    return pc.fill_null(pc.cast(values.combine_chunks(), pa.string()), "")


def _load_selection(paths: Iterable[Path]) -> dict[str | None, int]:
    """Load each chosen triplet's turn in the selection (the row's number where the table has no ``order``)."""
    order: dict[str | None, int] = {}
    for path in paths:
        with open_parquet(path) as parquet:
            # A selection may have millions of rows: a group at a time is a list of dicts.
            for group in range(parquet.num_row_groups):
                for row in read_group(parquet, path, group, ["triplet_id", "order"]).to_pylist():
                    order[row["triplet_id"]] = row["order"] if row["order"] is not None else len(order)
    return order


def _write_blocks(rows: Iterator[Row], folder: Path, limits: Limits, on_rows: Callable[[int], object]) -> _Columns:
    """Write blocks, images in a few threads (Pillow and zlib release the interpreter), two blocks each ahead."""
    columns = _Columns()
    waiting: deque[tuple[list[Row], Future[Sprite]]] = deque()
    with ThreadPoolExecutor(limits.threads) as pool:
        for block in _iterate_blocks(rows):
            pairs = [
                (_get_bytes(row.triplet["source_image"]), _get_bytes(row.triplet["target_image"])) for row in block
            ]
            # Images leave memory with their block: the columns of all rows stay until the end.
            for row in block:
                del row.triplet["source_image"], row.triplet["target_image"]
            waiting.append((block, pool.submit(build_sprite, pairs, limits.image_px, WEBP_QUALITY)))
            # Blocks are finished in order, so that their numbers are those of the rows.
            if len(waiting) > 2 * limits.threads:
                on_rows(_finish_block(*waiting.popleft(), folder, columns))
        while waiting:
            on_rows(_finish_block(*waiting.popleft(), folder, columns))
    return columns


def _iterate_blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while block := list(islice(rows, BLOCK)):
        yield block


def _get_bytes(image: ImageCell | None) -> bytes | None:
    return image.get("bytes") if image else None


def _finish_block(block: list[Row], sprite_task: Future[Sprite], folder: Path, columns: _Columns) -> int:
    number, sprite = len(columns.sprites), sprite_task.result()
    (folder / f"pictures-{number:05d}.webp").write_bytes(sprite.data)
    (folder / f"rows-{number:05d}.js").write_text(build_script("block", number, build_details(block)), encoding="ascii")
    columns.sprites.append([*sprite.size_px, *sprite.cell_px])
    columns.sizes += sprite.sizes_px
    columns.rows += [to_index_row(row.triplet) for row in block]
    return len(block)


def _build_data(source: Source, plan: Plan, columns: _Columns) -> dict[str, object]:
    triplets, rejects = plan.triplets, plan.rejects
    names = triplets.counts
    classes = len({name.split("\x1f", 1)[1] for name in names} if plan.order else names)
    notes = []
    # A sample must not be taken for the complete data set.
    if triplets.size < triplets.total:
        first = "; selected triplets come first" if source.selection else ""
        notes.append(
            f"A sample: {triplets.size:,} of {triplets.total:,} triplets, each class in proportion and evenly over "
            f"its rows{first}. limit= sets how many."
        )
    if columns.unreadable:
        word = "image" if columns.unreadable == 1 else "images"
        notes.append(f"{columns.unreadable:,} {word} could not be read: shown as missing.")
    # The most frequent reason comes first.
    reasons = sorted(rejects.counts.items(), key=lambda item: (-item[1], item[0]))
    numbers = {name: position for position, (name, _) in enumerate(reasons)}
    return {
        "figures": list_figures(source.record, triplets, rejects, classes),
        "notes": notes,
        "block": BLOCK,
        "sprites": columns.sprites,
        "rejects": {
            "total": rejects.total,
            "reasons": [
                dict(zip(("outcome", "reason"), name.split("\x1f", 1), strict=True)) | {"count": count}
                for name, count in reasons
            ],
            "rows": list(_iterate_rejects(rejects, numbers)),
        },
    }


def _iterate_rejects(rejects: Sample, numbers: dict[str, int]) -> Iterator[list[int | str]]:
    for pick in rejects.picks:
        with open_parquet(pick.file) as parquet:
            table = read_group(parquet, pick.file, pick.group, ["outcome", "reason", *_REJECT_COLUMNS])
        for row in table.take(pa.array(pick.rows)).to_pylist():
            # A detail may hold the complete output of a decoder.
            texts = [(row[name] or "")[:_LONGEST_TEXT] for name in _REJECT_COLUMNS]
            yield [numbers[f"{row['outcome'] or ''}\x1f{row['reason'] or ''}"], *texts]
