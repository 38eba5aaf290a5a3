"""Compare what disturbed work has written with what undisturbed work has: rows, and files to the last bit."""

import hashlib
import json
from pathlib import Path

import pyarrow as pa

from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.tables import read_table


def digest_rows(folder: Path) -> dict[str, str]:
    """Compute digests of an annotation's rows, which do not depend on the files they are in.

    Args:
        folder: Output of ``jobs.annotate``.

    Returns:
        By table, the number of rows and the sha256 of all of them in the order of their ids.
    """
    tables = {"triplets": (TRIPLET_SCHEMA, "triplet_id"), "rejects": (REJECT_SCHEMA, "reject_id")}
    digests = {}
    for name, (schema, id_column) in tables.items():
        rows = _read_rows(folder / name, schema)
        rows.sort(key=lambda row: str(row[id_column]))
        # In the order of ids: which file a row is in depends on what was killed.
        digest = hashlib.sha256()
        for row in rows:
            digest.update(json.dumps(row, sort_keys=True, default=_to_text).encode())
        digests[name] = f"{len(rows)} rows, sha256 {digest.hexdigest()}"
    return digests


def _read_rows(folder: Path, schema: pa.Schema) -> list[dict[str, object]]:
    # A run that has not ended, or was done without its end, has no table where it has no row.
    rows: list[dict[str, object]] = read_table(folder, schema).to_pylist() if folder.is_dir() else []
    return rows


def _to_text(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def digest_files(folder: Path, pattern: str = "*.safetensors") -> dict[str, str]:
    """Compute the sha256 of files.

    Args:
        folder: Where they are.
        pattern: Of their names.
    """
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def list_differences(disturbed: dict[str, str], undisturbed: dict[str, str]) -> list[str]:
    """List what differs, one line each; empty where all is equal.

    Args:
        disturbed: Digests by name.
        undisturbed: The same of the other.
    """
    return [
        f"{name}: {disturbed.get(name, 'absent')}, undisturbed {undisturbed.get(name, 'absent')}"
        for name in sorted(disturbed.keys() | undisturbed.keys())
        if disturbed.get(name) != undisturbed.get(name)
    ]
