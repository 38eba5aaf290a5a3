"""Write the page: ``index.html`` and a folder ``page`` beside it with style, scripts, data and images.

The columns that filters and cards need stand in one script, everything else and the images in blocks of
``BLOCK`` rows that the page loads as they are looked at.
"""

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from wm.runs import write_text
from wm.viewer.details import INDEX_COLUMNS, details, index_columns
from wm.viewer.pictures import Sprite, make_sprite
from wm.viewer.rows import Row, read_rows
from wm.viewer.sample import Sample, draw, read_group
from wm.viewer.scripts import script
from wm.viewer.source import Source, open_parquet
from wm.viewer.summary import figures

BLOCK = 8
"""Rows of a block: one image file and one script."""

WEBP_QUALITY = 72
_REJECT_COLUMNS = ["class_label", "uri", "stage", "detail"]
_LONGEST_TEXT = 500


@dataclass(frozen=True)
class Limits:
    """``rows``: of triplets, and again of rejects. ``picture_px``: long side of a stored image at most.
    ``threads``: that encode images."""

    rows: int = 10_000
    picture_px: int = 256
    threads: int = 2


@dataclass
class _Columns:
    """What is known of every row at once; ``unreadable`` counts images."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    sizes: list[tuple[int, int, int, int]] = field(default_factory=list)
    sprites: list[list[int]] = field(default_factory=list)

    @property
    def unreadable(self) -> int:
        return sum((size[0] == 0) + (size[2] == 0) for size in self.sizes)


@dataclass(frozen=True)
class Plan:
    """Which rows the page will hold. ``order``: triplet id → its turn in the selection."""

    triplets: Sample
    rejects: Sample
    order: dict[str, int]


def plan_page(source: Source, limits: Limits) -> Plan:
    """Choose the rows.

    Triplets are stratified by class (selected ones before all others), rejects by outcome and reason.
    """
    order = _load_selection(source.selection)
    ids = pa.array(list(order), pa.string())

    def triplet_stratum(table: pa.Table) -> Any:
        labels = _to_texts(table["class_label"])
        if not order:
            return labels
        is_selected = pc.if_else(pc.is_in(_to_texts(table["triplet_id"]), value_set=ids), "1", "0")
        return pc.binary_join_element_wise(is_selected, labels, "\x1f")

    def reject_stratum(table: pa.Table) -> Any:
        return pc.binary_join_element_wise(_to_texts(table["outcome"]), _to_texts(table["reason"]), "\x1f")

    columns = ["class_label", "triplet_id"] if order else ["class_label"]
    first = (lambda name: name.startswith("1\x1f")) if order else (lambda _: False)
    triplets = draw(source.triplets, columns, triplet_stratum, limits.rows, first)
    return Plan(triplets, draw(source.rejects, ["outcome", "reason"], reject_stratum, limits.rows), order)


def write_page(
    source: Source,
    plan: Plan,
    out: Path,
    limits: Limits,
    *,
    title: str,
    on_rows: Callable[[int], object] = lambda _: None,
) -> dict[str, int]:
    """Write ``out/index.html`` and ``out/page``; returns counts. Both appear whole or not at all, the page's folder
    first. ``on_rows``: called with the number of rows just written.
    """
    temporary, folder = out / ".page.tmp", out / "page"
    # Left by a run that was killed: its blocks would mix with the new ones.
    for stale in (temporary, folder):
        if stale.exists():
            shutil.rmtree(stale)
    temporary.mkdir(parents=True)
    try:
        columns = _write_blocks(read_rows(source, plan.triplets.picks), temporary, limits, on_rows)
        data = _build_data(source, plan, columns)
        rows = index_columns(columns.rows, columns.sizes, plan.order)
        data["chosen"] = sum(turn is not None for turn in rows["order"]) if source.selection else None
        (temporary / "index.js").write_text(script("index", data, rows), encoding="ascii")
        for resource in _web().iterdir():
            if resource.name.endswith((".js", ".css")):
                (temporary / resource.name).write_bytes(resource.read_bytes())
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    html = _web().joinpath("index.html").read_text(encoding="utf-8").replace("{{title}}", escape(title))
    write_text(out / "index.html", html)
    return {
        "triplets": plan.triplets.total,
        "shown": len(columns.rows),
        "rejects": plan.rejects.total,
        "unreadable_pictures": columns.unreadable,
        "bytes": sum(file.stat().st_size for file in [*folder.iterdir(), out / "index.html"]),
    }


def _web() -> Any:
    return files("wm.viewer") / "web"


def _to_texts(values: Any) -> Any:
    return pc.fill_null(pc.cast(values.combine_chunks(), pa.string()), "")


def _load_selection(paths: Iterable[Path]) -> dict[str, int]:
    """Load each chosen triplet's turn in the selection (the row's number where the table has no ``order``)."""
    order: dict[str, int] = {}
    for path in paths:
        with open_parquet(path) as parquet:
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
            pairs = [(_image_bytes(row, "source_image"), _image_bytes(row, "target_image")) for row in block]
            # Images leave memory with their block: the columns of all rows stay until the end.
            for row in block:
                del row.triplet["source_image"], row.triplet["target_image"]
            waiting.append((block, pool.submit(make_sprite, pairs, limits.picture_px, WEBP_QUALITY)))
            if len(waiting) > 2 * limits.threads:
                on_rows(_finish_block(*waiting.popleft(), folder, columns))
        while waiting:
            on_rows(_finish_block(*waiting.popleft(), folder, columns))
    return columns


def _iterate_blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while block := list(islice(rows, BLOCK)):
        yield block


def _image_bytes(row: Row, name: str) -> bytes | None:
    image = row.triplet[name]
    return image.get("bytes") if image else None  # a path alone is not followed: it may name any file


def _finish_block(block: list[Row], sprite_task: Future[Sprite], folder: Path, columns: _Columns) -> int:
    number, sprite = len(columns.sprites), sprite_task.result()
    (folder / f"pictures-{number:05d}.webp").write_bytes(sprite.data)
    (folder / f"rows-{number:05d}.js").write_text(script("block", number, details(block)), encoding="ascii")
    columns.sprites.append([*sprite.size_px, *sprite.cell_px])
    columns.sizes += sprite.sizes_px
    columns.rows += [{name: row.triplet[name] for name in INDEX_COLUMNS} for row in block]
    return len(block)


def _build_data(source: Source, plan: Plan, columns: _Columns) -> dict[str, Any]:
    triplets, rejects = plan.triplets, plan.rejects
    names = triplets.counts
    classes = len({name.split("\x1f", 1)[1] for name in names} if plan.order else names)
    notes = []
    # A sample must not be taken for the whole data set.
    if triplets.taken < triplets.total:
        first = "; selected triplets come first" if source.selection else ""
        notes.append(
            f"A sample: {triplets.taken:,} of {triplets.total:,} triplets, each class in proportion and evenly over "
            f"its rows{first}. limit= sets how many."
        )
    if columns.unreadable:
        word = "image" if columns.unreadable == 1 else "images"
        notes.append(f"{columns.unreadable:,} {word} could not be read: shown as missing.")
    reasons = sorted(rejects.counts.items(), key=lambda item: (-item[1], item[0]))
    number = {name: position for position, (name, _) in enumerate(reasons)}
    return {
        "figures": figures(source.record, triplets, rejects, classes),
        "notes": notes,
        "block": BLOCK,
        "sprites": columns.sprites,
        "rejects": {
            "total": rejects.total,
            "reasons": [
                dict(zip(("outcome", "reason"), name.split("\x1f", 1), strict=True)) | {"count": count}
                for name, count in reasons
            ],
            "rows": list(_iterate_rejects(rejects, number)),
        },
    }


def _iterate_rejects(rejects: Sample, number: dict[str, int]) -> Iterator[list[Any]]:
    for pick in rejects.picks:
        with open_parquet(pick.file) as parquet:
            table = read_group(parquet, pick.file, pick.group, ["outcome", "reason", *_REJECT_COLUMNS])
        for row in table.take(pa.array(pick.rows)).to_pylist():
            texts = [(row[name] or "")[:_LONGEST_TEXT] for name in _REJECT_COLUMNS]
            yield [number[f"{row['outcome'] or ''}\x1f{row['reason'] or ''}"], *texts]
