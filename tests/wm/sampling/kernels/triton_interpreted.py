"""The step's Triton kernels under Triton's interpreter, against the same attention in float64.

``test_triton.py`` runs these: Triton must know that it is to interpret before it is imported.
"""

from types import SimpleNamespace

import pytest
import torch

from tests.helpers.models_families import write_emu3
from tests.helpers.models_reference import lively
from tests.wm.sampling.kernels.test_cuda_graphs import PRESET, SAMPLINGS, prefixes_of
from wm.models import load_model
from wm.nano.preset import TINY_WORDS, NanoPreset, build_nano
from wm.sampling import build_model_runner, sample_images
from wm.sampling.kernels import cuda_graphs
from wm.sampling.kernels.attention import attend_shared
from wm.sampling.kernels.triton_attention import StepAttention


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float16, 2e-3)])
@pytest.mark.parametrize("sizes", [(1, 1, 2, 2, 70, 130), (2, 3, 4, 2, 150, 100), (1, 20, 2, 1, 64, 64)])
def test_a_step_of_attention(dtype, tolerance, sizes):
    """Prefixes of several lengths; nothing that is not filled yet is looked at; the new pair is stored."""
    prefixes, each, heads, groups, prefix_room, capacity = sizes
    generator = torch.Generator().manual_seed(0)
    rows, width = prefixes * each, 16
    view = SimpleNamespace(num_heads=heads, num_groups=groups, head_width=width, embedding=torch.zeros(1))
    step = StepAttention(rows, prefixes, prefix_room, capacity, view)
    prefix = torch.randn(2, prefixes, groups, prefix_room, width, generator=generator).to(dtype)
    lengths = torch.tensor([prefix_room - 9 * position for position in range(prefixes)])
    for position in (0, 5, 63, capacity - 1):
        new = torch.randn(rows, heads + 2 * groups, width, generator=generator).to(dtype)
        query, key, value = new.split((heads, groups, groups), dim=1)
        own = torch.randn(2, rows, groups, capacity, width, generator=generator).to(dtype)
        own[:, :, :, position:] = torch.nan
        step._head_parts.fill_(torch.nan)
        result = step(query, key, value, tuple(prefix), tuple(own), until=(lengths, torch.tensor([position])))
        assert torch.equal(own[:, :, :, position], torch.stack((key, value)))
        assert own[:, :, :, position + 1 :].isnan().all()
        filled = own[:, :, :, : position + 1].double()
        expected = attend_shared(
            query[:, None].double(),
            *prefix.double(),
            *filled,
            prefix_hidden_PT=torch.arange(prefix_room) >= lengths[:, None],
            own_hidden=None,
        ).reshape(rows, -1)
        assert (result.double() - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("family", ["chameleon", "emu3"])
def test_codes_are_those_of_plain_decoding(family, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "can_attend", lambda runner: True)
    if family == "chameleon":
        torch.manual_seed(0)
        vlm = lively(build_nano(TINY_WORDS, NanoPreset(**{**vars(PRESET), "num_layers": 1}))[0])
    else:
        write_emu3(tmp_path / "emu3")
        vlm = load_model(tmp_path / "emu3")
    prefixes = prefixes_of(vlm, 2)
    settings = {"num_candidates": 2, "seed": [3, 4], "sampling": SAMPLINGS["filtered"]}
    expected = sample_images(vlm, prefixes, **settings)
    runner = build_model_runner(vlm, stepping="static")
    assert torch.equal(sample_images(vlm, prefixes, runner=runner, **settings), expected)
    assert runner.static_steps._kernel is not None
