"""The fast layers against transformers' and PEFT's own, family by family; dropout against masks drawn beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.chameleon.modeling_chameleon import ChameleonRMSNorm
from transformers.models.emu3.modeling_emu3 import Emu3RMSNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from jobs.benchmark.training_counts import saved_bytes
from tests.helpers.models_families import write_emu3, write_janus, write_liquid
from wm.models import load_model, pack
from wm.nano.preset import write_random_base
from wm.training import Lora, completion_loss, prepare
from wm.training.kernels.autograd import Norm, gated_down, project, rms_norm
from wm.training.kernels.layers import LAYERS, _stack, speed_up
from wm.training.kernels.lora_linear import Projection
from wm.training.planning.settle import recompute_layers

pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:`is_gradient_checkpointing`")


def write_swin(folder: Path) -> None:
    """Chameleon-34B's kind of layer: norms after attention and MLP."""
    write_random_base(folder, seed=0)
    (folder / "wm_model.json").unlink()  # it names the weights of the other kind
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"swin_norm": True}))


FAMILIES = {
    "chameleon": lambda folder: write_random_base(folder, seed=0),
    "swin": write_swin,
    "liquid": write_liquid,
    "emu3": write_emu3,
    "janus": write_janus,
}


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' norms in double precision, which they leave for float32 otherwise."""

    def normed(self: Any, x: Tensor) -> Tensor:
        eps = self.eps if hasattr(self, "eps") else self.variance_epsilon
        weight = self.weight + 1 if "Gemma" in type(self).__name__ else self.weight
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    for kind in (ChameleonRMSNorm, GemmaRMSNorm, Emu3RMSNorm, LlamaRMSNorm):
        monkeypatch.setattr(kind, "forward", normed)


def model_of(folder: Path, lora: Lora, dtype: torch.dtype = torch.float64) -> Any:
    """A prepared model whose adapters are far from zero, the same whenever it is made."""
    vlm: Any = load_model(folder, dtype=dtype)
    if dtype == torch.float64:
        vlm.module.double()
    prepare(vlm, lora, seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in vlm.module.named_parameters():
            parameter.data = parameter.data.to(dtype)
            if "lora_" in name or "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return vlm


def batch_of(vlm: Any) -> tuple[Tensor, Tensor, Tensor]:
    count = vlm.tokens_per_image
    segments = [
        vlm.layout("fdm", source=[(3 * n + k) % 16 for k in range(count)], action=action, target=[n] * count)
        for n, action in enumerate(("put the cup", "take the red block to the left", "move"))
    ]
    ids_BT, is_completion_BT, _ = pack(segments, vlm.pad_id)
    return ids_BT, is_completion_BT, torch.rand(ids_BT.shape, generator=torch.Generator().manual_seed(2))


def graded(
    vlm: Any, batch: tuple[Tensor, Tensor, Tensor] | None = None, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss and the gradients of everything that is trained, by name."""
    batch = batch or batch_of(vlm)
    vlm.module.zero_grad()
    torch.manual_seed(seed)
    loss = completion_loss(vlm, *batch, int(batch[1].sum()))
    loss.backward()
    by_name = vlm.module.named_parameters()
    return loss.detach(), {name: p.grad for name, p in by_name if p.requires_grad and p.grad is not None}


def need_equal(ours: Any, theirs: Any, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-12, atol=0)
    assert list(ours[1]) == list(theirs[1]) and ours[1]
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=rtol, atol=atol, msg=lambda told, name=name: name + told)


@pytest.mark.usefixtures("exact_norms")
@pytest.mark.parametrize("enabled", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_peft_in_double_precision(tmp_path: Path, family: str, enabled: bool) -> None:
    """Emu3's own dropout, in attention and after it, draws the same of the same seed."""
    FAMILIES[family](tmp_path)
    settings = {"r": 3, "alpha": 5.0, "dropout": 0.0, "enabled": enabled}
    theirs, ours = (model_of(tmp_path, Lora(**settings, fast=fast)) for fast in (False, True))
    kinds = {type(layer) for layer in _stack(ours).layers}
    assert all(kind.__name__ in LAYERS and hasattr(kind, "former_class") for kind in kinds)
    assert ("Swin" in next(iter(kinds)).__name__) == (family == "swin")
    assert not any(hasattr(type(layer), "former_class") for layer in _stack(theirs).layers)
    need_equal(graded(ours), graded(theirs))


@pytest.mark.parametrize("family", ["chameleon", "swin", "liquid", "janus"])
def test_loss_and_gradients_equal_peft_in_single_precision(tmp_path: Path, family: str) -> None:
    """With transformers' norms as they are."""
    FAMILIES[family](tmp_path)
    theirs, ours = (model_of(tmp_path, Lora(r=3, dropout=0.0, fast=fast), torch.float32) for fast in (False, True))
    (loss, grads), (right, wanted) = graded(ours), graded(theirs)
    torch.testing.assert_close(loss, right, rtol=1e-5, atol=0)
    for name, grad in wanted.items():
        assert (grads[name] - grad).norm() < 1e-3 * grad.norm(), name


@pytest.mark.usefixtures("exact_norms")
def test_fast_pass_runs_in_training_the_former_in_evaluation(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wm.training.kernels.layers as module

    calls = []
    forward = module._layer_forward
    monkeypatch.setattr(module, "_layer_forward", lambda *given: (calls.append(given[0]), forward(*given))[1])
    vlm = model_of(tiny_base, Lora(dropout=0.0))
    ids_BT = batch_of(vlm)[0]
    trained = vlm.body(ids_BT)
    assert len(calls) == 2
    vlm.module.eval()
    torch.testing.assert_close(vlm.body(ids_BT), trained, rtol=1e-12, atol=1e-12)
    assert len(calls) == 2


@pytest.mark.usefixtures("exact_norms")
def test_layers_under_another_kind_of_adapter_are_left_to_peft(tiny_base: Path) -> None:
    """DoRA has a form of its own; the layer notices and asks PEFT."""
    from peft import LoraConfig, get_peft_model

    vlm: Any = load_model(tiny_base, dtype=torch.float64)
    vlm.module.double()
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=".*(q|gate)_proj", use_dora=True, lora_dropout=0.0, init_lora_weights=False)
    vlm.module = get_peft_model(vlm.module, config).double().train()
    expected = graded(vlm)
    assert speed_up(vlm) == 2
    need_equal(graded(vlm), expected)


@pytest.mark.usefixtures("exact_norms")
def test_an_adapter_that_is_off_changes_nothing(tiny_base: Path) -> None:
    vlm = model_of(tiny_base, Lora(dropout=0.0))
    plain = load_model(tiny_base, dtype=torch.float64)
    plain.module.double()
    norms = {name: p for name, p in vlm.inner.named_parameters() if "norm" in name}
    plain.module.load_state_dict({name: p.data for name, p in norms.items()}, strict=False)
    ids_BT = batch_of(vlm)[0]
    with vlm.module.disable_adapter():
        torch.testing.assert_close(vlm.body(ids_BT), plain.body(ids_BT), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(vlm.body(ids_BT), plain.body(ids_BT), atol=1e-3)


@pytest.mark.parametrize(("fast", "mode"), [(True, "separate"), (True, "merged"), (False, "separate")])
def test_checkpointing_changes_memory_and_nothing_else(tiny_base: Path, fast: bool, mode: Any) -> None:
    """Dropout included: what is computed again draws what it drew."""

    def run(again: bool) -> tuple[Any, int]:
        vlm = model_of(tiny_base, Lora(dropout=0.3, fast=fast, dropout_mode=mode))
        if again:
            recompute_layers(vlm, True)
        batch = batch_of(vlm)
        result = graded(vlm, batch)
        num_bytes = saved_bytes(lambda: completion_loss(vlm, *batch, 1), vlm.module)
        return result, num_bytes

    (num_bytes, most), (again, less) = run(False), run(True)
    assert less < 0.4 * most
    need_equal(again, num_bytes, rtol=1e-12)


@pytest.mark.parametrize("mode", ["separate", "merged"])
def test_a_seed_repeats_dropout(tiny_base: Path, mode: Any) -> None:
    vlm = model_of(tiny_base, Lora(dropout=0.2, dropout_mode=mode))
    first = graded(vlm, seed=3)
    need_equal(graded(vlm, seed=3), first, rtol=1e-13)
    assert abs(graded(vlm, seed=4)[0] - first[0]) > 1e-6


def test_the_mean_over_dropout_is_that_of_peft(tiny_base: Path) -> None:
    """Of one linear layer of the adapter, over many draws: the expectation is what no dropout gives."""
    vlm = model_of(tiny_base, Lora(dropout=0.25))
    layer = _stack(vlm).layers[0]
    projection = Projection(
        torch.zeros(32, 32, dtype=torch.float64),
        None,
        layer.self_attn.q_proj.lora_A["default"].weight.data,
        layer.self_attn.q_proj.lora_B["default"].weight.data,
        2.0,
        0.25,
    )
    x = torch.randn(1, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.manual_seed(0)
    (result,) = project(x.expand(40_000, -1), None, [projection], one_mask=False, training=True)
    expected = 2.0 * x @ projection.down_RI.T @ projection.up_OR.T
    spread = result.std(0) / 200
    assert (result.mean(0) - expected[0]).abs().max() < 5 * spread.max()
    share = (result - expected).norm() / (expected.norm() * 200)
    layer.self_attn.q_proj.base_layer.weight.data.zero_()
    theirs = layer.self_attn.q_proj(x.expand(40_000, -1)).detach()
    assert share == pytest.approx(float((theirs - expected).norm() / (expected.norm() * 200)), rel=0.02)


def identity(width: int, dropout: float, scale: float = 1.0) -> Projection:
    eye, none = torch.eye(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64)
    return Projection(none, None, eye, eye, scale, dropout)


@pytest.mark.parametrize("one_mask", [True, False])
def test_dropout_equals_autograd_with_the_masks_written_out(one_mask: bool) -> None:
    """Adapters of identity matrices show the masks of a seed; with them the layer is a plain formula."""
    width, rows, dropout = 10, 33, 0.25
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    torch.manual_seed(5)
    x = torch.ones(rows, width, dtype=torch.float64)
    results = project(x, None, [identity(width, dropout)] * 3, one_mask=one_mask, training=True)
    masks = [mask * (1 - dropout) for mask in results]
    assert all(torch.equal(mask, mask.round()) and 0.1 < 1 - mask.mean() < 0.4 for mask in masks)
    assert torch.equal(masks[0], masks[1]) == one_mask

    x, norm = drawn(rows, width), Norm(drawn(width), 1e-6)
    layers = [Projection(drawn(4, width), drawn(4), drawn(2, width), drawn(4, 2), 1.5, dropout) for _ in masks]
    torch.manual_seed(5)
    result = project(x, norm, layers, one_mask=one_mask, training=True)
    unit = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm.weight_I
    expected = [
        unit @ layer.weight_OI.T + layer.bias_O + 1.5 * (unit * mask / (1 - dropout)) @ layer.down_RI.T @ layer.up_OR.T
        for layer, mask in zip(layers, masks, strict=True)
    ]
    wanted = [x, norm.weight_I]
    for layer in layers:
        wanted += [layer.weight_OI, layer.bias_O, layer.down_RI, layer.up_OR]
    pull = [torch.randn(rows, 4, generator=generator, dtype=torch.float64) for _ in masks]
    for ours, theirs in zip(result, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(result, wanted, pull), torch.autograd.grad(expected, wanted, pull), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_without_training_nothing_is_dropped_nor_drawn() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = torch.ones(5, 4, dtype=torch.float64)
    assert torch.equal(project(x, None, [identity(4, 0.9)], one_mask=False, training=False)[0], x)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_the_gate_and_both_norms_pass_gradcheck(activation: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    gate, up, weight, down, back = drawn(3, 5), drawn(3, 5), drawn(4, 5), drawn(2, 5), drawn(4, 2)

    def gated(gate: Tensor, up: Tensor, weight: Tensor, down: Tensor, back: Tensor) -> Tensor:
        return gated_down(gate, up, activation, Projection(weight, None, down, back, 0.7), training=True)

    assert torch.autograd.gradcheck(gated, (gate, up, weight, down, back))
    for of_gemma in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, weight, of_gemma=of_gemma: rms_norm(x, Norm(weight, 1e-5, of_gemma)), (drawn(3, 6), drawn(6))
        )


@pytest.mark.parametrize("precision", ["bf16", "autocast"])
def test_half_precision_is_as_near_to_double_as_peft_is(tiny_base: Path, precision: str) -> None:
    """bf16: as a run has it, weights in bfloat16 and PEFT's adapters in float32."""
    exact = graded(model_of(tiny_base, Lora(dropout=0.0)))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    errors = {}
    for fast in (True, False):
        vlm = model_of(tiny_base, Lora(dropout=0.0, fast=fast), dtype)
        if precision == "bf16":
            for name, parameter in vlm.module.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.data.float()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            loss, grads = graded(vlm)
        off = sum(float((grads[name].double() - grad).square().sum()) for name, grad in exact[1].items())
        size = sum(float(grad.square().sum()) for grad in exact[1].values())
        errors[fast] = ((off / size) ** 0.5, abs(float(loss - exact[0])))
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
    assert errors[True][0] < max(1.5 * errors[False][0], 0.02) and errors[True][0] < 0.1
    assert errors[True][1] < max(1.5 * errors[False][1], 0.02)


def test_a_step_keeps_less_than_half_of_what_peft_keeps(tiny_base: Path) -> None:
    num_bytes = {}
    for fast in (True, False):
        vlm = model_of(tiny_base, Lora(r=2, fast=fast), torch.float32)
        batch = batch_of(vlm)
        num_bytes[fast] = saved_bytes(lambda vlm=vlm, batch=batch: vlm.body(batch[0]), vlm.module)
    assert num_bytes[True] < 0.5 * num_bytes[False]


def test_what_is_saved_is_a_plain_peft_folder(tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import ChameleonForConditionalGeneration

    from wm.models import save_model

    vlm = model_of(tiny_base, Lora(r=2, dropout=0.1), torch.float32)
    save_model(vlm, tmp_path / "adapter", task="fdm")
    vlm.module.eval()
    base = ChameleonForConditionalGeneration.from_pretrained(tiny_base)
    for name, parameter in vlm.inner.named_parameters():
        if "norm" in name and "lora" not in name:
            base.get_parameter(name).data = parameter.data
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids_BT = batch_of(vlm)[0]
    states = theirs.base_model.model.model(input_ids=ids_BT).last_hidden_state
    torch.testing.assert_close(vlm.body(ids_BT), states, rtol=1e-5, atol=1e-5)
