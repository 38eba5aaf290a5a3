"""Read the two scores from what a judge replied, or say why there are none. Knows nothing of the API."""

import ast
import json
import math
import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Failure: TypeAlias = Literal[
    "refusal", "not a dictionary", "no score", "not two scores", "not a number", "out of range"
]
"""Why a reply holds no judgement."""

_MAX_CHARS: Final = 20_000
"""Of a reply that is parsed: a judge that repeats itself for ever costs no memory here."""
_MAX_REASONING_CHARS: Final = 2000


@dataclass(frozen=True)
class Judgement:
    """Scores from 0 to 10, and the judge's reason."""

    editing_success: float
    minimal_editing: float
    reasoning: str = ""

    @property
    def final(self) -> float:
        """The minimum of both (paper, section 4.1 and appendix F)."""
        return min(self.editing_success, self.minimal_editing)


class ReplyError(ValueError):
    """A reply without a judgement."""

    def __init__(self, reason: Failure, detail: str = "") -> None:
        """Keep the reason and the place in the reply that caused it.

        Args:
            reason: One of a few words, by which failures are counted.
            detail: What was found there, at most 80 characters of which are kept.
        """
        super().__init__(f"{reason}: {detail:.80}" if detail else reason)
        self.reason: Failure = reason


def parse_reply(text: str | None) -> Judgement:
    """Parse the reply of a judge: JSON or a Python dictionary, in a code fence or not, with words around it or not.

    Args:
        text: The reply's text; None or empty: the judge said nothing.

    Returns:
        Its scores.

    Raises:
        ReplyError: There are no two finite numbers from 0 to 10 under ``score``.
    """
    if not text or not text.strip():
        raise ReplyError("refusal", "empty reply")
    # Checked in steps, so that the reason says what the judge got wrong.
    value = _parse_dictionary(text[:_MAX_CHARS])
    if "score" not in value:
        raise ReplyError("no score", f"keys {', '.join(map(str, value))}")
    scores = value["score"]
    if not isinstance(scores, list | tuple) or len(scores) != 2:
        raise ReplyError("not two scores", repr(scores))
    success, minimality = (_check_score(score) for score in scores)
    reasoning = value.get("reasoning")
    return Judgement(success, minimality, str(reasoning)[:_MAX_REASONING_CHARS] if reasoning is not None else "")


def _check_score(score: object) -> float:
    # bool is an int in Python, and no score.
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ReplyError("not a number", repr(score))
    # Never clipped: 11 of 10 says that the judge did not keep to the scale.
    if not 0 <= score <= 10:
        raise ReplyError("out of range", repr(score))
    return float(score)


def _parse_dictionary(text: str) -> dict[object, object]:
    """Parse the text itself, its code fence, or what is between the first and the last brace."""
    fence = re.search(r"```[a-zA-Z]*\s*\n(.*?)```", text, re.DOTALL)
    begin, end = text.find("{"), text.rfind("}")
    # From the strictest reading to the loosest: words around a dictionary may hold braces of their own.
    candidates = [text, fence.group(1) if fence else "", text[begin : end + 1] if 0 <= begin < end else ""]
    for candidate in filter(None, (candidate.strip() for candidate in candidates)):
        # JSON first, for its true and null; then the paper's Python dictionary with single quotes.
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(candidate)
            except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
                continue
            if isinstance(value, dict):
                return value
    raise ReplyError("not a dictionary", " ".join(text.split()))
