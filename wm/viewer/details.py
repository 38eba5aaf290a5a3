"""Convert rows to the data of the page: the columns of all rows, and the details of a block."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from wm.viewer.rows import ClipCells, IndexRow, Row, TripletCells
from wm.viewer.scripts import encode_change, encode_column, encode_curve, round_finite

Fact: TypeAlias = tuple[str, str | None]
"""A label and its value; None is not shown."""

_PAIR_FACTS = {
    "difference": "difference of frames", "cut": "cut score", "luma": "lower luma", "sharpness": "lower sharpness",
}  # fmt: skip


def to_index_row(triplet: TripletCells) -> IndexRow:
    """Return the part of a triplet that the page holds for every row."""
    cells: Mapping[str, object] = triplet
    # The rest is dropped: only these columns stay in memory until the page is written.
    return cast(IndexRow, {name: cells[name] for name in IndexRow.__annotations__})


def build_index(
    rows: Sequence[IndexRow], sizes: Sequence[tuple[int, int, int, int]], order: Mapping[str | None, int]
) -> dict[str, object]:
    """Build the columns of all rows; those of few different values as :func:`wm.viewer.scripts.encode_column`.

    Args:
        rows: The triplets.
        sizes: Width and height of each source and target, px.
        order: Triplet id → its turn in the selection.

    Returns:
        Columns by their names on the page.
    """
    # Columns, not rows: else every row would repeat the names.
    return {
        "id": [row["triplet_id"] or "" for row in rows],
        "action": [row["action"] or "" for row in rows],
        "class": encode_column([row["class_label"] or "" for row in rows]),
        "origin": encode_column([row["origin"] or "" for row in rows]),
        "reader": encode_column([row["reader"] or "" for row in rows]),
        "license": encode_column([row["license"] or "" for row in rows]),
        "uri": encode_column([row["video_uri"] or "" for row in rows]),
        "sizes": encode_column(sizes),
        "source_time": [round_finite(row["source_time_s"], 3) for row in rows],
        "target_time": [round_finite(row["target_time_s"], 3) for row in rows],
        "motion": [round_finite(row["motion"], 3) for row in rows],
        "score": [_compute_score(row) for row in rows],
        "order": [order.get(row["triplet_id"]) for row in rows],
    }


def _compute_score(row: IndexRow) -> float | None:
    """Compute the mean log-likelihood per action token, in nats; None without a likelihood."""
    logprob, tokens = row["action_logprob"], row["action_tokens"]
    return round_finite(logprob / tokens, 6) if logprob is not None and tokens else None


def build_details(block: Sequence[Row]) -> dict[str, object]:
    """Build the details of a block: ``rows`` with one entry a row, ``clips`` with each of their clips once."""
    clips: list[dict[str, object]] = []
    numbers: dict[int, int] = {}
    rows = []
    for row in block:
        clip_number = None
        if row.clip is not None:
            # Rows of one video share its curve, which is the largest thing in a block.
            if id(row.clip) not in numbers:
                numbers[id(row.clip)] = len(clips)
                clips.append(_build_clip(row.clip))
            clip_number = numbers[id(row.clip)]
        rows.append(_build_detail(row) | {"clip": clip_number})
    return {"rows": rows, "clips": clips}


def _build_clip(clip: ClipCells) -> dict[str, object]:
    times_s = [round_finite(time_s, 3) for time_s in clip["times_s"] or []]
    return {**encode_curve(clip["motion"] or []), "keyframes": clip["keyframes"], "times_s": times_s}


def _build_detail(row: Row) -> dict[str, object]:
    triplet = row.triplet
    # Where the distances make no map, their number says why.
    change = encode_change(triplet["change"])
    tokens = len(triplet["change"] or [])
    return {
        "source_frame": triplet["source_frame"],
        "target_frame": triplet["target_frame"],
        "logprob": round_finite(triplet["action_logprob"], 6),
        "tokens": triplet["action_tokens"],
        "change": change,
        "change_note": f"{tokens} numbers do not make a square map" if tokens and change is None else None,
        "facts": _list_facts(row),
        "long_facts": [("annotator", triplet["annotator"]), ("codec", triplet["codec"])],
    }


def _list_facts(row: Row) -> list[Fact]:
    triplet, pair, clip = row.triplet, row.pair, row.clip
    facts = [("data set", triplet["dataset"]), ("split", triplet["split"]), ("status", triplet["status"])]
    # The figures that the pair's filters went by.
    scores: Mapping[str, object] = pair or {}
    for name, label in _PAIR_FACTS.items():
        score = scores.get(name)
        value = round_finite(score, 4) if isinstance(score, int | float) else None
        facts.append((label, None if value is None else f"{value:g}"))
    if pair and pair["source_hash"] is not None and pair["target_hash"] is not None:
        facts.append(("hashes differ in", f"{(pair['source_hash'] ^ pair['target_hash']).bit_count()} of 64 bits"))
    if pair and pair["repeat_bits"] is not None:
        facts.append(("nearest earlier pair", f"{pair['repeat_bits']} bits"))
    # How the clip was decoded, where that was out of the ordinary.
    aspect = clip["sample_aspect_ratio"] if clip else None
    facts.append(("decord gave up", clip["fallback"] if clip else None))
    facts.append(("laid upright by", clip["orientation"] if clip else None))
    facts.append(("stored pixels", None if aspect == "1:1" else aspect))
    return facts
