"""Write WebDataset: ``out/shard-000000.tar`` and so on, each row four files of one key.

``KEY.source.png`` and ``KEY.target.png`` (or .jpg, .webp: as stored), ``KEY.txt`` (the action) and ``KEY.json`` (the
provenance columns); beside the tar files a data-set card. The tar files depend on the rows alone: no time, no owner,
members in the order of their names.
"""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from wm.cards import license_lines, license_sentence
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
from wm.files.atomic import replace_file
from wm.files.mirror import publish
from wm.records import TripletRow
from wm.runs import write_text


def write(context: Context, part: Part, tick: Callable[[int], object]) -> PartFacts:
    """Write one part as one tar file.

    Args:
        context: What all parts share.
        part: Its rows.
        tick: Called with the number of rows written since.

    Returns:
        The part's facts.
    """
    path = Path(context.out) / f"shard-{part.number:06d}.tar"
    rows, licenses, images = 0, Counter[str](), set[str]()
    # USTAR without times and owners: the same rows give the same bytes.
    with replace_file(path) as temporary, tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row in iterate_rows(part, context):
            members = _members(row, context)
            images |= {name.partition(".")[2] for name in members if not name.endswith((".txt", ".json"))}
            # In the order of names: the same rows give the same file.
            for name, data in sorted(members.items()):
                member = tarfile.TarInfo(name)
                member.size, member.mode = len(data), 0o644
                tar.addfile(member, io.BytesIO(data))
            rows += 1
            licenses[row["license"] or ""] += 1
            tick(1)
    publish(path)
    return {"rows": rows, "licenses": dict(licenses), "images": sorted(images)}


def _members(row: TripletRow, context: Context) -> dict[str, bytes]:
    key = file_key(row["triplet_id"])
    # Members of one key follow each other in the tar file, which makes them one sample.
    members = {
        f"{key}.txt": row["action"].encode(),
        f"{key}.json": json.dumps(json_row(row), ensure_ascii=False).encode(),
    }
    for column in IMAGES:
        data, suffix = image_of(row, column, context)
        members[f"{key}.{column.removesuffix('_image')}.{suffix}"] = data
    return members


def finish(context: Context, plan: Plan, facts: Sequence[PartFacts]) -> None:
    """Write the data-set card.

    It names every column with its type: ``datasets`` would guess from the first five rows, and fail at the first value
    of a column that is null in all of them.

    Args:
        context: What all parts share.
        plan: What was exported.
        facts: Of each part, in order.
    """
    licenses = count_licenses(facts)
    # Images of several formats are columns of their own.
    images = sorted({name for fact in facts for name in fact["images"]})
    # Types of every column: the first rows need not have a value.
    columns = [f"    - name: {name}\n      dtype: {column_dtype(name)}" for name in PROVENANCE]
    features = ["  - name: json", "    struct:", *columns, *(f"  - name: {name}\n    dtype: image" for name in images)]
    features += [f"  - name: {name}\n    dtype: string" for name in ("txt", "__key__", "__url__")]
    head = [*license_lines(sorted(licenses)), "configs:", "- config_name: default", "  data_files: shard-*.tar"]
    body = [
        f"{plan.exported:,} pairs of images with the action between them, as WebDataset in {len(plan.parts):,} tar",
        f"files. A sample: {', '.join(f'`{name}`' for name in images)}, `txt` (the action) and `json` (its source,",
        "licence and likelihood).",
        "",
        license_sentence(licenses),
        "",
    ]
    text = "\n".join(["---", *head, "dataset_info:", "  features:", *features, "---", "", *body])
    write_text(Path(context.out) / "README.md", text)
