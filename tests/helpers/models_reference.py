"""Plain, slow references in float64 that share no code with what they check."""

import torch
from torch import Tensor

from wm.dynamics import ScoredAction


def lively(vlm, seed: int = 5):
    """``vlm``, changed in place to random weights so large that probabilities are far from equal."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in vlm.inner.named_parameters():
            scale = 0.5 if "norm" in name else 0.35 if "embed" in name or "lm_head" in name else 0.2
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return vlm


def reference_logits(vlm, ids: list[int]) -> Tensor:
    """float64 logits (T, V) of one sequence: Chameleon written out, one position and one head at a time.

    RMSNorm, rotary positions, layer norm of queries and keys per head, SwiGLU (Chameleon, 2405.09818, 2.2); with
    ``swin_norm`` the norms stand after attention and feed-forward. As many heads for keys as for queries.
    """
    config = vlm.inner.config
    weights = {name: tensor.detach().double() for name, tensor in vlm.inner.state_dict().items()}
    embedding = weights["model.embed_tokens.weight"]
    heads, eps = config.num_attention_heads, config.rms_norm_eps
    width = config.hidden_size // heads
    theta = config.rope_parameters["rope_theta"]

    def rms(x, weight):
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def layer_norm(x, weight, bias):
        centred = x - x.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * weight + bias

    def rotate(x, position):
        half = width // 2
        angles = position * theta ** (-torch.arange(half, dtype=torch.float64) * 2 / width)
        first, second = x[:half], x[half:]
        return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()])

    hidden_TH = embedding[ids]
    for layer in range(config.num_hidden_layers):
        w = {
            name.split(f"layers.{layer}.")[1]: tensor for name, tensor in weights.items() if f"layers.{layer}." in name
        }
        first, second = w["input_layernorm.weight"], w["post_attention_layernorm.weight"]
        normed_TH = hidden_TH if config.swin_norm else rms(hidden_TH, first)
        mixed_TH = torch.zeros_like(hidden_TH)
        for head in range(heads):
            span = slice(head * width, (head + 1) * width)
            queries, keys = [], []
            for position in range(len(ids)):
                q = w["self_attn.q_proj.weight"][span] @ normed_TH[position]
                k = w["self_attn.k_proj.weight"][span] @ normed_TH[position]
                q = layer_norm(q, w["self_attn.q_norm.weight"][head], w["self_attn.q_norm.bias"][head])
                k = layer_norm(k, w["self_attn.k_norm.weight"][head], w["self_attn.k_norm.bias"][head])
                queries.append(rotate(q, position))
                keys.append(rotate(k, position))
            values = normed_TH @ w["self_attn.v_proj.weight"][span].T
            for position in range(len(ids)):
                scores = torch.stack([queries[position] @ key for key in keys[: position + 1]]) / width**0.5
                mixed_TH[position, span] = torch.softmax(scores, 0) @ values[: position + 1]
        update_TH = mixed_TH @ w["self_attn.o_proj.weight"].T
        hidden_TH = hidden_TH + (rms(update_TH, first) if config.swin_norm else update_TH)
        normed_TH = hidden_TH if config.swin_norm else rms(hidden_TH, second)
        gate_TM = normed_TH @ w["mlp.gate_proj.weight"].T
        up_TM = normed_TH @ w["mlp.up_proj.weight"].T
        update_TH = (gate_TM * torch.sigmoid(gate_TM) * up_TM) @ w["mlp.down_proj.weight"].T
        hidden_TH = hidden_TH + (rms(update_TH, second) if config.swin_norm else update_TH)
    return rms(hidden_TH, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def reference_logprob(vlm, prefix: list[int], completion: list[int], rows: list[int] | None = None) -> float:
    """Sum of the completion's log-probabilities after ``prefix``, over ``rows`` of the vocabulary or all."""
    logits_TV = reference_logits(vlm, [*prefix, *completion])
    total = 0.0
    for step, token in enumerate(completion):
        logits_V = logits_TV[len(prefix) + step - 1]
        candidates = logits_V if rows is None else logits_V[rows]
        total += float(logits_V[token] - torch.logsumexp(candidates, 0))
    return total


def gather_actions(steps):
    """The whole actions of steps, in the order of the samples."""
    tokens = {}
    for step in steps:
        for token in step:
            tokens.setdefault(token.sample, []).append(token)
    return [
        ScoredAction("".join(token.released for token in row), sum(token.chosen.logprob for token in row), len(row))
        for _, row in sorted(tokens.items())
    ]
