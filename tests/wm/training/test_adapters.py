"""What is trainable, and that the adapter starts where the base is."""

import warnings
from pathlib import Path

import pytest
import torch

from wm.errors import InputError
from wm.models import load_model
from wm.training.adapters import Lora, prepare


def test_lora_trains_the_adapter_alone_and_starts_as_the_base(tiny_base: Path) -> None:
    vlm = load_model(tiny_base)
    ids_BT = torch.arange(8)[None]
    before = vlm.head(vlm.body(ids_BT))
    counts = prepare(vlm, Lora(r=4, dropout=0.0), seed=0)
    trained = [name for name, parameter in vlm.module.named_parameters() if parameter.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    # Two layers; per layer q, k, v, o: 32 -> 32; gate, up: 32 -> 48; down: 48 -> 32; rank 4 on both sides.
    assert counts.trained == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    torch.testing.assert_close(vlm.head(vlm.body(ids_BT)), before)


def test_the_adapter_depends_on_the_seed_alone(tiny_base: Path) -> None:
    def weights(seed: int, noise: int) -> torch.Tensor:
        torch.manual_seed(noise)
        vlm = load_model(tiny_base)
        prepare(vlm, Lora(), seed)
        return torch.cat([p.flatten() for p in vlm.module.parameters() if p.requires_grad])

    assert torch.equal(weights(1, 5), weights(1, 6))
    assert not torch.equal(weights(1, 5), weights(2, 5))


def test_full_fine_tuning_trains_everything(tiny_base: Path) -> None:
    vlm = load_model(tiny_base)
    counts = prepare(vlm, Lora(enabled=False), seed=0)
    assert counts.trained == counts.total == sum(p.numel() for p in vlm.module.parameters())


def test_a_target_that_fits_nothing_is_refused(tiny_base: Path) -> None:
    with pytest.raises(InputError, match="no_such_layer"):
        prepare(load_model(tiny_base), Lora(targets=".*no_such_layer"), seed=0)


def test_adding_an_adapter_warns_of_nothing(tiny_base: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        prepare(load_model(tiny_base), Lora(), 0)
