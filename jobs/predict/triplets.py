"""Predict for the triplets of a folder: Parquet parts, each complete or absent, so that a stopped run resumes."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wm.dynamics import (
    CodeForward,
    CodeInverse,
    Prediction,
    Roles,
    Sampling,
    Search,
    observe_codes,
    predict_observations,
)
from wm.evaluation.heldout import HeldOut
from wm.tables import write_table

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
``candidate`` (its number) reproduce the sample;
``times``: how often it was sampled among ``draws``; ``passes``: of the forward model, if speculative."""


def parts_of(held_out: HeldOut, out: Path) -> list[tuple[Path, range]]:
    """List every part's file with the row numbers it holds.

    Args:
        held_out: The triplets.
        out: Folder of the run.
    """
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
    """Write the parts that do not exist yet.

    Every triplet has noise of its own, made of ``seed`` and its id, whatever part it is in.

    Args:
        roles: The forward model and the inverse model that verifies.
        held_out: The triplets, B of them.
        out: Folder of the run; parts are written to ``out/predictions``.
        search: How candidates are searched for and how many are stored.
        sampling: How a code is sampled.
        seed: Seed of the run, 0 or more.
        batch_size: Rows of a forward pass; None: as the memory allows.

    Yields:
        The number of triplets of each part, when its file exists.
    """
    seeds = held_out.sampling_seeds(seed)
    for path, rows in parts_of(held_out, out):
        # Parts are written in one rename: an existing one is complete.
        if not path.exists():
            actions = [held_out.actions[row] for row in rows]
            codec_id = roles.fdm.model.codec_id
            sources = observe_codes(held_out.source_codes[rows.start : rows.stop].tolist(), codec_id)
            predictions = predict_observations(
                CodeForward(roles.fdm), CodeInverse(roles.idm), sources, actions,
                search=search, sampling=sampling, seed=seeds[rows.start : rows.stop], batch_size=batch_size,
            )  # fmt: skip
            # A row a triplet and rank.
            table_rows = [
                {"triplet_id": held_out.ids[row], "action": action, "codec": roles.fdm.model.codec_id} | columns
                for row, action, prediction in zip(rows, actions, predictions, strict=True)
                for columns in _build_rows(prediction, search.num_return)
            ]
            write_table(table_rows, path, SCHEMA)
        yield len(rows)


def count_parts(files: list[Path]) -> dict[str, int | float]:
    """Count the best predictions of a run.

    Args:
        files: All its parts.

    Returns:
        ``triplets`` and ``rows``; ``draws`` in all and ``draws_each``, the mean candidates of a triplet;
        ``mean_logprob``, nats an action token; ``unchanged_share``, the mean share of unchanged tokens.
    """
    columns = ["rank", "draws", "logprob", "action_tokens", "unchanged_share"]
    # Without partitioning: a folder such as runs/rank=8 is a name, not a column.
    table = pq.read_table(files, columns=columns, partitioning=None)
    best = table.filter(pc.equal(table["rank"], 0)).to_pandas()
    return {
        "triplets": len(best),
        "rows": table.num_rows,
        "draws": int(best["draws"].sum()),
        "draws_each": float(best["draws"].mean()),
        "mean_logprob": float((best["logprob"] / best["action_tokens"]).mean()),
        "unchanged_share": float(best["unchanged_share"].mean()),
    }


def _build_rows(prediction: Prediction, num_return: int) -> list[dict[str, object]]:
    return [
        {
            "rank": rank,
            "codes": list(candidate.codes),
            "logprob": candidate.score.logprob,
            "action_tokens": candidate.score.num_tokens,
            "unchanged_share": candidate.unchanged_share,
            "seed": candidate.seed,
            "candidate": candidate.index,
            # Equal candidates are one row with a count.
            "times": sum(other.codes == candidate.codes for other in prediction.candidates),
            "draws": len(prediction.candidates),
            "rounds": prediction.rounds,
            "passes": prediction.passes,
        }
        for rank, candidate in enumerate(prediction.top(num_return))
    ]
