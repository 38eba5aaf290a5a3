"""The loss against the plain formula of equation 2, and the recognition weights against a loop."""

from pathlib import Path
from typing import Any

import pytest
import torch

from wm.models import load_model, pack
from wm.training.loss import RecognitionWeights, completion_loss, recognition_weights


@pytest.mark.parametrize(
    "settings",
    [
        RecognitionWeights(),
        RecognitionWeights(floor=0.8),
        RecognitionWeights(floor=0.5, clip=1.5),
        RecognitionWeights(clip=2.0),
        RecognitionWeights(normalise=False),
        RecognitionWeights(normalise=False, floor=0.5, clip=30.0),
    ],
)
def test_recognition_weights_equal_a_plain_loop(settings: RecognitionWeights) -> None:
    change_RN = torch.rand(5, 9, generator=torch.Generator().manual_seed(0)) ** 4 * 100
    change_RN[3] = 0
    weights_RN = recognition_weights(change_RN, settings)
    for row in range(5):
        mean = sum(change_RN[row].tolist()) / 9 if settings.normalise else 1.0
        for position in range(9):
            weight = change_RN[row, position].item() / mean if mean > 0 else 1.0
            weight = settings.floor + (1 - settings.floor) * weight
            weight = min(weight, settings.clip) if settings.clip else weight
            assert weights_RN[row, position].item() == pytest.approx(weight, rel=1e-5)
    if not settings.clip and settings.normalise:
        torch.testing.assert_close(weights_RN.mean(1), torch.ones(5))


def test_equal_images_weigh_as_without_weights() -> None:
    assert recognition_weights(torch.zeros(2, 4), RecognitionWeights()).tolist() == [[1.0] * 4] * 2
    # Equation 2 to the letter: where nothing changes there is nothing to learn.
    assert recognition_weights(torch.zeros(2, 4), RecognitionWeights(normalise=False)).tolist() == [[0.0] * 4] * 2


def test_normalised_weights_are_the_bits_that_they_were() -> None:
    change_RN = torch.rand(64, 33, generator=torch.Generator().manual_seed(3)) ** 6 * 1e3
    mean_R1 = change_RN.mean(dim=1, keepdim=True)
    expected = 0.8 + (1 - 0.8) * torch.where(mean_R1 > 0, change_RN / mean_R1, 1.0)
    assert torch.equal(recognition_weights(change_RN, RecognitionWeights(floor=0.8)), expected)


def test_a_change_near_the_smallest_number_stays_finite() -> None:
    weights_RN = recognition_weights(torch.full((1, 4), 1e-42), RecognitionWeights())
    assert torch.isfinite(weights_RN).all()


def plain_loss(vlm: Any, segments_list: list[Any], weights: list[list[float]]) -> torch.Tensor:
    """Row by row, token by token, all logits, in the model's own precision; weights of the completion
    tokens."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for segments, row_weights in zip(segments_list, weights, strict=True):
        ids = [token for segment in segments for token in segment.ids]
        learned = [segment.is_completion for segment in segments for _ in segment.ids]
        logits_TV = vlm.head(vlm.body(torch.tensor([ids])))[0]
        remaining = iter(row_weights)
        for position in range(1, len(ids)):
            if learned[position]:
                log_probs_V = torch.log_softmax(logits_TV[position - 1], dim=0)
                total = total - next(remaining) * log_probs_V[ids[position]]
                count += 1
    return total / count


@pytest.mark.parametrize("task", ["fdm", "idm"])
def test_the_loss_equals_equation_2_in_double_precision(tiny_base: Path, task: Any) -> None:
    vlm = load_model(tiny_base, dtype=torch.float64)
    vlm.module.double()  # rotary and norm buffers too
    rows = [([1, 2, 3, 4], "put the cup", [1, 2, 3, 5]), ([9, 8, 7, 6], "take the red block", [0, 8, 7, 6])]
    segments = [vlm.layout(task, source=source, action=action, target=target) for source, action, target in rows]
    ids_BT, is_completion_BT, _ = pack(segments, vlm.pad_id)
    generator = torch.Generator().manual_seed(1)
    weight_BT = torch.rand(ids_BT.shape, generator=generator, dtype=torch.float64)
    weights = [weight_BT[row][is_completion_BT[row]].tolist() for row in range(2)]
    expected = plain_loss(vlm, segments, weights)
    loss = completion_loss(vlm, ids_BT, is_completion_BT, weight_BT, int(is_completion_BT.sum()))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    name, parameter = next(iter(vlm.module.named_parameters()))
    (gradient,) = torch.autograd.grad(loss, [parameter])
    (wanted,) = torch.autograd.grad(expected, [parameter])
    torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-14, msg=name)


def test_logits_are_computed_at_completion_tokens_alone(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load_model(tiny_base)
    segments = [vlm.layout("fdm", source=[1, 2, 3, 4], action="put the cup", target=[1, 2, 3, 5])] * 3
    ids_BT, is_completion_BT, _ = pack(segments, vlm.pad_id)
    observed: list[torch.Size] = []
    head = vlm.head
    monkeypatch.setattr(vlm, "head", lambda hidden: (observed.append(hidden.shape), head(hidden))[1])
    completion_loss(vlm, ids_BT, is_completion_BT, torch.ones(ids_BT.shape), 12)
    assert [shape[0] for shape in observed] == [3 * 4]
