"""Predictions for the triplets of a folder: Parquet parts, each whole or absent, so that a stopped run goes on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from wm.dynamics import Prediction, Roles, Sampling, Search, predict_observations
from wm.evaluation.heldout import HeldOut
from wm.records import write_table

ROWS_PER_PART = 64
"""Triplets a file."""
SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("action", pa.string()),
        ("rank", pa.int32()),
        ("codec", pa.string()),
        ("codes", pa.list_(pa.uint16())),
        ("logprob", pa.float64()),
        ("action_tokens", pa.int32()),
        ("unchanged_share", pa.float64()),
        ("seed", pa.int64()),
        ("candidate", pa.int32()),
        ("times", pa.int32()),
        ("draws", pa.int32()),
        ("rounds", pa.int32()),
        ("passes", pa.int64()),
    ]
)
"""One row a triplet and rank (0: the prediction). ``seed`` (the triplet's own, made of the recipe's and of its id) and
``candidate`` (its number) make the same draw again;
``times``: how often it was drawn among ``draws``; ``passes``: of the forward model, where drawing was speculative."""


def parts_of(held_out: HeldOut, out: Path) -> list[tuple[Path, range]]:
    """Every file with the rows it is of."""
    starts = range(0, len(held_out), ROWS_PER_PART)
    return [
        (out / f"predictions/part-{number:05d}.parquet", range(start, min(start + ROWS_PER_PART, len(held_out))))
        for number, start in enumerate(starts)
    ]


def predict_triplets(
    roles: Roles,
    held_out: HeldOut,
    out: Path,
    *,
    search: Search,
    sampling: Sampling,
    seed: int,
    batch_size: int | None,
) -> Iterator[int]:
    """Write the parts that are not there; yields the number of triplets of each that is done.

    Every triplet has noise of its own, made of ``seed`` and its id, whatever part it is in.
    """
    seeds = held_out.sampling_seeds(seed)
    for path, rows in parts_of(held_out, out):
        if not path.exists():
            actions = [held_out.actions[row] for row in rows]
            found = predict_observations(
                roles.fdm.model, roles.idm.model, held_out.source_codes[rows.start : rows.stop], actions,
                search=search, sampling=sampling, seed=seeds[rows.start : rows.stop], batch_size=batch_size,
                fdm_decoder=roles.fdm.decoder, idm_decoder=roles.idm.decoder,
            )  # fmt: skip
            lines = [
                {"triplet_id": held_out.ids[row], "action": action, "codec": roles.fdm.model.codec_id} | line
                for row, action, one in zip(rows, actions, found, strict=True)
                for line in _lines(one, search.top)
            ]
            write_table(lines, path, SCHEMA)
        yield len(rows)


def _lines(found: Prediction, top: int) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "codes": list(one.codes),
            "logprob": one.score.logprob,
            "action_tokens": one.score.num_tokens,
            "unchanged_share": one.unchanged_share,
            "seed": one.seed,
            "candidate": one.index,
            "times": sum(other.codes == one.codes for other in found.candidates),
            "draws": len(found.candidates),
            "rounds": found.rounds,
            "passes": found.passes,
        }
        for rank, one in enumerate(found.top(top))
    ]
