"""Adapters beside the weights instead of in them: against PEFT's own forward and the decoder written out by hand."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model

from tests.helpers.models_reference import lively, reference_logits
from wm.errors import InputError
from wm.models import flatten, load_model
from wm.sampling import Sampling, build_model_runner, sample_images
from wm.sampling.adapted import Matrix, matrix_of
from wm.sampling.kernels.linear import linear, linears

EVERY = r".*\.layers\.\d+\..*(q|k|v|o|gate|up|down)_proj"
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word", "ignore:`is_gradient_checkpointing`")


@pytest.fixture
def vlm(tiny_base):
    return lively(load_model(tiny_base))


def adapted(vlm, seed=0, **settings):
    """``vlm`` with a random adapter far from zero, in place."""
    torch.manual_seed(seed)
    config = {"r": 4, "lora_alpha": 8, "target_modules": EVERY, "init_lora_weights": False} | settings
    vlm.module = get_peft_model(vlm.module, LoraConfig(**config)).eval()
    return vlm


def layer(has_bias=False, **settings):
    """One linear layer 24 -> 40 in float64 with an adapter."""
    torch.manual_seed(1)
    stack = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=has_bias))
    config = {"r": 3, "lora_alpha": 7, "target_modules": ["0"], "init_lora_weights": False} | settings
    model = get_peft_model(stack, LoraConfig(**config)).double().eval()
    return model.base_model.model[0]


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("settings", "is_apart"),
    [
        ({}, True),
        ({"use_rslora": True}, True),
        ({"bias": "lora_only"}, True),
        ({"lora_bias": True}, True),
        ({"rank_pattern": {"0": 7}, "alpha_pattern": {"0": 3}}, True),
        ({"lora_dropout": 0.5}, True),
        ({"use_dora": True}, False),
    ],
)
def test_one_layer_equals_pefts_forward_to_the_last_bits(rows, settings, is_apart):
    """Both sum at most 24 + 7 products of numbers near 1 in float64, in another order."""
    module = layer(has_bias=bool(settings.get("bias") or settings.get("lora_bias")), **settings)
    matrix = matrix_of(module, merge=False)
    assert (matrix.low_rank is not None) == is_apart
    assert (matrix.weight.data_ptr() == module.base_layer.weight.data_ptr()) == is_apart
    inputs = torch.randn(rows, 24, dtype=torch.float64)
    product, other = linear(matrix, 8), torch.randn(rows, 40, dtype=torch.float64)
    with torch.no_grad():
        theirs = module(inputs)
    close = {"atol": 2e-14, "rtol": 2e-14}
    torch.testing.assert_close(product(inputs), theirs, **close)
    torch.testing.assert_close(product.plus(inputs, other.clone()), theirs + other, **close)
    torch.testing.assert_close(product.times(inputs, other.clone()), theirs * other, **close)
    silu, gelu = torch.nn.functional.silu, torch.nn.functional.gelu
    torch.testing.assert_close(product.activated(inputs, "silu"), silu(theirs), **close)
    torch.testing.assert_close(product.activated(inputs, "gelu"), gelu(theirs), **close)


def test_several_adapters_at_once_add_up():
    module = layer()
    torch.manual_seed(2)
    module.update_layer("second", 2, 5, LoraConfig(r=2, lora_alpha=5, init_lora_weights=False))
    module.double().set_adapter(["default", "second"])
    inputs = torch.randn(4, 24, dtype=torch.float64)
    matrix = matrix_of(module, merge=False)
    assert matrix.low_rank.down.shape == (24, 5)
    with torch.no_grad():
        torch.testing.assert_close(linear(matrix, 8)(inputs), module(inputs), atol=2e-14, rtol=2e-14)
    module.set_adapter("second")
    with torch.no_grad():
        torch.testing.assert_close(linear(matrix_of(module, merge=False), 8)(inputs), module(inputs))
    module.enable_adapters(False)
    assert matrix_of(module, merge=False).low_rank is None


@pytest.mark.parametrize("rows", [1, 2, 8, 33])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 40)])
@pytest.mark.parametrize("transposed_up_to", [0, 24 * 40])
def test_products_with_copies_and_a_low_rank_part(monkeypatch, rows, bias, transposed_up_to):
    """float32: within 1e-5 of the whole matrix in float64, numbers being near 10."""
    generator = torch.Generator().manual_seed(0)
    inputs, other = (torch.randn(rows, size, generator=generator) for size in (24, 40))
    matrix = matrix_of(layer().float(), merge=False)
    matrix = Matrix(matrix.weight, bias, matrix.low_rank)
    combined = matrix.weight.double() + (matrix.low_rank.down.double() @ matrix.low_rank.up.double()).T
    exact = inputs.double() @ combined.T + (0 if bias is None else bias.double())
    monkeypatch.setattr("wm.sampling.kernels.linear.TRANSPOSED_UP_TO", transposed_up_to)
    product = linear(matrix, 8)
    assert (product.transposed is None) == (transposed_up_to == 0) == (product.packed is not None)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(product(inputs).double(), exact, **close)
    torch.testing.assert_close(product.plus(inputs, other).double(), exact + other, **close)
    torch.testing.assert_close(product.times(inputs, other).double(), exact * other, **close)
    torch.testing.assert_close(product.activated(inputs, "silu").double(), torch.nn.functional.silu(exact), **close)
    plain = Matrix(torch.randn(7, 24, generator=generator))
    stacked = linears([matrix, plain, matrix], 8)
    assert len(stacked.parts) == 1
    expected = torch.cat((exact, inputs.double() @ plain.weight.double().T, exact), 1)
    torch.testing.assert_close(stacked(inputs).double(), expected, **close)


def logits_of(runner, ids, split):
    with torch.no_grad():
        prefix, last_PH = runner.prefill([ids[:split]])
        rows = runner.reserve(1, len(ids) - split)
        rest = [
            runner.extend(torch.tensor([[token]]), prefix, rows, position, position + 1)[0]
            for position, token in enumerate(ids[split:])
        ]
        return runner.logits(torch.cat((last_PH, *rest)))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_float64_logits_are_those_of_the_decoder_written_out(vlm, settings):
    vlm.module.double()
    adapted(vlm, **settings).module.double()
    ids = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="move the red cup up", target=[5, 9, 2, 6]))
    ours = logits_of(build_model_runner(vlm, merge=False), ids, 8)
    merged = copy.deepcopy(vlm)
    merged.module = merged.module.merge_and_unload()
    torch.testing.assert_close(ours, reference_logits(merged, ids)[7:], atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"target_modules": EVERY + "|.*embed_tokens", "ensure_weight_tying": False},
        {"modules_to_save": ["lm_head"], "ensure_weight_tying": False},
        {"target_modules": EVERY + "|lm_head"},
        {"target_modules": [r"q_proj", "v_proj"]},
        {"trainable_token_indices": [5, 6, 7]},
        {"modules_to_save": ["norm", "input_layernorm", "q_norm"]},
    ],
)
def test_logits_equal_pefts_unmerged_forward(vlm, settings, dtype):
    """transformers takes norms and angles in float32 whatever the model's type is."""
    vlm.module.to(dtype)
    adapted(vlm, **settings).module.to(dtype)
    with torch.no_grad():
        for name, parameter in vlm.module.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    ids = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="move the red cup up", target=[5, 9, 2, 6]))
    with torch.no_grad():
        theirs = vlm.head(vlm.body(torch.tensor([ids])))[0, 7:]
        with vlm.module.disable_adapter():
            bare = vlm.head(vlm.body(torch.tensor([ids])))[0, 7:]
    assert (theirs - bare).abs().max() > 0.1, "the adapter does nothing"
    tolerance = 2e-5 if dtype is torch.float64 else 5e-4
    for merge in (False, True):
        runner = build_model_runner(vlm, merge=merge)
        torch.testing.assert_close(logits_of(runner, ids, 8), theirs, atol=tolerance, rtol=tolerance)
        with torch.no_grad():
            images = runner.image_logits(runner.forward(torch.tensor([ids]))[0, 7:])
        torch.testing.assert_close(images, theirs[:, vlm.image_rows], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampling", [Sampling(greedy=True), Sampling(), Sampling(guidance_scale=2.0)])
def test_samples_are_those_of_merged_weights(vlm, dtype, sampling):
    vlm.module.to(dtype)
    adapted(vlm).module.to(dtype)
    prefixes = [flatten(vlm.layout("fdm", source=[k, 5, 9, 0], action="put the cup")) for k in range(3)]
    apart, merged = (
        sample_images(
            vlm, prefixes, num_candidates=5, sampling=sampling, seed=4, runner=build_model_runner(vlm, merge=merge)
        )
        for merge in (False, True)
    )
    assert torch.equal(apart, merged)


def test_bfloat16_is_as_close_to_float64_apart_as_merged(vlm):
    """Merging rounds the sum of weight and adapter; beside the weight, the adapter itself is rounded."""
    adapted(vlm, lora_alpha=1)
    exact, rounded = copy.deepcopy(vlm), vlm
    exact.module.double()
    rounded.module.to(torch.bfloat16)
    ids = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="move the red cup up", target=[5, 9, 2, 6]))
    truth = logits_of(build_model_runner(exact), ids, 8)
    apart, merged = (logits_of(build_model_runner(rounded, merge=merge), ids, 8).double() for merge in (False, True))
    assert (apart - truth).std() < 1.2 * (merged - truth).std() < 0.5 * truth.std()


def test_adapters_of_other_kinds_are_merged_by_peft(vlm):
    config = IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    vlm.module = get_peft_model(vlm.module, config).eval()
    with torch.no_grad():
        for name, parameter in vlm.module.named_parameters():
            if "ia3_l" in name:
                parameter.add_(torch.randn_like(parameter))
    ids = flatten(vlm.layout("fdm", source=[3, 1, 4, 1], action="put the cup", target=[5, 9, 2, 6]))
    with torch.no_grad():
        theirs = vlm.head(vlm.body(torch.tensor([ids])))[0, 7:]
    torch.testing.assert_close(logits_of(build_model_runner(vlm, merge=False), ids, 8), theirs, atol=1e-4, rtol=1e-4)


def test_what_peft_cannot_merge_is_an_input_error():
    with pytest.warns(UserWarning, match="merging LoRA weights won't be possible"):
        module = layer(lora_bias=True)
    assert matrix_of(module, merge=False).bias is not None, "apart there is no obstacle"
    with pytest.raises(InputError, match="an adapter of the kind Linear cannot be merged by PEFT"):
        matrix_of(module, merge=True)
