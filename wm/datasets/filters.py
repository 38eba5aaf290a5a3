"""Which proposed pairs are kept: six filters over numbers that were measured once, each off, score or on.

``score`` measures and keeps the pair; the numbers stand in the annotation's ``pairs`` table, so another threshold
needs no new run. A pair that a filter takes out is *filtered*: nothing about it failed.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from pydantic import Field

from wm.config import Recipe

Mode: TypeAlias = Literal["off", "score", "on"]
MODES: tuple[Mode, ...] = get_args(Mode)

_LETTER = re.compile(r"[^\W\d_]")
_MAX_REPEATS = 4


class Filters(Recipe):
    """Each filter is off (not measured), score (measured, nothing left out) or on; with its threshold. The action and
    its likelihood are known anyway: there off and score are the same."""

    static: Mode = "score"
    """Pairs whose two frames look the same."""
    static_difference: float = Field(default=1.5, ge=0)
    """Mean absolute difference of the two frames at 64 x 64, in grey levels of 255, below which a pair is static."""
    cut: Mode = "score"
    """Pairs with a hard cut between their frames: they show two scenes, no action."""
    cut_ratio: float = Field(default=3.0, gt=0)
    """A frame that differs from the one before so many times more than its neighbours do begins a new shot."""
    dark: Mode = "score"
    """Pairs with a black frame."""
    dark_luma: float = Field(default=16.0, ge=0, le=255)
    """Mean brightness (0 to 255) below which a frame is black."""
    blurred: Mode = "score"
    """Pairs with a blurred or empty frame."""
    blurred_sharpness: float = Field(default=15.0, ge=0)
    """Variance of the Laplacian at a short side of 256 px below which a frame is blurred."""
    near_duplicate: Mode = "score"
    """Pairs that repeat an earlier pair among the videos annotated together (by perceptual hash of both frames)."""
    near_duplicate_bits: int = Field(default=4, ge=0, le=64)
    """Bits of 64 by which source and target may each differ from the earlier pair's."""
    action: Mode = "on"
    """Actions that are no phrase: without a letter, one word over and over, cut off at max_new_tokens. One without
    any text can never be a triplet and is always filtered."""
    likelihood: Mode = "score"
    """Pairs whose action the IDM does not believe in."""
    min_likelihood: float = -3.0
    """Mean log-likelihood per action token, in nats, below which a pair is left out."""


def picture_reason(pair: Mapping[str, Any], filters: Filters) -> str:
    """Which filter takes a pair out for its pictures ("" = none). ``pair``: a row of numbers, None where not
    measured: ``difference, cut, luma, sharpness, repeat_bits``."""
    found: list[tuple[str, Mode, bool]] = [
        ("static", filters.static, _below(pair["difference"], filters.static_difference)),
        ("hard_cut", filters.cut, _reaches(pair["cut"], filters.cut_ratio)),
        ("dark_frame", filters.dark, _below(pair["luma"], filters.dark_luma)),
        ("blurred_frame", filters.blurred, _below(pair["sharpness"], filters.blurred_sharpness)),
    ]
    return next((reason for reason, mode, beyond in found if mode == "on" and beyond), "")


def action_reason(text: str, mean_logprob: float, finished: bool, filters: Filters) -> str:
    """Which filter takes a pair out for its action ("" = none). ``mean_logprob``: nats per token. ``finished``: the
    IDM ended the text by itself."""
    if not text.strip():
        return "empty_action"
    if filters.action == "on" and not (finished and is_phrase(text)):
        return "unparsed_action"
    if filters.likelihood == "on" and mean_logprob < filters.min_likelihood:
        return "unlikely_action"
    return ""


def is_phrase(text: str) -> bool:
    """Has a letter and is not one word (or pair of words) over and over."""
    if not _LETTER.search(text):
        return False
    words = text.lower().split()
    for span in (1, 2):
        repeats = 1
        for at in range(span, len(words) - span + 1, span):
            repeats = repeats + 1 if words[at : at + span] == words[at - span : at] else 1
            if repeats >= _MAX_REPEATS:
                return False
    return True


def repeat_bits(
    hashes_P2: Sequence[tuple[int, int]], filters: Filters, kept_P: Sequence[bool] | None = None
) -> list[int | None]:
    """For each pair, by how many bits it differs from the nearest earlier one (the larger of source and target).

    ``hashes_P2``: (source, target) perceptual hashes in order. Earlier pairs count if they are kept: not filtered
    for another reason (``kept_P``), nor, where the filter is on, as a repeat themselves. None: there is no earlier one.
    """
    hashes = np.asarray(hashes_P2, dtype=np.uint64).reshape(-1, 2)
    kept = np.ones(len(hashes), bool) if kept_P is None else np.asarray(kept_P, bool).copy()
    nearest: list[int | None] = []
    for row, pair in enumerate(hashes):
        earlier = hashes[:row][kept[:row]]
        bits = int(np.bitwise_count(earlier ^ pair).max(axis=1).min()) if len(earlier) else None
        nearest.append(bits)
        if filters.near_duplicate == "on" and bits is not None and bits <= filters.near_duplicate_bits:
            kept[row] = False
    return nearest


def _below(value: float | None, threshold: float) -> bool:
    return value is not None and value < threshold


def _reaches(value: float | None, threshold: float) -> bool:
    return value is not None and value >= threshold
