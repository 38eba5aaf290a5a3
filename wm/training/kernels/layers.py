"""Make decoder layers train with less memory and time; they are the same layers otherwise.

:func:`speed_up` gives a model's layers, and its last norm, a class of their own whose forward pass in training mode is
made of :mod:`wm.training.kernels.autograd`. Parameters, names, PEFT's wrappers and what is saved stay as they are; in
evaluation mode, with a cache, or where a layer is of another make, the former forward pass is used.
"""

from functools import cache
from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn

from wm.training.kernels.autograd import Norm, gated_down, project, rms_norm
from wm.training.kernels.lora_linear import Projection
from wm.training.trained_models import TrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig
    from transformers.modeling_layers import GradientCheckpointingLayer
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaModel, LlamaRMSNorm

LAYERS = frozenset(
    {
        "ChameleonDecoderLayer",
        "ChameleonSwinDecoderLayer",
        "Emu3DecoderLayer",
        "GemmaDecoderLayer",
        "LlamaDecoderLayer",
    }
)
"""transformers' classes of layers that are known to be what :func:`_layer_forward` computes."""
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class LayerArguments(TypedDict, total=False):
    """Arguments that transformers' models pass to their layers; others go to the attention function."""

    attention_mask: Tensor | None
    position_ids: Tensor | None
    past_key_values: object
    use_cache: bool
    position_embeddings: tuple[Tensor, Tensor]
    output_attentions: bool


_LAYER_ARGUMENTS = frozenset(LayerArguments.__annotations__)


def speed_up(vlm: TrainedModel, *, one_mask: bool = False) -> int:
    """Give every known decoder layer, and the last norm, the fast forward pass.

    Args:
        vlm: The model; its layers change in place.
        one_mask: Adapters of one input (queries, keys and values; gate and up) share a dropout mask.

    Returns:
        Number of fast layers.
    """
    stack = _stack(vlm)
    if stack is None:
        return 0
    for layer in stack.layers:
        kind: type[nn.Module] = type(layer)
        if kind.__name__ in LAYERS and not hasattr(kind, "former_class"):
            layer.__class__ = _fast_class(kind)  # type: ignore[arg-type]
            norm_kind: type[nn.Module] = type(stack.norm)
            if not hasattr(norm_kind, "former_class"):
                stack.norm.__class__ = _fast_norm_class(norm_kind)  # type: ignore[arg-type]
        if hasattr(type(layer), "former_class"):
            # Read by the forward pass of the class, of which all layers share one.
            layer.one_mask = one_mask
            # Parameters that ZeRO-3 has sharded.
            if hasattr(next(layer.parameters()), "ds_id"):
                _gather_together(layer)
    return sum(hasattr(type(layer), "former_class") for layer in stack.layers)


def _gather_together(layer: "GradientCheckpointingLayer") -> None:
    """Let ZeRO-3 gather a layer's parameters together: it would gather those of each part when that is called, and here
    the parts are not called."""
    layer._z3_leaf = True

    # ZeRO-3 then reduces gradients when that of the layer's input is there. The input of the first layer has none
    # unless it is asked for, and torch would call ZeRO-3 before any gradient is computed.
    def require_grad(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        is_without = module.training and torch.is_grad_enabled() and not hidden.requires_grad
        return (hidden.detach().requires_grad_(), *args[1:]) if is_without else args

    layer.register_forward_pre_hook(require_grad)


def _stack(vlm: TrainedModel) -> "LlamaModel | None":
    for module in vlm.module.modules():
        if all(hasattr(module, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
            return module
    return None


@cache
def _fast_class(former: type[nn.Module]) -> type[nn.Module]:
    """Build a subclass, so that transformers' checkpointing wraps the new forward as it wrapped the old one."""

    def forward(
        self: "GradientCheckpointingLayer", hidden_states: Tensor, *args: object, **kwargs: Unpack[LayerArguments]
    ) -> Tensor | tuple[Tensor, ...]:
        parts = _parts(self) if self.training and not args and kwargs.get("past_key_values") is None else None
        # Nobody keeps attention weights here: who asks for them gets the former pass.
        if parts is None or kwargs.get("output_attentions"):
            result: Tensor | tuple[Tensor, ...] = former.forward(self, hidden_states, *args, **kwargs)
            return result
        result_BTH = _layer_forward(self, parts, hidden_states, kwargs)
        # Chameleon's layers return tuples.
        return (result_BTH,) if former.__name__.startswith("Chameleon") else result_BTH

    # The former name: other code knows the kinds of layers by it.
    names = {"forward": forward, "former_class": former, "__module__": former.__module__}
    return type(former.__name__, (former,), names)


@cache
def _fast_norm_class(former: type[nn.Module]) -> type[nn.Module]:
    def forward(self: "LlamaRMSNorm", states: Tensor) -> Tensor:
        result: Tensor = rms_norm(states, _norm(self)) if self.training else former.forward(self, states)
        return result

    names = {"forward": forward, "former_class": former, "__module__": former.__module__}
    return type(former.__name__, (former,), names)


def _layer_forward(
    layer: "GradientCheckpointingLayer", parts: dict[str, Projection], hidden_BTH: Tensor, arguments: LayerArguments
) -> Tensor:
    attention, one_mask, training = layer.self_attn, layer.one_mask, layer.training
    # Chameleon-34B normalises the results of attention and MLP, the others their inputs.
    after = "Swin" in type(layer).__name__
    norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    before = (None, None) if after else norms

    # 1. Attention.
    projections = [parts[name] for name in ("q_proj", "k_proj", "v_proj")]
    query, key, value = project(hidden_BTH, before[0], projections, one_mask=one_mask, training=training)
    mixed_BTH = _attend(attention, query, key, value, arguments)
    (mixed_BTH,) = project(mixed_BTH, None, [parts["o_proj"]], one_mask=one_mask, training=training)
    hidden_BTH = hidden_BTH + _drop_out(layer, rms_norm(mixed_BTH, norms[0]) if after else mixed_BTH)

    # 2. Gated MLP.
    projections = [parts["gate_proj"], parts["up_proj"]]
    gate_BTM, up_BTM = project(hidden_BTH, before[1], projections, one_mask=one_mask, training=training)
    activation = _ACTIVATIONS[_activation_name(attention.config)]
    mixed_BTH = gated_down(gate_BTM, up_BTM, activation, parts["down_proj"], training=training)
    return hidden_BTH + _drop_out(layer, rms_norm(mixed_BTH, norms[1]) if after else mixed_BTH)


def _attend(
    attention: "LlamaAttention", query: Tensor, key: Tensor, value: Tensor, arguments: LayerArguments
) -> Tensor:
    """Compute what transformers' attention does between its projections: (B, T, A x D)."""
    # Llama's functions are those of all families here, but for names.
    from transformers.models.llama.modeling_llama import (
        ALL_ATTENTION_FUNCTIONS,
        apply_rotary_pos_emb,
        eager_attention_forward,
    )

    rows, length, _ = query.shape
    query, key, value = (states.view(rows, length, -1, attention.head_dim) for states in (query, key, value))
    # Chameleon normalises queries and keys by head.
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    query, key = apply_rotary_pos_emb(query, key, *arguments["position_embeddings"])
    # What the model was configured with: eager, SDPA or FlashAttention.
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    others = {name: value for name, value in arguments.items() if name not in _LAYER_ARGUMENTS}
    dropout = attention.attention_dropout if attention.training else 0.0
    mixed: Tensor = attend(
        attention,
        query,
        key,
        value,
        arguments.get("attention_mask"),
        dropout=dropout,
        scaling=attention.scaling,
        **others,
    )[0]
    return mixed.reshape(rows, length, -1)


def _parts(layer: "GradientCheckpointingLayer") -> dict[str, Projection] | None:
    """Return the seven linear layers by name, or None if one is of another make or the activation is unknown."""
    attention, mlp = layer.self_attn, layer.mlp
    if _activation_name(attention.config) not in _ACTIVATIONS:
        return None
    modules = {name: getattr(attention, name) for name in _ATTENTION} | {name: getattr(mlp, name) for name in _MLP}
    projections = {name: read_projection(module) for name, module in modules.items()}
    known = {name: projection for name, projection in projections.items() if projection is not None}
    return known if len(known) == len(projections) else None


def read_projection(module: nn.Module) -> Projection | None:
    """Describe what a linear layer computes now: bare, or under one plain LoRA adapter of PEFT; None for all else."""
    # The exact type: a subclass may compute something else.
    if type(module) is nn.Linear:
        return Projection(module.weight, module.bias)
    from peft.tuners.lora.layer import Linear as LoraLinear

    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.fan_in_fan_out:
        return None
    lora: LoraLinear = module
    base = Projection(lora.base_layer.weight, lora.base_layer.bias)
    active = [name for name in lora.active_adapters if name in lora.lora_A]
    # A merged adapter is in the base's weight already.
    if lora.merged:
        return base if not lora.disable_adapters else None
    if lora.disable_adapters or not active:
        return base
    name = active[0]
    down, up, dropout = lora.lora_A[name], lora.lora_B[name], lora.lora_dropout[name]
    # DoRA and other variants compute something else: they are left to PEFT.
    is_plain = len(active) == 1 and name not in lora.lora_variant and up.bias is None
    if not is_plain or not isinstance(dropout, nn.Dropout | nn.Identity):
        return None
    share = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    return Projection(base.weight_OI, base.bias_O, down.weight, up.weight, float(lora.scaling[name]), share)


def _norm(module: "LlamaRMSNorm") -> Norm:
    eps = getattr(module, "variance_epsilon", None)
    return Norm(module.weight, float(module.eps if eps is None else eps), type(module).__name__.startswith("Gemma"))


def _drop_out(layer: "GradientCheckpointingLayer", states: Tensor) -> Tensor:
    """Apply the layer's own dropout, where it has one (Emu3)."""
    dropout: nn.Dropout | None = getattr(layer, "dropout", None)
    result: Tensor = states if dropout is None else dropout(states)
    return result


def _activation_name(config: "PreTrainedConfig") -> str:
    return str(getattr(config, "hidden_act", None) or config.hidden_activation)
