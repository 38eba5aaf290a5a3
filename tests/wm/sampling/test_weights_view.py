"""Which decoders have a view as a Llama, and why others have none."""

from types import SimpleNamespace

import pytest
import torch
import transformers

from wm.errors import InputError
from wm.sampling import build_model_runner
from wm.sampling.weights_view import decoder_view, find_unsupported

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("kind", "more", "reason"),
    [
        ("Gemma2", {}, "it has the weights pre_feedforward_layernorm.weight"),
        ("Olmo2", {}, "it has the weights post_feedforward_layernorm.weight"),
        ("Mistral", {"sliding_window": 8}, "sliding_window = 8"),
        ("Granite", {"residual_multiplier": 0.2}, "residual_multiplier = 0.2"),
        ("Granite", {"logits_scaling": 3.0}, "logits_scaling = 3.0"),
        ("Granite", {}, "queries are scaled by 1.0, not by 8**-0.5"),
        ("Mixtral", {}, "it has the weights mlp.gate.weight"),
        ("Qwen3", {}, "queries are normalised by Qwen3RMSNorm"),
        ("Llama", {"hidden_act": "relu"}, "its activation 'relu' is none of silu, swish, gelu"),
        # Rotates pairs of neighbours, with the weights and the configuration of a Llama.
        ("Helium", {}, "its rules are not known"),
    ],
)
def test_decoder_of_another_kind_is_named_with_reason(kind, more, reason):
    config = getattr(transformers, f"{kind}Config")(**SIZES, head_dim=8, **more)
    vlm = SimpleNamespace(inner=getattr(transformers, f"{kind}ForCausalLM")(config))
    assert find_unsupported(vlm).startswith(f"{kind}DecoderLayer is not of the Llama kind: {reason}")
    with pytest.raises(InputError, match="its family must give decoder_view"):
        decoder_view(vlm)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("Mistral", {"sliding_window": None}), ("Granite", {"attention_multiplier": 8**-0.5}), ("Qwen2", {})],
)
def test_other_names_for_a_llama_are_taken(kind, more):
    """With biases, as Qwen2 has; against the module itself."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, pad_token_id=0, **more)
    module = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    runner = build_model_runner(
        SimpleNamespace(module=module, inner=module, image_rows=torch.arange(4), device=torch.device("cpu"))
    )
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        result = runner.logits(runner.forward(ids)[0])
        torch.testing.assert_close(result, module(ids).logits[0], rtol=0, atol=1e-6)  # their angles are float32


def test_module_that_is_no_decoder_is_refused():
    with pytest.raises(InputError, match="Linear cannot be sampled from: it is no model of transformers"):
        build_model_runner(SimpleNamespace(inner=torch.nn.Linear(2, 2)))
