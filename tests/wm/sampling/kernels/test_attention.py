"""Attention of candidates to a shared prefix and to their own tokens, against one softmax over both written out."""

import pytest
import torch

from wm.sampling.kernels.attention import attend_shared, attend_step

ROWS, HEADS, WIDTH, PREFIX = 3, 4, 16, 37
# At a scale of 12 nearly all weight is on one key; there the rounding of scores in fewer bits is all one would see.
CASES = [
    (torch.float64, 1.0, 1e-13),
    (torch.float64, 12.0, 1e-12),
    (torch.float32, 1.0, 5e-6),
    (torch.bfloat16, 1.0, 8e-2),
]


def written_out(query_RAD, prefix_keys_GTD, prefix_values_GTD, own_keys_RGFD, own_values_RGFD):
    """(R, A x D) in float64, row by row and head by head."""
    groups = len(prefix_keys_GTD)
    rows = []
    for row, query_AD in enumerate(query_RAD.double()):
        heads = []
        for head, query_D in enumerate(query_AD):
            group = head * groups // len(query_AD)
            keys = torch.cat((prefix_keys_GTD[group], own_keys_RGFD[row, group])).double()
            values = torch.cat((prefix_values_GTD[group], own_values_RGFD[row, group])).double()
            heads.append(torch.softmax(keys @ query_D, dim=0) @ values)
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def made(filled, groups, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(filled + groups)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    own = normal(2, ROWS, groups, filled + 5, WIDTH)[:, :, :, :filled]  # a view into more room, as in a cache
    shared = normal(2, groups, PREFIX, WIDTH)
    return normal(ROWS, HEADS, WIDTH) * scale, shared[0], shared[1], own[0], own[1]


@pytest.mark.parametrize(("dtype", "scale", "tolerance"), CASES)
def test_a_step_equals_one_softmax_over_both_parts(dtype, scale, tolerance):
    for filled in (1, 2, 64, 300):
        tensors = made(filled, HEADS, dtype, scale)
        expected = written_out(*tensors)
        torch.testing.assert_close(attend_step(*tensors).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_several_new_tokens_and_groups(groups):
    """One token a row, and each of several tokens that may see all places: the same as a step for each."""
    query_RAD, *shared, own_keys, own_values = made(50, groups, torch.float64)
    expected = written_out(query_RAD, *shared, own_keys, own_values)
    query_RSAD = torch.stack((query_RAD, -query_RAD), dim=1)
    result = attend_shared(
        query_RSAD, *(part[None] for part in shared), own_keys, own_values, prefix_hidden_PT=None, own_hidden=None
    )
    torch.testing.assert_close(result[:, 0].flatten(1), expected, rtol=1e-13, atol=1e-13)
    other = written_out(-query_RAD, *shared, own_keys, own_values)
    torch.testing.assert_close(result[:, 1].flatten(1), other, rtol=1e-13, atol=1e-13)
