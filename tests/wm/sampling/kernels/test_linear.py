"""Products by copied weights against the plain ones."""

import pytest
import torch

from wm.sampling.adapted import Matrix
from wm.sampling.kernels.linear import Linear, Linears, linear, linears


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24)])
@pytest.mark.parametrize("transposed_up_to", [24 * 40 - 1, 24 * 40])
def test_products_with_copies_are_the_plain_ones(monkeypatch, rows, bias, transposed_up_to):
    """A large matrix is packed, a small one transposed."""
    monkeypatch.setattr("wm.sampling.kernels.linear.TRANSPOSED_UP_TO", transposed_up_to)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=generator)
    inputs, other = torch.randn(rows, 40, generator=generator), torch.randn(rows, 24, generator=generator)
    packed, plain = linear(Matrix(weight, bias), 8), Linear(weight, bias, None)
    assert packed.weight is None and (packed.packed is None) == (transposed_up_to == 24 * 40) == (
        packed.transposed is not None
    )
    for operation in (
        lambda matrix: matrix(inputs),
        lambda matrix: matrix.plus(inputs, other),
        lambda matrix: matrix.times(inputs, other),
        lambda matrix: matrix.activated(inputs, "silu"),
        lambda matrix: matrix.activated(inputs, "gelu"),
        lambda matrix: matrix.activated(inputs, "gelu_tanh"),
    ):
        torch.testing.assert_close(operation(packed), operation(plain), atol=1e-5, rtol=1e-5)
    two = [Matrix(weight, bias), Matrix(weight[:7] * 2)]
    stacked = linears(two, 8)
    assert len(stacked.parts) == 1
    apart = Linears((Linear(weight, bias, None), Linear(weight[:7] * 2, None, None)))
    torch.testing.assert_close(stacked(inputs), apart(inputs), atol=1e-5, rtol=1e-5)
