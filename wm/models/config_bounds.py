"""Bound the numbers of a model's configuration, so that building the model ends.

Sizes may be such that it takes hours. What the numbers mean to a family is not known here.
"""

import math
from collections.abc import Mapping
from pathlib import Path

from wm.errors import InputError

MAX_LAYERS = 1024
"""The most layers (or blocks) of one kind; the deepest released models have under 200."""
MAX_LEVELS = 16
"""The most resolutions of an image codec: each halves the side."""
MAX_VOCABULARY = 1 << 22
"""The most tokens or codes; released vocabularies end at 0.3 million."""
MAX_SIDE_PX = 1 << 14
"""The largest side of an image that a configuration may name."""
MAX_INTEGER = 1 << 31
"""No other whole number of a configuration is larger: ids, widths, positions, pixels."""
MAX_LISTED = 1 << 16
"""The most entries of a list in a configuration."""
VOCABULARY_KEYS = frozenset({"vocabulary_map", "id2label", "label2id", "added_tokens_decoder", "vocab"})
"""Objects whose keys are data (tokens, labels), and are not looked at."""
_LAYER_KEYS = ("layers", "depth", "num_res_blocks", "n_layer", "n_layers")
_VOCABULARY_SIZE_KEYS = ("vocab_size", "num_embeddings", "codebook_size", "n_embed")
_SIDE_KEYS = ("image_size", "resolution")
# Widths need no bound of their own: a wide model of few layers is built at once, and compared with the weights.
_POSITIVE_KEYS = ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads")


def check_config(values: Mapping[str, object], file: Path) -> None:
    """Check the numbers of a configuration against bounds, so that building the model ends.

    Args:
        values: The object in ``file``.
        file: Named in errors.

    Raises:
        InputError: A number is not finite or beyond its bound, or a list is too long.
    """
    _check_numbers(values, file, "")


def _check_numbers(value: object, file: Path, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            # Tokens are keys there, and their numbers are ids.
            if key not in VOCABULARY_KEYS:
                _check_bounds(str(key), item, file, f"{path}.{key}" if path else str(key))
                _check_numbers(item, file, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        if len(value) > MAX_LISTED:
            raise InputError(f"{file}: {path} has {len(value):,} entries, expected at most {MAX_LISTED:,}")
        for index, item in enumerate(value):
            _check_numbers(item, file, f"{path}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{file}: {path} is {value}, expected a finite number")
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise InputError(f"{file}: {path} is {value!r:.80}, expected a whole number of at most {MAX_INTEGER:,}")


def _check_bounds(key: str, value: object, file: Path, path: str) -> None:
    """Bound what decides how long a model takes to build."""
    if key == "channel_multiplier" and isinstance(value, list) and len(value) > MAX_LEVELS:
        raise InputError(f"{file}: {path} has {len(value):,} entries, expected at most {MAX_LEVELS}")
    # Texts and fractions are left to the configuration's class.
    if not isinstance(value, int) or isinstance(value, bool):
        return
    maximum = None
    if key.endswith(_LAYER_KEYS):
        maximum = MAX_LAYERS
    elif key in _VOCABULARY_SIZE_KEYS:
        maximum = MAX_VOCABULARY
    elif key in _SIDE_KEYS:
        maximum = MAX_SIDE_PX
    if maximum is not None and not 0 <= value <= maximum:
        raise InputError(f"{file}: {path} is {value!r:.80}, expected 0 to {maximum:,}")
    if key in _POSITIVE_KEYS and value < 1:
        raise InputError(f"{file}: {path} is {value}, expected a positive whole number")
