"""Write data as scripts: a page opened from a folder may load scripts, but fetch nothing."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Generic, TypedDict, TypeVar

import numpy as np

MAX_CURVE_POINTS = 600

T = TypeVar("T", str, tuple[int, int, int, int])


class Column(TypedDict, Generic[T]):
    """A column of few different values."""

    values: list[T]  # sorted
    codes: list[int]  # each row's number among them


class Curve(TypedDict):
    """A motion curve of fewer points than frames."""

    frames: int
    step: int
    motion: list[float]  # the largest value of every ``step`` frames


class ChangeMap(TypedDict):
    """Squared distances per image token, row-major in a square."""

    side: int  # tokens
    max: float
    mean: float
    bytes: str  # base64 of one byte a token, 255 being ``max``


def build_script(function: str, *arguments: object) -> str:
    """Build a call of a function of the page.

    Args:
        function: Name of the function.
        *arguments: Values that become JSON.

    Returns:
        ``wm.FUNCTION(…);`` in ASCII (so without U+2028), without ``<``, ``>`` and ``&``, so that it cannot hold
        ``</script>``.
    """
    texts = [
        json.dumps(_to_json_value(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
        for value in arguments
    ]
    safe = ",".join(texts).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f"wm.{function}({safe});\n"


def _to_json_value(value: object) -> object:
    """Replace numbers that JSON has no name for by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _to_json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_value(inner) for inner in value]
    return value


def encode_column(values: Sequence[T]) -> Column[T]:
    """Encode a column of few different values."""
    # Sorted, so that the same rows give the same page.
    order = sorted(set(values))
    number = {value: position for position, value in enumerate(order)}
    return {"values": order, "codes": [number[value] for value in values]}


def round_finite(value: float | None, digits: int) -> float | None:
    """Round a number.

    Args:
        value: The number.
        digits: After the point.

    Returns:
        The rounded number; None for None and for one that is not finite.
    """
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def encode_change(change_N: Sequence[float] | None) -> ChangeMap | None:
    """Encode squared distances per image token as shares of the largest; None unless N is a square number and all are
    finite.
    """
    if not change_N:
        return None
    values_N = np.asarray(change_N, dtype=np.float64)
    side = math.isqrt(len(values_N))
    if side * side != len(values_N) or not np.isfinite(values_N).all() or values_N.min() < 0:
        return None
    # A still pair has no largest distance to divide by.
    top = float(values_N.max())
    share_N = np.round(values_N / top * 255).astype(np.uint8) if top > 0 else np.zeros(len(values_N), np.uint8)
    return {
        "side": side,
        "max": round(top, 4),
        "mean": round(float(values_N.mean()), 4),
        "bytes": base64.b64encode(share_N.tobytes()).decode(),
    }


def encode_curve(motion_T: Sequence[float], max_points: int = MAX_CURVE_POINTS) -> Curve:
    """Reduce a motion curve to few points, its peaks, which are what matters.

    Args:
        motion_T: Motion by frame.
        max_points: Max number of points.

    Returns:
        The curve.
    """
    values_T = np.nan_to_num(np.asarray(motion_T, dtype=np.float64))
    step = max(1, -(-len(values_T) // max_points))
    # Filled up to complete steps by values that are never the largest.
    padded = np.pad(values_T, (0, -len(values_T) % step), constant_values=-np.inf)
    peaks = padded.reshape(-1, step).max(axis=1) if len(values_T) else padded
    return {"frames": len(values_T), "step": step, "motion": [round(float(value), 3) for value in peaks]}
