"""Write data as scripts: a page opened from a folder may load scripts, but fetch nothing."""

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CURVE_POINTS = 600


def script(function: str, *arguments: Any) -> str:
    """Return ``wm.FUNCTION(…);`` with JSON arguments that hold no character with a meaning outside of a string.

    ASCII only (so no U+2028), and no ``<``, ``>`` or ``&``, so that it cannot hold ``</script>``.
    """
    texts = [json.dumps(plain(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False) for value in arguments]
    safe = ",".join(texts).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return f"wm.{function}({safe});\n"


def plain(value: Any) -> Any:
    """Replace numbers that JSON has no name for by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def column(values: Sequence[Any]) -> dict[str, Any]:
    """Encode a column of few different values: ``values`` sorted (null first), and for each row its number there."""
    order = sorted(set(values), key=lambda value: (value is not None, value))
    number = {value: position for position, value in enumerate(order)}
    return {"values": order, "codes": [number[value] for value in values]}


def rounded(value: float | None, digits: int) -> float | None:
    """Round a number; None if it is None or not finite."""
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def change_map(change_N: Sequence[float] | None) -> dict[str, Any] | None:
    """Encode squared distances per image token as bytes of the share of the largest; None unless N is a square number
    and all are finite."""
    if not change_N:
        return None
    values_N = np.asarray(change_N, dtype=np.float64)
    side = math.isqrt(len(values_N))
    if side * side != len(values_N) or not np.isfinite(values_N).all() or values_N.min() < 0:
        return None
    top = float(values_N.max())
    share_N = np.round(values_N / top * 255).astype(np.uint8) if top > 0 else np.zeros(len(values_N), np.uint8)
    return {
        "side": side,
        "max": round(top, 4),
        "mean": round(float(values_N.mean()), 4),
        "bytes": base64.b64encode(share_N.tobytes()).decode(),
    }


def curve(motion_T: Sequence[float], max_points: int = MAX_CURVE_POINTS) -> dict[str, Any]:
    """Reduce a motion curve to at most ``max_points`` points: the largest value of every ``step`` frames, as peaks are
    what matters; ``frames`` = T."""
    values_T = np.nan_to_num(np.asarray(motion_T, dtype=np.float64))
    step = max(1, -(-len(values_T) // max_points))
    padded = np.pad(values_T, (0, -len(values_T) % step), constant_values=-np.inf)
    peaks = padded.reshape(-1, step).max(axis=1) if len(values_T) else padded
    return {"frames": len(values_T), "step": step, "motion": [round(float(value), 3) for value in peaks]}
