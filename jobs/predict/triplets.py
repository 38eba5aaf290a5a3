"""Predict for the triplets of a folder: Parquet parts, each complete or absent, so that a stopped run resumes."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.predict.sources import TripletSources
from wm.dynamics import Observation, Prediction, Sampling, Search, predict_observations
from wm.dynamics.observation import pixels_of
from wm.dynamics.pairs import ModelPair
from wm.images import encode_png
from wm.records import REJECT_SCHEMA, RejectRow, reject_row
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
IMAGE_SCHEMA = SCHEMA.append(pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])))
"""The same of an editor, whose images have no codes: ``codec`` and ``codes`` are null, ``image`` is a PNG file."""


def parts_of(sources: TripletSources, out: Path) -> list[tuple[Path, range]]:
    """List every part's file with the row numbers it holds.

    Args:
        sources: The triplets.
        out: Folder of the run.
    """
    starts = range(0, len(sources), ROWS_PER_PART)
    return [
        (out / f"predictions/part-{number:05d}.parquet", range(start, min(start + ROWS_PER_PART, len(sources))))
        for number, start in enumerate(starts)
    ]


def predict_triplets(
    pair: ModelPair,
    sources: TripletSources,
    out: Path,
    *,
    search: Search,
    sampling: Sampling,
    seed: int,
    batch_size: int | None,
) -> Iterator[int]:
    """Write the parts that do not exist yet.

    Every triplet has noise of its own, made of ``seed`` and its id, whatever part it is in. Candidates of which an
    editor gave no image go to ``out/rejects``.

    Args:
        pair: The forward model and the inverse model that verifies.
        sources: The triplets, B of them.
        out: Folder of the run; parts are written to ``out/predictions``.
        search: How candidates are searched for and how many are stored.
        sampling: How a code is sampled.
        seed: Seed of the run, 0 or more.
        batch_size: Rows of a forward pass; None: as the memory allows.

    Yields:
        The number of triplets of each part, when its file exists.
    """
    seeds = sources.sampling_seeds(seed)
    for path, rows in parts_of(sources, out):
        # Parts are written in one rename: an existing one is complete.
        if not path.exists():
            actions = [sources.actions[row] for row in rows]
            predictions = predict_observations(
                pair.forward, pair.inverse, sources.observe(pair, rows), actions,
                search=search, sampling=sampling, seed=seeds[rows.start : rows.stop], batch_size=batch_size,
            )  # fmt: skip
            # A row a triplet and rank.
            table_rows = [
                {"triplet_id": sources.ids[row], "action": action} | columns
                for row, action, prediction in zip(rows, actions, predictions, strict=True)
                for columns in _build_rows(prediction, search.num_return)
            ]
            rejects = [
                reject
                for row, prediction in zip(rows, predictions, strict=True)
                for reject in _build_rejects(sources.ids[row], prediction)
            ]
            # The rejects first: a part whose predictions are there is complete.
            if rejects:
                write_table(rejects, rejects_file(path), REJECT_SCHEMA)
            write_table(table_rows, path, IMAGE_SCHEMA if pair.codec is None else SCHEMA)
        yield len(rows)


def rejects_file(part: Path) -> Path:
    """Return the file for the candidates without an image of a part, which is absent where there is none.

    Args:
        part: The file of its predictions.
    """
    return part.parent.parent / "rejects" / part.name


def count_parts(files: list[Path], num_triplets: int) -> dict[str, object]:
    """Count the best predictions of a run.

    Args:
        files: All its parts.
        num_triplets: Those that were predicted for.

    Returns:
        ``triplets`` with a prediction and ``rows``; ``draws`` in all and ``draws_each``, the mean candidates of such a
        triplet; ``mean_logprob``, nats an action token; ``unchanged_share``, the mean share of the source that is
        unchanged. Where an editor gave no image for some candidates, ``withheld`` by reason and
        ``triplets_without_image``. Means of nothing are absent.
    """
    columns = ["triplet_id", "rank", "draws", "logprob", "action_tokens", "unchanged_share"]
    # Without partitioning: a folder such as runs/rank=8 is a name, not a column.
    table = pq.read_table(files, columns=columns, partitioning=None)
    best = table.filter(pc.equal(table["rank"], 0)).to_pandas()
    # A triplet all of whose candidates were withheld has no row.
    counts: dict[str, object] = {"triplets": len(best), "rows": table.num_rows, "draws": int(best["draws"].sum())}
    if len(best):
        counts |= {
            "draws_each": float(best["draws"].mean()),
            "mean_logprob": float((best["logprob"] / best["action_tokens"]).mean()),
            "unchanged_share": float(best["unchanged_share"].mean()),
        }
    # Of the files, so that parts of an earlier attempt count too.
    rejects = [
        row
        for file in map(rejects_file, files)
        if file.exists()
        for row in pq.read_table(file, columns=["uri", "reason"], partitioning=None).to_pylist()
    ]
    if rejects:
        # Candidates of a triplet without a row are sampled all the same.
        have_row = set(best["triplet_id"])
        num_without_row = sum(row["uri"] not in have_row for row in rejects)
        counts |= {
            "draws": int(best["draws"].sum()) + num_without_row,
            "withheld": dict(sorted(Counter(row["reason"] for row in rejects).items())),
            "triplets_without_image": num_triplets - len(best),
        }
    return counts


def _build_rejects(triplet_id: str, prediction: Prediction) -> list[RejectRow]:
    return [
        reject_row(
            uri=triplet_id,
            stage="predict",
            outcome="failed",
            reason=failure.reason,
            detail=f"candidate {index}: {failure.detail}",
        )
        for index, failure in prediction.failures
    ]


def _store_image(image: Observation) -> dict[str, object]:
    """Return the columns that hold an image: its codes, or a file."""
    if not image.is_of_pixels:
        return {"codec": image.codec_id, "codes": list(image.codes)}
    return {"codec": None, "codes": None, "image": {"bytes": encode_png(pixels_of([image])[0]), "path": None}}


def _build_rows(prediction: Prediction, num_return: int) -> list[dict[str, object]]:
    return [
        {
            "rank": rank,
            **_store_image(candidate.observation),
            "logprob": candidate.score.logprob,
            "action_tokens": candidate.score.num_tokens,
            "unchanged_share": candidate.unchanged_share,
            "seed": candidate.seed,
            "candidate": candidate.index,
            # Equal candidates are one row with a count.
            "times": sum(other.observation == candidate.observation for other in prediction.candidates),
            "draws": len(prediction.candidates) + len(prediction.failures),
            "rounds": prediction.rounds,
            "passes": prediction.passes,
        }
        for rank, candidate in enumerate(prediction.top(num_return))
    ]
