"""The chunked loss against softmax over all logits at once: values, gradients, memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jobs.benchmark.training_counts import peak_bytes
from tests.helpers.models_families import write_janus, write_liquid
from wm.models import load_model, pack
from wm.training import Lora, completion_loss, prepare
from wm.training.kernels import chunked_loss
from wm.training.kernels.chunked_loss import plain_head, weighted_nll
from wm.training.loss import completion_losses

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word")
ACTIONS = ("put the cup", "take the red block", "move")


def by_all_logits(logits_MV: Tensor, target_M: Tensor, weight_M: Tensor) -> tuple[Tensor, Tensor]:
    nll_M = logits_MV.logsumexp(1) - logits_MV[torch.arange(len(target_M)), target_M]
    return (nll_M * weight_M).sum(), nll_M


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("own", [None, [0, 1, 2], [5, 2, 9]], ids=["bare", "span", "scattered"])
def test_loss_and_gradients_equal_all_logits_in_double_precision(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, own: list[int] | None
) -> None:
    vlm = load_model(tiny_base, dtype=torch.float64)
    head: Any = vlm.module.lm_head
    head.weight.requires_grad_(own is None)
    vocabulary = len(head.weight)
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", chunk * vocabulary)
    hidden_MH = drawn(7, 32, seed=0).mul_(3).requires_grad_()
    own_QH = drawn(3, 32, seed=1).requires_grad_()
    target_M = torch.tensor([5, 2, 9, 0, 1, 17, 2])
    weight_M = drawn(7, seed=2).abs()
    if own is not None:
        rows = slice(0, 3) if own == [0, 1, 2] else torch.tensor(own)
        monkeypatch.setattr(chunked_loss, "plain_head", lambda vlm: chunked_loss.Head(head.weight, rows, own_QH))
    loss, nll_M = weighted_nll(vlm, hidden_MH, target_M, weight_M)

    matrix_VH = head.weight if own is None else head.weight.index_copy(0, torch.tensor(own), own_QH)
    expected, expected_nll_M = by_all_logits(hidden_MH @ matrix_VH.T, target_M, weight_M)
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(nll_M, expected_nll_M.detach(), rtol=1e-12, atol=1e-13)
    wanted = [hidden_MH, head.weight if own is None else own_QH]
    # Times 3: what comes back through the loss must reach the gradients that the forward pass made.
    for result, right in zip(
        torch.autograd.grad(3 * loss, wanted), torch.autograd.grad(3 * expected, wanted), strict=True
    ):
        torch.testing.assert_close(result, right, rtol=1e-11, atol=1e-13)


def test_logits_of_any_size_give_finite_losses(tiny_base: Path) -> None:
    vlm = load_model(tiny_base)
    hidden_MH = drawn(4, 32, seed=0, dtype=torch.float32).mul_(1e4).requires_grad_()
    loss, nll_M = weighted_nll(vlm, hidden_MH, torch.arange(4), torch.ones(4))
    (grad,) = torch.autograd.grad(loss, hidden_MH)
    assert nll_M.max() > 100 and torch.isfinite(nll_M).all() and torch.isfinite(grad).all()


def rows_of(vlm: Any, task: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = vlm.tokens_per_image
    segments = [
        vlm.layout(task, source=[(3 * n + k) % 16 for k in range(count)], action=action, target=[n] * count)
        for n, action in enumerate(ACTIONS)
    ]
    ids_BT, is_completion_BT, _ = pack(segments, vlm.pad_id)
    return ids_BT, is_completion_BT, drawn(*ids_BT.shape, seed=3).abs()


def by_tokens(vlm: Any, ids_BT: Tensor, is_completion_BT: Tensor, weight_BT: Tensor) -> Tensor:
    """Equation 2, a token at a time, from the family's own module and head."""
    total = torch.zeros((), dtype=torch.float64)
    for ids_T, learned_T, weight_T in zip(ids_BT, is_completion_BT, weight_BT, strict=True):
        logits_TV = vlm.head(vlm.body(ids_T[None]))[0]
        for position in range(1, len(ids_T)):
            if learned_T[position]:
                total = total - weight_T[position] * torch.log_softmax(logits_TV[position - 1], 0)[ids_T[position]]
    return total / is_completion_BT.sum()


@pytest.mark.parametrize("family", ["liquid", "liquid_rows", "liquid_tied_rows", "janus"])
def test_families_and_trained_rows_equal_equation_2(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a head that is a matrix, a matrix some rows of which are trained, and two heads (Janus)."""
    (write_janus if family == "janus" else write_liquid)(
        tmp_path / "base", **({} if family == "janus" else {"tied": family != "liquid_rows"})
    )
    vlm: Any = load_model(tmp_path / "base", dtype=torch.float64)
    vlm.module.double()
    prepare(vlm, Lora(r=2, dropout=0.0, train_image_rows="rows" in family), seed=0)
    noise = torch.Generator().manual_seed(4)
    trained = [parameter for parameter in vlm.module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.data = (parameter.data + 0.1 * torch.randn(parameter.shape, generator=noise)).double()
    assert (plain_head(vlm) is None) == (family == "janus")
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 5 * 40)
    ids_BT, is_completion_BT, weight_BT = rows_of(vlm, "fdm")
    loss, nll_M = completion_losses(vlm, ids_BT, is_completion_BT, weight_BT, int(is_completion_BT.sum()))
    expected = by_tokens(vlm, ids_BT, is_completion_BT, weight_BT)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert nll_M.shape == (int(is_completion_BT.sum()),)
    for result, right in zip(torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-9, atol=1e-13)


def test_a_head_under_an_adapter_is_called_and_not_read(tiny_base: Path) -> None:
    vlm: Any = load_model(tiny_base, dtype=torch.float64)
    vlm.module.double()
    prepare(vlm, Lora(r=2, dropout=0.0, targets=".*(lm_head|q_proj)"), seed=0)
    with torch.no_grad():
        for name, parameter in vlm.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    assert plain_head(vlm) is None
    ids_BT, is_completion_BT, weight_BT = rows_of(vlm, "idm")
    loss = completion_loss(vlm, ids_BT, is_completion_BT, weight_BT, int(is_completion_BT.sum()))
    torch.testing.assert_close(loss, by_tokens(vlm, ids_BT, is_completion_BT, weight_BT), rtol=1e-12, atol=0)


def test_memory_does_not_grow_with_the_logits(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = load_model(tiny_base)
    vocabulary, rows = 2048, 512
    head = torch.randn(vocabulary, 32)
    monkeypatch.setattr(chunked_loss, "plain_head", lambda vlm: chunked_loss.Head(head))
    monkeypatch.setattr(chunked_loss, "CHUNK_LOGITS", 16 * vocabulary)
    hidden_MH = torch.randn(rows, 32, requires_grad=True)
    target_M, weight_M = torch.arange(rows), torch.ones(rows)

    def ours() -> None:
        weighted_nll(vlm, hidden_MH, target_M, weight_M)[0].backward()

    def plainly() -> None:
        by_all_logits(hidden_MH @ head.T, target_M, weight_M)[0].backward()

    all_logits = 4 * rows * vocabulary
    assert peak_bytes(plainly) > 2 * all_logits and peak_bytes(ours) < 0.15 * all_logits


def test_products_are_bfloat16_under_autocast_and_sums_are_not(tiny_base: Path) -> None:
    vlm = load_model(tiny_base)
    hidden_MH = drawn(40, 32, seed=0, dtype=torch.float32).requires_grad_()
    target_M, weight_M = torch.arange(40) % 16, torch.ones(40)
    expected, expected_nll_M = by_all_logits(vlm.head(hidden_MH), target_M, weight_M)
    with torch.autocast("cpu", torch.bfloat16):
        loss, nll_M = weighted_nll(vlm, hidden_MH, target_M, weight_M)
    assert loss.dtype == nll_M.dtype == torch.float32
    torch.testing.assert_close(nll_M, expected_nll_M.detach(), rtol=0.02, atol=0.02)
    (result,), (right,) = (torch.autograd.grad(value, hidden_MH) for value in (loss, expected))
    assert result.dtype == torch.float32
    assert (result - right).norm() < 0.01 * right.norm()
