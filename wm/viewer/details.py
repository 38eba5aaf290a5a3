"""Convert rows to the data of the page: the columns of all rows, and the details of a block."""

from collections.abc import Mapping, Sequence
from typing import Any

from wm.viewer.rows import Row
from wm.viewer.scripts import change_map, column, curve, rounded

INDEX_COLUMNS = [
    "triplet_id", "action", "class_label", "origin", "reader", "license", "video_uri", "source_time_s", "target_time_s",
    "motion", "action_logprob", "action_tokens",
]  # fmt: skip
"""What cards and filters need of a triplet."""

_PAIR_FACTS = {
    "difference": "difference of frames", "cut": "cut score", "luma": "lower luma", "sharpness": "lower sharpness",
}  # fmt: skip


def score(row: Mapping[str, Any]) -> float | None:
    """Compute the mean log-likelihood per action token, in nats; None without a likelihood."""
    logprob, tokens = row["action_logprob"], row["action_tokens"]
    return rounded(logprob / tokens, 6) if logprob is not None and tokens else None


def index_columns(
    rows: Sequence[Mapping[str, Any]], sizes: Sequence[tuple[int, int, int, int]], order: Mapping[str, int]
) -> dict[str, Any]:
    """Columns of all rows, short names; those of few different values as :func:`wm.viewer.scripts.column`."""

    def texts(name: str) -> list[str]:
        return [row[name] or "" for row in rows]

    return {
        "id": texts("triplet_id"),
        "action": texts("action"),
        "class": column(texts("class_label")),
        "origin": column(texts("origin")),
        "reader": column(texts("reader")),
        "license": column(texts("license")),
        "uri": column(texts("video_uri")),
        "sizes": column(list(sizes)),
        "source_time": [rounded(row["source_time_s"], 3) for row in rows],
        "target_time": [rounded(row["target_time_s"], 3) for row in rows],
        "motion": [rounded(row["motion"], 3) for row in rows],
        "score": [score(row) for row in rows],
        "order": [order.get(row["triplet_id"]) for row in rows],
    }


def details(block: Sequence[Row]) -> dict[str, Any]:
    """Build the details of a block: ``rows`` with one entry a row, ``clips`` with each of their clips once."""
    clips: list[dict[str, Any]] = []
    numbers: dict[int, int] = {}
    rows = []
    for row in block:
        clip_number = None
        if row.clip is not None:
            # Rows of one video share its curve, which is the largest thing in a block.
            if id(row.clip) not in numbers:
                numbers[id(row.clip)] = len(clips)
                clips.append(_clip(row.clip))
            clip_number = numbers[id(row.clip)]
        rows.append(_detail(row) | {"clip": clip_number})
    return {"rows": rows, "clips": clips}


def _clip(clip: Mapping[str, Any]) -> dict[str, Any]:
    times_s = [rounded(time_s, 3) for time_s in clip["times_s"] or []]
    return curve(clip["motion"]) | {"keyframes": clip["keyframes"], "times_s": times_s}


def _detail(row: Row) -> dict[str, Any]:
    triplet = row.triplet
    change = change_map(triplet["change"])
    tokens = len(triplet["change"] or [])
    return {
        "source_frame": triplet["source_frame"],
        "target_frame": triplet["target_frame"],
        "logprob": rounded(triplet["action_logprob"], 6),
        "tokens": triplet["action_tokens"],
        "change": change,
        "change_note": f"{tokens} numbers do not make a square map" if tokens and change is None else None,
        "facts": _facts(row),
        "long_facts": [["annotator", triplet["annotator"]], ["codec", triplet["codec"]]],
    }


def _facts(row: Row) -> list[list[Any]]:
    triplet, pair, clip = row.triplet, row.pair or {}, row.clip or {}
    facts = [["data set", triplet["dataset"]], ["split", triplet["split"]], ["status", triplet["status"]]]
    for name, label in _PAIR_FACTS.items():
        value = rounded(pair.get(name), 4)
        facts.append([label, None if value is None else f"{value:g}"])
    source_hash, target_hash = pair.get("source_hash"), pair.get("target_hash")
    if source_hash is not None and target_hash is not None:
        facts.append(["hashes differ in", f"{(source_hash ^ target_hash).bit_count()} of 64 bits"])
    if pair.get("repeat_bits") is not None:
        facts.append(["nearest earlier pair", f"{pair['repeat_bits']} bits"])
    facts.append(["decord gave up", clip.get("fallback")])
    facts.append(["laid upright by", clip.get("orientation")])
    aspect = clip.get("sample_aspect_ratio")
    facts.append(["stored pixels", None if aspect == "1:1" else aspect])
    return facts
