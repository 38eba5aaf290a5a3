"""Define the table of votes, ``votes.parquet``, and write and read it. Knows no figure of them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from wm.evaluation.votes.records import Vote
from wm.tables import read_table, write_table

VOTES_FILE = "votes.parquet"
VOTE_SCHEMA = pa.schema(
    [
        ("study_id", pa.string()),
        ("participant", pa.string()),
        ("item_id", pa.string()),
        ("triplet_id", pa.string()),
        ("subset", pa.string()),
        ("systems", pa.list_(pa.string())),
        ("best", pa.string()),
        ("worst", pa.string()),
        ("seconds", pa.float64()),
        ("stored_at", pa.string()),
        ("origin", pa.string()),
        ("is_check", pa.bool_()),
        ("passed_check", pa.bool_()),
    ]
)
"""One row a vote: the fields of :class:`wm.evaluation.votes.records.Vote`."""


def write_votes(votes: Sequence[Vote], path: Path) -> int:
    """Write votes as one Parquet file, complete or not at all.

    Args:
        votes: In the order of the rows.
        path: The file.

    Returns:
        How many rows were written.

    Raises:
        OSError: The disk is full or may not be written.
    """
    # Codes are the caller's: a report writes names in their place.
    return write_table((asdict(vote) for vote in votes), path, VOTE_SCHEMA)


def read_votes(path: str | Path) -> list[Vote]:
    """Read votes from a Parquet file.

    Args:
        path: As :func:`write_votes` wrote it.

    Returns:
        The votes in the order of the rows.

    Raises:
        InputError: The file is missing, damaged, or of another schema.
    """
    rows = read_table(path, VOTE_SCHEMA).to_pylist()
    # Parquet has lists, a vote has a tuple.
    return [Vote(**{**row, "systems": tuple(row["systems"] or ())}) for row in rows]
