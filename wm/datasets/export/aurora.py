"""Write AURORA's layout: one JSON list a split, ``out/SPLIT.json``, and image files in ``out/images/PART``.

A row is ``{input, output, instruction, task}`` and the provenance columns beside them, so that
:mod:`wm.datasets.layouts.aurora` (and AURORA's own code, which looks at those keys alone) reads it back.
"""

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO
from urllib.parse import quote

from wm.cards import license_lines, license_sentence
from wm.datasets.card import split_names
from wm.datasets.export.plan import Part, Plan
from wm.datasets.export.rows import (
    IMAGES,
    PROVENANCE,
    Context,
    PartFacts,
    column_dtype,
    count_licenses,
    file_key,
    image_of,
    iterate_rows,
    json_row,
)
from wm.files.atomic import temporary_path
from wm.files.mirror import publish
from wm.runs import write_text


def write(context: Context, part: Part, tick: Callable[[int], object]) -> PartFacts:
    """Write the images of a part as one folder, its rows as JSON lines among the marks.

    Args:
        context: What all parts share.
        part: Its rows.
        tick: Called with the number of rows written since.

    Returns:
        The part's facts.
    """
    out, name = Path(context.out), f"{part.number:06d}"
    # A folder a part: a million files in one are slow to list.
    folder = out / "images" / name
    hidden = temporary_path(folder)
    hidden.mkdir(parents=True)
    lines, licenses = [], Counter[str]()
    for row in iterate_rows(part, context):
        paths = {}
        for key, column in zip(("input", "output"), IMAGES, strict=True):
            data, suffix = image_of(row, column, context)
            file = f"{file_key(row['triplet_id'])}-{column.removesuffix('_image')}.{suffix}"
            (hidden / file).write_bytes(data)
            paths[key] = f"images/{name}/{file}"
        entry = paths | {"instruction": row["action"], "task": row["class_label"] or ""} | json_row(row)
        lines.append(json.dumps(entry, ensure_ascii=False))
        licenses[row["license"] or ""] += 1
        tick(1)
    (out / ".parts").mkdir(parents=True, exist_ok=True)
    write_text(_fragment(out, part.number), "".join(f"{line}\n" for line in lines))
    # A folder of this name is of a part that was not marked: no other is written again.
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(hidden, folder)
    publish(folder)
    publish(_fragment(out, part.number))
    return {"rows": len(lines), "licenses": dict(licenses)}


def finish(context: Context, plan: Plan, facts: Sequence[PartFacts]) -> None:
    """Join the fragments into one JSON list a split, a line a row, without holding them.

    Args:
        context: What all parts share.
        plan: What was exported.
        facts: Of each part, in order.
    """
    # Line by line: the list of a million rows would not fit into memory.
    out = Path(context.out)
    names: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for part in plan.parts:
            with _fragment(out, part.number).open(encoding="utf-8") as fragment:
                for line in fragment:
                    split = json.loads(line)["split"] or "train"
                    if split not in files:
                        names[split] = f"{quote(split, safe=' ')}.json"
                        files[split] = stack.enter_context((out / f".{names[split]}.tmp").open("w", encoding="utf-8"))
                        files[split].write("[\n")
                    else:
                        files[split].write(",\n")
                    files[split].write(line.rstrip("\n"))
        # The brackets last: only a complete list is JSON.
        for file in files.values():
            file.write("\n]\n")
    for name in names.values():
        os.replace(out / f".{name}.tmp", out / name)
    write_text(out / "README.md", _card(plan, names, facts))


def _card(plan: Plan, files: Mapping[str, str], facts: Sequence[PartFacts]) -> str:
    """Build the data-set card: ``datasets`` would take the image files for the rows.

    It names every column with its type, which a column of nulls does not show.

    Args:
        plan: What was exported.
        files: Split → name of its JSON list.
        facts: Of each part, with the licences of its rows.
    """
    licenses = count_licenses(facts)
    head = [*license_lines(sorted(licenses)), "configs:", "- config_name: default", "  data_files:"]
    for split, file in zip(split_names(list(files)), files.values(), strict=True):
        head += [f"  - split: {split}", f"    path: {json.dumps(file, ensure_ascii=False)}"]
    # 2. Types: a column of nulls alone has none of its own.
    columns = dict.fromkeys(("input", "output", "instruction", "task"), "string")
    columns |= {name: column_dtype(name) for name in PROVENANCE}
    head += ["dataset_info:", "  features:"]
    head += [f"  - name: {name}\n    dtype: {dtype}" for name, dtype in columns.items()]
    body = [
        f"{plan.exported:,} pairs of images with the action between them, in AURORA's layout: `instruction` is the",
        "action, `input` and `output` are image files beside the list; source, licence and likelihood follow.",
        "",
        license_sentence(licenses),
        "",
    ]
    return "\n".join(["---", *head, "---", "", *body])


def _fragment(out: Path, number: int) -> Path:
    return out / ".parts" / f"rows-{number:06d}.jsonl"
