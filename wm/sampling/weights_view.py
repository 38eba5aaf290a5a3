"""View a decoder as its weights, with adapters, without the modules that hold them.

Any decoder of the Llama kind has this view: pre-norm (or Chameleon's Swin norm, where the norms come after
attention and MLP), RMS norms, rotary positions, gated MLP, grouped keys, and perhaps layer norms of queries and
keys (Chameleon, arXiv 2405.09818, section 2.2). A family of another kind gives its own, with a method
``decoder_view()``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from wm.errors import InputError
from wm.models.vlm import UnifiedVLM
from wm.sampling.adapted import Matrix, bare, matrix_of, plain


@dataclass(frozen=True)
class LayerView:
    """One layer; the norms' weights are (H,). A heads, G groups, D head width, M width of the MLP."""

    norm_attention: Tensor
    query: Matrix
    """(A x D, H); ``key`` and ``value``: (G x D, H); ``out``: (H, A x D)."""
    key: Matrix
    value: Matrix
    out: Matrix
    query_norm: tuple[Tensor, Tensor] | None
    """Weight and bias (A, D) of the layer norm of each head; ``key_norm``: (G, D)."""
    key_norm: tuple[Tensor, Tensor] | None
    norm_mlp: Tensor
    gate: Matrix
    """(M, H), as ``up``; ``down``: (H, M)."""
    up: Matrix
    down: Matrix


@dataclass(frozen=True)
class DecoderView:
    """A complete decoder. Tensors are those of the model where no adapter and no rule of the family changes them."""

    layers: tuple[LayerView, ...]
    embedding: Tensor
    """(vocabulary, H)."""
    embedding_scale: float
    norm: Tensor
    """(H,): weight of the last norm."""
    eps: float
    head: Matrix
    """Vocabulary logits."""
    num_heads: int
    num_groups: int
    """Heads of keys and values; ``num_heads`` is a multiple of it."""
    head_width: int
    activation: str
    """Activation of the gate: ``silu``, ``gelu`` or ``gelu_tanh``."""
    norm_after: bool
    """Swin norm: what attention and MLP return is normalised, not their inputs."""
    inverse_frequencies: Tensor
    """float32 (width / 2,), or float64 for a float64 model: radians a position."""
    rotary_scale: float
    """Factor of cosine and sine."""
    image_head: Callable[[Tensor], Tensor] | None = None
    """Hidden states to logits of the image codes, where these are not rows of ``head``."""


_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}

_LAYER_PARTS = (
    *(f"self_attn.{name}." for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{name}." for name in ("gate_proj", "up_proj", "down_proj")),
    *("input_layernorm.", "post_attention_layernorm."),
)
"""Prefixes of the names that a layer's weights may have."""
_OTHER_RULES = (
    *("sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale", "logits_scaling"),
    *("residual_multiplier", "embedding_multiplier"),
)
"""Keys of configurations that change what a decoder computes, unless they are absent, None, 0 or 1."""
_KNOWN_LAYERS = tuple(
    f"{name}DecoderLayer"
    for name in ("Chameleon", "ChameleonSwin", "Emu3", "Gemma", "Granite", "Llama", "Mistral", "Qwen2")
)
"""Classes of layers that compute what a view says. Others may have a Llama's weights and pair or rotate them
otherwise."""


def find_unsupported(vlm: UnifiedVLM) -> str | None:
    """Return why a model has no view as a Llama, or None where it has one.

    The first difference is named: a weight, a rule of the configuration, or a class of layers that is not known.
    """
    if getattr(vlm, "decoder_view", None) is not None:
        return None
    inner = vlm.inner
    stack = _find_stack(inner)
    if stack is None:
        return f"{type(inner).__name__} has no decoder of the Llama kind"
    # Every layer: mixtures of experts often begin with dense ones.
    for layer in stack.layers:
        difference = _name_unknown_weight(layer) or _name_unknown_rule(stack.config) or _name_unknown_module(layer)
        if difference is not None:
            return f"{type(layer).__name__} is not of the Llama kind: {difference}"
    return None


def _name_unknown_weight(layer: nn.Module) -> str | None:
    """Name a weight of a layer that a view would leave out."""
    names = (name for name, _ in layer.named_parameters() if not name.startswith(_LAYER_PARTS))
    name = next(names, None)
    return None if name is None else f"it has the weights {name}"


def _name_unknown_rule(config: Any) -> str | None:
    """Name a rule of a configuration that a view would leave out."""
    for name in _OTHER_RULES:
        value = getattr(config, name, None)
        # Qwen2 states a window that it does not use.
        is_off = name == "sliding_window" and getattr(config, "use_sliding_window", True) is False
        if not is_off and value not in (None, 0, 1):
            return f"{name} = {value!r}"
    activation = _activation_name(config)
    return None if activation in _ACTIVATIONS else f"its activation {activation!r} is none of {', '.join(_ACTIVATIONS)}"


def _name_unknown_module(layer: Any) -> str | None:
    """Name a part of a layer that computes something else than a view says."""
    attention, kind = layer.self_attn, type(layer).__name__
    scaling, width = getattr(attention, "scaling", None), attention.head_dim
    # Queries are scaled by the runner itself, so that another factor would be lost.
    if scaling is not None and not math.isclose(scaling, width**-0.5):
        return f"queries are scaled by {scaling}, not by {width}**-0.5"
    query_norm = getattr(attention, "q_norm", None)
    if query_norm is not None and not isinstance(bare(query_norm), nn.LayerNorm):
        return f"queries are normalised by {type(bare(query_norm)).__name__}"
    return None if kind in _KNOWN_LAYERS else f"its rules are not known ({', '.join(_KNOWN_LAYERS)} are)"


def decoder_view(vlm: UnifiedVLM, *, merge: bool = True) -> DecoderView:
    """View a model as it is now. A view that a family gives is used as it is.

    Args:
        vlm: The model.
        merge: Merge active adapters into copies of the weights that they change; without, keep them beside the
            weights (:mod:`wm.sampling.adapted`).

    Raises:
        InputError: For a decoder that is not of the Llama kind and whose family gives no view.
    """
    own = getattr(vlm, "decoder_view", None)
    if own is not None:
        family_view: DecoderView = own()
        return family_view
    reason = find_unsupported(vlm)
    if reason is not None:
        raise InputError(f"{reason}; its family must give decoder_view()")
    # PEFT's wrapper hides the model; adapters are read module by module.
    inner: Any = vlm.inner
    view = view_of_modules(_find_stack(inner), inner.lm_head, merge=merge)
    codes_CH: Tensor | None = getattr(vlm, "code_embeddings_CH", None)
    if codes_CH is None:
        return view
    # A family whose codes have embeddings and a head of their own; their vocabulary ids follow the text's.
    image_head: Callable[[Tensor], Tensor] = vlm.image_head  # type: ignore[attr-defined]
    return replace(view, embedding=torch.cat((view.embedding, codes_CH)), image_head=image_head)


def _find_stack(inner: nn.Module) -> Any:
    """Find the first module that has embeddings, layers and a last norm; None if there is none."""
    names = ("embed_tokens", "layers", "norm", "rotary_emb")
    return next((module for module in inner.modules() if all(hasattr(module, name) for name in names)), None)


def view_of_modules(stack: Any, head: nn.Module, *, merge: bool = True) -> DecoderView:
    """View transformers' modules, which are of the Llama kind: ``stack`` as ``LlamaModel``, ``head`` its linear output
    layer.

    Args:
        stack: As ``LlamaModel``: embeddings, layers, last norm.
        head: The linear output layer.
        merge: Merge adapters into copies of the weights; without, low-rank ones are kept beside them.
    """
    first = stack.layers[0]
    attention = first.self_attn
    # Numbers of heads come from the matrices: configurations name them in several ways.
    width = attention.head_dim
    query, key = (bare(module).weight for module in (attention.q_proj, attention.k_proj))
    # Some classes scale embeddings in the module, not in the decoder.
    embedding = bare(stack.embed_tokens)
    words = matrix_of(stack.embed_tokens).weight
    return DecoderView(
        layers=tuple(_layer(layer, merge) for layer in stack.layers),
        embedding=words,
        embedding_scale=float(getattr(embedding, "scalar_embed_scale", 1.0)),
        norm=_norm_weight(stack.norm),
        eps=_eps(stack.norm),
        head=Matrix(words) if _follows(head, stack.embed_tokens) else matrix_of(head, merge=merge),
        num_heads=query.shape[0] // width,
        num_groups=key.shape[0] // width,
        head_width=width,
        activation=_ACTIVATIONS[_activation_name(stack.config)],
        norm_after="Swin" in type(first).__name__,
        inverse_frequencies=_inverse_frequencies(stack.rotary_emb, query.dtype),
        rotary_scale=float(getattr(stack.rotary_emb, "attention_scaling", 1.0)),
    )


def _activation_name(config: Any) -> str:
    # Gemma writes hidden_activation where others write hidden_act.
    return str(getattr(config, "hidden_act", None) or config.hidden_activation)


def _follows(head: nn.Module, words: nn.Module) -> bool:
    """Return whether the head's trained rows are the embeddings' (tied): then one matrix with them is enough."""
    rows: Any = getattr(head, "token_adapter", None)
    return rows is not None and rows.tied_adapter is not None and rows.tied_adapter is words.token_adapter


def _layer(layer: Any, merge: bool) -> LayerView:
    attention, mlp = layer.self_attn, layer.mlp
    return LayerView(
        norm_attention=_norm_weight(layer.input_layernorm),
        query=matrix_of(attention.q_proj, merge=merge),
        key=matrix_of(attention.k_proj, merge=merge),
        value=matrix_of(attention.v_proj, merge=merge),
        out=matrix_of(attention.o_proj, merge=merge),
        query_norm=_layer_norm(getattr(attention, "q_norm", None)),
        key_norm=_layer_norm(getattr(attention, "k_norm", None)),
        norm_mlp=_norm_weight(layer.post_attention_layernorm),
        gate=matrix_of(mlp.gate_proj, merge=merge),
        up=matrix_of(mlp.up_proj, merge=merge),
        down=matrix_of(mlp.down_proj, merge=merge),
    )


def _norm_weight(norm: Any) -> Tensor:
    """Return the factor of a norm: Gemma's multiply by 1 + weight."""
    norm = plain(norm)
    weight: Tensor = norm.weight.detach()
    return weight + 1 if type(norm).__name__.startswith("Gemma") else weight


def _eps(norm: Any) -> float:
    norm = bare(norm)
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)


def _layer_norm(norm: Any) -> tuple[Tensor, Tensor] | None:
    if norm is None:
        return None
    norm = plain(norm)
    return norm.weight.detach(), norm.bias.detach()


def _inverse_frequencies(rotary: Any, dtype: torch.dtype) -> Tensor:
    """Return transformers' own in float32; recomputed for a float64 model if they are of the default kind."""
    inverse: Tensor = rotary.inv_freq.detach()
    parameters = getattr(rotary.config, "rope_parameters", None) or {}
    if dtype is not torch.float64 or parameters.get("rope_type", "default") != "default":
        return inverse
    # transformers computes angles in float32 whatever the model's type is.
    exponents = torch.arange(len(inverse), dtype=torch.float64, device=inverse.device) / len(inverse)
    return torch.as_tensor(parameters["rope_theta"], dtype=torch.float64) ** -exponents
