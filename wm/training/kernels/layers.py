"""Decoder layers that train with less memory and time, and are the same layers otherwise.

:func:`speed_up` gives a model's layers, and its last norm, a class of their own whose forward pass in training mode is
made of :mod:`wm.training.kernels.autograd`. Parameters, names, PEFT's wrappers and what is saved stay as they are; in
evaluation mode, with a cache, or where a layer is of another make, the former forward pass is used.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from wm.models.vlm import UnifiedVLM
from wm.training.kernels.autograd import Norm, gated_down, project, rms_norm
from wm.training.kernels.lora_linear import Projection

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
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def speed_up(vlm: UnifiedVLM, *, one_mask: bool = False) -> int:
    """Give every decoder layer that is known the fast forward pass; returns how many. ``one_mask``: the adapters of
    one input (queries, keys and values; gate and up) share a dropout mask."""
    stack = _stack(vlm)
    layers = list(stack.layers) if stack is not None else []
    for layer in layers:
        own: Any = type(layer)
        if own.__name__ in LAYERS and not hasattr(own, "former_class"):
            layer.__class__ = _fast_class(own)
            norm: Any = type(stack.norm)
            if not hasattr(norm, "former_class"):
                stack.norm.__class__ = _fast_norm_class(norm)
        if hasattr(type(layer), "former_class"):
            layer.one_mask = one_mask
            if hasattr(next(layer.parameters()), "ds_id"):
                _gather_together(layer)
    return sum(hasattr(type(layer), "former_class") for layer in layers)


def _gather_together(layer: Any) -> None:
    """Under DeepSpeed's ZeRO-3, which gathers a layer's parameters one by one as its parts are called. Here the parts
    are not called: it is told to gather them together.

    It then reduces gradients when that of the layer's input is there, which must be asked for in the first layer: torch
    would call it before any gradient is made.
    """
    layer._z3_leaf = True

    def need_gradient(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        wanted = module.training and torch.is_grad_enabled() and not hidden.requires_grad
        return (hidden.detach().requires_grad_(), *args[1:]) if wanted else args

    layer.register_forward_pre_hook(need_gradient)


def _stack(vlm: UnifiedVLM) -> Any:
    for module in vlm.module.modules():
        if all(hasattr(module, name) for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
            return module
    return None


@cache
def _fast_class(former: Any) -> type[nn.Module]:
    """Build a subclass, so that transformers' checkpointing wraps the new forward as it wrapped the old one."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        parts = _parts(self) if self.training and not args and kwargs.get("past_key_values") is None else None
        if parts is None or kwargs.get("output_attentions"):
            return former.forward(self, hidden_states, *args, **kwargs)
        result_BTH = _layer_forward(self, parts, hidden_states, kwargs)
        return (result_BTH,) if former.__name__.startswith("Chameleon") else result_BTH

    # The former name: other code tells the kinds of layers by it.
    names = {"forward": forward, "former_class": former, "__module__": former.__module__}
    return type(former.__name__, (former,), names)


@cache
def _fast_norm_class(former: Any) -> type[nn.Module]:
    def forward(self: Any, states: Tensor) -> Tensor:
        return rms_norm(states, _norm(self)) if self.training else former.forward(self, states)

    names = {"forward": forward, "former_class": former, "__module__": former.__module__}
    return type(former.__name__, (former,), names)


def _layer_forward(layer: Any, parts: dict[str, Projection], hidden_BTH: Tensor, given: dict[str, Any]) -> Tensor:
    attention, one_mask, training = layer.self_attn, layer.one_mask, layer.training
    after = "Swin" in type(layer).__name__
    norms = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
    before = (None, None) if after else norms

    projections = [parts[name] for name in ("q_proj", "k_proj", "v_proj")]
    query, key, value = project(hidden_BTH, before[0], projections, one_mask=one_mask, training=training)
    mixed_BTH = _attend(attention, query, key, value, given)
    (mixed_BTH,) = project(mixed_BTH, None, [parts["o_proj"]], one_mask=one_mask, training=training)
    hidden_BTH = hidden_BTH + _left(layer, rms_norm(mixed_BTH, norms[0]) if after else mixed_BTH)

    projections = [parts["gate_proj"], parts["up_proj"]]
    gate_BTM, up_BTM = project(hidden_BTH, before[1], projections, one_mask=one_mask, training=training)
    activation = _ACTIVATIONS[_activation_name(attention.config)]
    mixed_BTH = gated_down(gate_BTM, up_BTM, activation, parts["down_proj"], training=training)
    return hidden_BTH + _left(layer, rms_norm(mixed_BTH, norms[1]) if after else mixed_BTH)


def _attend(attention: Any, query: Tensor, key: Tensor, value: Tensor, given: dict[str, Any]) -> Tensor:
    """Compute what transformers' attention does between its projections: (B, T, A x D)."""
    from transformers.models.llama.modeling_llama import (
        ALL_ATTENTION_FUNCTIONS,
        apply_rotary_pos_emb,
        eager_attention_forward,
    )

    rows, length, _ = query.shape
    query, key, value = (states.view(rows, length, -1, attention.head_dim) for states in (query, key, value))
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    query, key = apply_rotary_pos_emb(query, key, *given["position_embeddings"])
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(attention.config._attn_implementation, eager_attention_forward)
    others = {name: value for name, value in given.items() if name not in _TAKEN}
    dropout = attention.attention_dropout if attention.training else 0.0
    mixed = attend(
        attention, query, key, value, given.get("attention_mask"), dropout=dropout, scaling=attention.scaling, **others
    )[0]
    return mixed.reshape(rows, length, -1)  # type: ignore[no-any-return]


_TAKEN = ("attention_mask", "position_ids", "past_key_values", "use_cache", "position_embeddings", "output_attentions")


def _parts(layer: Any) -> dict[str, Projection] | None:
    """Return the seven linear layers by name, or None if one is of another make or the activation is unknown."""
    attention, mlp = layer.self_attn, layer.mlp
    found = {
        name: read_projection(getattr(owner, name))
        for owner, names in ((attention, ("q_proj", "k_proj", "v_proj", "o_proj")), (mlp, _MLP))
        for name in names
    }
    known = {name: projection for name, projection in found.items() if projection is not None}
    return known if len(known) == len(found) and _activation_name(attention.config) in _ACTIVATIONS else None


_MLP = ("gate_proj", "up_proj", "down_proj")


def read_projection(module: Any) -> Projection | None:
    """Describe what a linear layer computes now: bare, or under one plain LoRA adapter of PEFT; None for all else."""
    if type(module) is nn.Linear:
        return Projection(module.weight, module.bias)
    from peft.tuners.lora.layer import Linear as LoraLinear

    if type(module) is not LoraLinear or type(module.base_layer) is not nn.Linear or module.fan_in_fan_out:
        return None
    base = Projection(module.base_layer.weight, module.base_layer.bias)
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.merged:
        return base if not module.disable_adapters else None
    if module.disable_adapters or not active:
        return base
    name = active[0]
    down, up, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    plain = len(active) == 1 and name not in module.lora_variant and up.bias is None
    if not plain or not isinstance(dropout, nn.Dropout | nn.Identity):
        return None
    share = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    return Projection(base.weight_OI, base.bias_O, down.weight, up.weight, float(module.scaling[name]), share)


def _norm(module: Any) -> Norm:
    eps = getattr(module, "variance_epsilon", None)
    return Norm(module.weight, float(module.eps if eps is None else eps), type(module).__name__.startswith("Gemma"))


def _left(layer: Any, states: Tensor) -> Tensor:
    """Apply the layer's own dropout, where it has one (Emu3)."""
    dropout = getattr(layer, "dropout", None)
    return states if dropout is None else dropout(states)


def _activation_name(config: Any) -> str:
    return str(getattr(config, "hidden_act", None) or config.hidden_activation)
