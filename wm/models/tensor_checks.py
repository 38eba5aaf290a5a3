"""Compare the tensors of a model with those that are stored for it: names, shapes, types and amount."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from wm.errors import InputError
from wm.models.weights import StoredTensor

_MAX_LISTED = 10
_FLOATS = ("F64", "F32", "F16", "BF16")


def check_tensors(expected: Mapping[str, Iterable[int]], actual: Mapping[str, Iterable[int]], where: str) -> None:
    """Check that the tensors of a file are those of a model.

    Args:
        expected: Shapes by name.
        actual: Shapes by name.
        where: Named in the error.

    Raises:
        InputError: Tensors are missing, misshapen or extra; each kind is counted, and its first ten are named with the
            shapes.
    """
    expected_shapes, actual_shapes = (
        {name: tuple(shape) for name, shape in shapes.items()} for shapes in (expected, actual)
    )
    # All kinds at once: a rename shows as one missing and one extra.
    problems = {
        "missing": [
            f"{name} (expected {expected_shapes[name]})"
            for name in sorted(expected_shapes.keys() - actual_shapes.keys())
        ],
        "misshapen": [
            f"{name} {actual_shapes[name]} not {expected_shapes[name]}"
            for name in sorted(expected_shapes.keys() & actual_shapes.keys())
            if expected_shapes[name] != actual_shapes[name]
        ],
        "extra": [f"{name} {actual_shapes[name]}" for name in sorted(actual_shapes.keys() - expected_shapes.keys())],
    }
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:_MAX_LISTED])}{', …' if len(names) > _MAX_LISTED else ''}"
        for kind, names in problems.items()
        if names
    ]
    if parts:
        raise InputError(f"{where}: tensors do not fit the configuration; " + "; ".join(parts))


def check_floats(expected: Mapping[str, Tensor], actual: Mapping[str, StoredTensor], where: str) -> None:
    """Check that weights are stored as floats where the model has floats.

    Args:
        expected: The model's tensors by name.
        actual: What is stored, by the same names; others are passed over.
        where: Named in the error.

    Raises:
        InputError: A tensor is stored as whole numbers: quantised, or of something else.
    """
    wrong = [
        f"{name} ({location.dtype})"
        for name, location in actual.items()
        if name in expected and expected[name].is_floating_point() and location.dtype not in _FLOATS
    ]
    if wrong:
        raise InputError(
            f"{where}: {len(wrong)} tensors are not stored as numbers of {', '.join(_FLOATS)}: "
            f"{', '.join(wrong[:_MAX_LISTED])}{', …' if len(wrong) > _MAX_LISTED else ''}"
        )


def check_amount(module: nn.Module, stored: int, where: str) -> None:
    """Refuse a model of far more numbers than its weight files hold, before memory is taken for it.

    Args:
        module: A model without data (on the device ``meta``).
        stored: Numbers in the weight files.
        where: Named in the error.

    Raises:
        InputError: The model has more than eight times as many numbers, and more than a small model.
    """
    num_numbers = sum(tensor.numel() for tensor in module.parameters()) + sum(
        tensor.numel() for tensor in module.buffers()
    )
    # Parts that a family leaves out, or ties, are built all the same: a factor of 8 covers them in every release.
    if num_numbers > max(8 * stored, 1 << 28):
        raise InputError(f"{where}: config.json describes {num_numbers:,} numbers, but the weights hold {stored:,}")


def count_numbers(locations: Mapping[str, StoredTensor]) -> int:
    """Count the numbers of stored tensors."""
    return sum(math.prod(location.shape) for location in locations.values())
