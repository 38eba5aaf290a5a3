"""Write the README.md of a data set.

It says what the set holds; by its YAML head ``load_dataset(folder)`` finds the tables.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from wm.cards import license_lines
from wm.errors import InputError
from wm.runs import write_text
from wm.tables import has_files, read_footers, table_files

TABLES: dict[str, str] = {
    "triplets": "source image, action, target image",
    "predictions": "one row a distinct predicted image of a triplet, with system, run and candidates",
    "actions": "actions that a system read from the pairs of a bench",
    "answers": "answers of models to questions about images, and their likelihoods of the options",
    "rejects": "what was left out, at which stage, and why",
    "clips": "one row a video: size, length, key-frames, motion curve",
    "pairs": "one row a proposed pair, kept or not, with the filters' scores",
    "questions": "the questions that were asked; images are in the benchmark's own files",
    "selection": "ids of the chosen triplets, with score and rank; no images",
}
"""Folders of a data set's output that become configurations, the default first."""

_SPLIT = re.compile(r"\w+(\.\w+)*")


def write_dataset_card(
    out: str | Path,
    *,
    title: str,
    license: str = "",
    split: str = "train",
    rows: Mapping[str, int] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write ``out/README.md``, so that ``datasets.load_dataset(out)`` gives the triplets, ``load_dataset(out,
    "rejects")`` what was left out, and so on for each of :data:`TABLES` that has a file.

    Args:
        out: Folder of the data set.
        title: Heading of the card.
        license: Of the images and texts, "" = not given.
        split: Name of the one split.
        rows: Rows by table, where the caller has counted them; the other tables are counted from their files' footers.
        notes: Further lines of Markdown, after the list of tables.

    Returns:
        The path.

    Raises:
        InputError: ``out`` has no table, or a file of it cannot be read.
    """
    folder = Path(out)
    counts = dict(rows or {})
    tables = [name for name in TABLES if has_files(folder / name) and table_files(folder / name)]
    if not tables:
        raise InputError(f"{folder} has none of the tables {', '.join(TABLES)}; there is nothing to describe")
    for name in tables:
        counts.setdefault(name, _count(table_files(folder / name)))
    head = [*license_lines([license]), "configs:"]
    for number, name in enumerate(tables):
        # The first table is the default: triplets, also where they have no row.
        head += [f"- config_name: {name}", *["  default: true"] * (number == 0), "  data_files:"]
        head += [f"  - split: {split if _SPLIT.fullmatch(split) else 'train'}", f"    path: {name}/*.parquet"]
    path = folder / "README.md"
    write_text(
        path, "\n".join(["---", *head, "---", "", *_body(folder, title, license, tables, counts, notes=notes)]) + "\n"
    )
    return path


def split_names(splits: Sequence[str]) -> list[str]:
    """Name splits as a card may: letters, digits, underscores and dots; no two of one name.

    Args:
        splits: The data set's own names, in order.

    Returns:
        A name for each.
    """
    # A number makes two splits of one plain name differ.
    names: list[str] = []
    for split in splits:
        plain = split if _SPLIT.fullmatch(split) else re.sub(r"\W+", "_", split).strip("_") or "train"
        number = 2
        name = plain
        while name in names:
            name, number = f"{plain}_{number}", number + 1
        names.append(name)
    return names


def _body(
    folder: Path, title: str, license: str, tables: Sequence[str], counts: Mapping[str, int], *, notes: Sequence[str]
) -> list[str]:
    # 1. What each table holds.
    lines = [f"# {' '.join(title.split())}", "", "| table | rows | what |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {counts[name]:,} | {TABLES[name]} |" for name in tables]
    lines += ["", *notes, *[""] * bool(notes)]
    if "triplets" in tables:
        licence = " ".join(license.split()) or "not given"
        lines += [f"Licence: {licence}. Every triplet carries its own in `license`.", ""]
    # 2. How to load them.
    lines += ["```python", "from datasets import load_dataset", ""]
    images = "; images come as PIL images" if tables[0] in ("triplets", "predictions") else ""
    lines += [f'{tables[0]} = load_dataset("{folder.name}")  # the path of this folder{images}']
    lines += [f'{name} = load_dataset("{folder.name}", "{name}")' for name in tables[1:]]
    lines += ["```", ""]
    # 3. What `datasets` cannot open as it is.
    if empty := [f"`{name}`" for name in tables if not counts[name]]:
        lines += [
            f"Without rows: {', '.join(empty)}. `load_dataset` can open such a table with `streaming=True` only (else",
            "it says that the split corresponds to no data); pandas, Ray Data and DuckDB give its columns and no row.",
            "",
        ]
    if "triplets" in tables:
        lines += [
            "Without a card: `pandas.read_parquet`, `ray.data.read_parquet` and DuckDB's `read_parquet` on",
            "`triplets/*.parquet`; an image is a struct of `bytes` and `path`.",
        ]
    return lines


def _count(files: Sequence[Path]) -> int:
    # From the footers: no row is read.
    return sum(footer.num_rows for footer in read_footers(files))
