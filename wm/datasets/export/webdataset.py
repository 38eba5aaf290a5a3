"""WebDataset: ``out/shard-000000.tar`` and so on, each row four files of one key.

``KEY.source.png`` and ``KEY.target.png`` (or .jpg, .webp: as stored), ``KEY.txt`` (the action) and ``KEY.json`` (the
provenance columns). The tar files depend on the rows alone: no time, no owner, members in the order of their names.
"""

import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from wm.datasets.export.plan import Part, Plan
from wm.datasets.export.rows import Context, aside, file_key, image_of, iterate_rows, json_row


def write(context: Context, part: Part, tick: Callable[[int], Any]) -> dict[str, Any]:
    """One part as one tar file."""
    path = Path(context.out) / f"shard-{part.number:06d}.tar"
    hidden = aside(path)
    rows, licenses = 0, Counter[str]()
    try:
        with tarfile.open(hidden, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in iterate_rows(part, context):
                for name, data in sorted(_members(row, context).items()):
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = len(data), 0o644
                    tar.addfile(member, io.BytesIO(data))
                rows += 1
                licenses[row["license"] or ""] += 1
                tick(1)
        os.replace(hidden, path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    return {"rows": rows, "licenses": dict(licenses)}


def _members(row: dict[str, Any], context: Context) -> dict[str, bytes]:
    key = file_key(row["triplet_id"])
    members = {
        f"{key}.txt": row["action"].encode(),
        f"{key}.json": json.dumps(json_row(row), ensure_ascii=False).encode(),
    }
    for side in ("source", "target"):
        data, suffix = image_of(row, f"{side}_image", context)
        members[f"{key}.{side}.{suffix}"] = data
    return members


def finish(context: Context, plan: Plan, facts: Sequence[dict[str, Any]]) -> None:
    """Nothing stands above the tar files: their names are their order."""
