"""Bring the language-model tensors of an original release to transformers' names and shapes.

Three things differ besides names. Rotary positions turn other pairs of a head (see
:func:`~wm.models.families.chameleon.half_split`), so the rows of query and key projections, and the scale and bias of
their norms, are reordered. Queries, keys and values may be fused (``wqkv``), as may the two gates (``w13``). Under
model parallelism heads, gates and vocabulary are split over the files; the norm of queries and keys is one a file there
and one a head in transformers. Source: ``chameleon/inference/transformer.py``.

Shape suffixes: V vocabulary, D model width, H heads, K head width, M feed-forward width, P parts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import ChameleonConfig

from wm.errors import InputError
from wm.models.codec.taming import VQGAN_YAML, read_vqgan_config
from wm.models.families.chameleon import half_split
from wm.models.pickled import read_pickled, tensors_of
from wm.models.release.read import Release, read_config, read_original_tokenizer, shard_files
from wm.models.tensor_checks import check_tensors
from wm.models.weights import StoredTensor, describe_tensor

IGNORED = frozenset({"rope.freqs"})
"""A buffer of the release that is computed, not learned; Anole's own converter writes None for it."""
Join: TypeAlias = Callable[[Sequence[Tensor]], Tensor]
"""Makes one tensor of those of all parts."""


def open_original(release: Release) -> tuple[ChameleonConfig, dict[str, StoredTensor]]:
    """Open configuration and language-model tensors of a release; no weights are read yet.

    Args:
        release: Its folders.

    Returns:
        The configuration, and the tensors under transformers' names, each put together when it is asked for, in the
        type it is stored in.

    Raises:
        InputError: Files are absent or damaged, or tensors are missing, misshapen or too many (all are listed).
    """
    vocabulary = read_original_tokenizer(release).get_vocab()
    config = read_config(release, vocabulary, read_vqgan_config(release.tokenizer / VQGAN_YAML))
    files = shard_files(release.model, config.model_parallel_size or 1)
    parts = [_unfuse(config, _read_part(file), len(files)) for file in files]
    _check_parts(config, parts, files)
    config.vq_config.dtype = parts[0]["norm.weight"].dtype  # where transformers notes the type that weights are in
    stored: dict[str, StoredTensor] = {}
    for name, (original_name, join) in _joins(config).items():
        tensors = [part[original_name] for part in parts]
        # The shape is found with tensors without data, so that nothing is read to learn it.
        shape_only = join([tensor.to("meta") for tensor in tensors])
        stored[name] = describe_tensor(files[0], shape_only, partial(join, tensors))
    return config, stored


def _read_part(file: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, memory-mapped, without those :data:`IGNORED`."""
    value = read_pickled(file)
    # Some programs save the dictionary inside another.
    if set(value) == {"model"} and isinstance(value["model"], dict):
        value = value["model"]
    return {name: tensor for name, tensor in tensors_of(value, file, IGNORED).items() if name not in IGNORED}


def _head_rows(config: ChameleonConfig, num_parts: int) -> tuple[int, int]:
    """Return the rows of the query projection and of the key or value projection in one part."""
    width = config.hidden_size // config.num_attention_heads
    return config.hidden_size // num_parts, width * (
        config.num_key_value_heads or config.num_attention_heads
    ) // num_parts


def _unfuse(config: ChameleonConfig, part: dict[str, Tensor], num_parts: int) -> dict[str, Tensor]:
    """Take fused projections apart: a part's queries, then its keys, then its values; its w1, then its w3."""
    q, kv = _head_rows(config, num_parts)
    mlp = config.intermediate_size // num_parts
    fused = (
        ("attention", "wqkv", {"wq": q, "wk": kv, "wv": kv}),
        ("feed_forward", "w13", {"w1": mlp, "w3": mlp}),
    )
    for layer in range(config.num_hidden_layers):
        for module, name, rows in fused:
            base = f"layers.{layer}.{module}."
            tensor = part.get(f"{base}{name}.weight")
            # One of another size stays as it is, to be reported by its own name.
            if tensor is not None and tensor.shape[:1] == (sum(rows.values()),):
                del part[f"{base}{name}.weight"]
                for side, chunk in zip(rows, torch.split(tensor, list(rows.values())), strict=True):
                    part[f"{base}{side}.weight"] = chunk
    return part


def _expected_part(config: ChameleonConfig, num_parts: int) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of one file."""
    dim, mlp = config.hidden_size, config.intermediate_size // num_parts
    q, kv = _head_rows(config, num_parts)
    layer_shapes = {
        "attention_norm": (dim,),
        "ffn_norm": (dim,),
        "attention.wq": (q, dim),
        "attention.wk": (kv, dim),
        "attention.wv": (kv, dim),
        "attention.wo": (dim, q),
        "feed_forward.w1": (mlp, dim),
        "feed_forward.w2": (dim, mlp),
        "feed_forward.w3": (mlp, dim),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab_size, dim // num_parts),
        "norm.weight": (dim,),
        "output.weight": (config.vocab_size // num_parts, dim),
    }
    # One norm a file, whatever number of heads it serves.
    head = (dim // config.num_attention_heads,)
    for layer in range(config.num_hidden_layers):
        base = f"layers.{layer}."
        shapes |= {f"{base}{name}.weight": shape for name, shape in layer_shapes.items()}
        shapes |= {f"{base}attention.{side}_normalization.{kind}": head for side in "qk" for kind in ("weight", "bias")}
    return shapes


def _check_parts(config: ChameleonConfig, parts: Sequence[Mapping[str, Tensor]], files: Sequence[Path]) -> None:
    """Raise one :class:`InputError` for all missing, misshapen and extra tensors of all files."""
    if config.intermediate_size % len(parts) or config.vocab_size % len(parts):
        raise InputError(
            f"{files[0].parent}: {len(parts)} parts do not divide a vocabulary of {config.vocab_size} and a "
            f"feed-forward width of {config.intermediate_size}"
        )
    expected: dict[str, tuple[int, ...]] = {}
    actual: dict[str, tuple[int, ...]] = {}
    for part, file in zip(parts, files, strict=True):
        label = f"{file.name}: " if len(files) > 1 else ""
        expected |= {label + name: shape for name, shape in _expected_part(config, len(parts)).items()}
        actual |= {label + name: tuple(tensor.shape) for name, tensor in part.items()}
    check_tensors(expected, actual, str(files[0] if len(files) == 1 else files[0].parent))


def _joins(config: ChameleonConfig) -> dict[str, tuple[str, Join]]:
    """Return transformers' names with the original name and how the parts become one."""
    # Layers that split their outputs are stacked; those that split their inputs go side by side.
    rows, columns = partial(_concatenate, dim=0), partial(_concatenate, dim=1)
    layer_joins: dict[str, tuple[str, Join]] = {
        "input_layernorm.weight": ("attention_norm.weight", _average),
        "post_attention_layernorm.weight": ("ffn_norm.weight", _average),
        "self_attn.v_proj.weight": ("attention.wv.weight", rows),
        "self_attn.o_proj.weight": ("attention.wo.weight", columns),
        "mlp.gate_proj.weight": ("feed_forward.w1.weight", rows),
        "mlp.up_proj.weight": ("feed_forward.w3.weight", rows),
        "mlp.down_proj.weight": ("feed_forward.w2.weight", columns),
    }
    num_heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads or config.num_attention_heads}
    for side, heads in num_heads.items():
        layer_joins[f"self_attn.{side}_proj.weight"] = (
            f"attention.w{side}.weight",
            partial(_reorder_rows, heads=heads),
        )
        for kind in ("weight", "bias"):
            original_name = f"attention.{side}_normalization.{kind}"
            layer_joins[f"self_attn.{side}_norm.{kind}"] = (original_name, partial(_repeat_norms, heads=heads))
    joins: dict[str, tuple[str, Join]] = {
        "model.embed_tokens.weight": ("tok_embeddings.weight", columns),
        "model.norm.weight": ("norm.weight", _average),
        "lm_head.weight": ("output.weight", rows),
    }
    for layer in range(config.num_hidden_layers):
        for name, (original_name, join) in layer_joins.items():
            joins[f"model.layers.{layer}.{name}"] = (f"layers.{layer}.{original_name}", join)
    return joins


def _concatenate(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


def _reorder_rows(tensors: Sequence[Tensor], heads: int) -> Tensor:
    return half_split(_concatenate(tensors, 0), heads)


def _average(tensors: Sequence[Tensor]) -> Tensor:
    """Every file has a copy; should they differ, return their mean, as transformers' conversion does."""
    first = tensors[0]
    if len(tensors) == 1 or first.is_meta or all(torch.equal(first, other) for other in tensors[1:]):
        return first
    return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(first.dtype)


def _repeat_norms(tensors: Sequence[Tensor], heads: int) -> Tensor:
    """(P, K) in the order of pairs to (H, K) in the order of halves: a part's norm serves all its heads."""
    # Pairs become halves here as in the rows that the norms scale.
    per_part_PK = torch.stack(list(tensors))
    halves_PK = per_part_PK.view(len(tensors), -1, 2).transpose(1, 2).reshape(len(tensors), -1)
    return halves_PK.repeat_interleave(heads // len(tensors), 0)
