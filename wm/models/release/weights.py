"""Language-model tensors between the original release's names and shapes and transformers'.

Three things differ besides names. Rotary positions turn neighbouring pairs (2i, 2i + 1) of a head in the
original and pairs (i, i + d/2) in transformers, so the rows of query and key projections, and the scale and
bias of their norms, are reordered. Queries, keys and values may be fused (``wqkv``), as may the two gates
(``w13``). Under model parallelism heads, gates and vocabulary are split over the files; the norm of queries and
keys is one a file there and one a head in transformers. Source: ``chameleon/inference/transformer.py``.

Shape suffixes: V vocabulary, D model width, H heads, K head width, M feed-forward width, P parts.
"""

from collections.abc import Callable, Mapping, Sequence
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
Maker: TypeAlias = Callable[[], Tensor]
_LAYER_NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}


def open_original(release: Release) -> tuple[ChameleonConfig, dict[str, StoredTensor]]:
    """Open configuration and language-model tensors of a release, under transformers' names; nothing is read yet.

    Raises :class:`InputError` for files that are absent or damaged, and one that lists all tensors that are
    missing, misshapen or too many.
    """
    vocabulary = read_original_tokenizer(release).get_vocab()
    config = read_config(release, vocabulary, read_vqgan_config(release.tokenizer / VQGAN_YAML))
    files = shard_files(release.model, config.model_parallel_size or 1)
    parts = read_parts(files)
    check_parts(config, parts, files)
    config.vq_config.dtype = parts[0]["norm.weight"].dtype  # where transformers notes the type that weights are in
    return config, to_transformers(config, parts, files)


def read_parts(files: Sequence[Path]) -> list[dict[str, Tensor]]:
    """Read the tensors of each file, memory-mapped, without those :data:`IGNORED`."""
    parts = []
    for file in files:
        value = read_pickled(file)
        if set(value) == {"model"} and isinstance(value["model"], dict):
            value = value["model"]
        tensors = tensors_of(value, file, IGNORED)
        parts.append({name: tensor for name, tensor in tensors.items() if name not in IGNORED})
    return parts


def expected_part(config: ChameleonConfig, parts: int, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one file; fused projections where ``names`` has fused ones."""
    dim, heads, mlp = config.hidden_size, config.num_attention_heads, config.intermediate_size // parts
    head = dim // heads
    q, kv = dim // parts, head * (config.num_key_value_heads or heads) // parts
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (config.vocab_size, dim // parts),
        "norm.weight": (dim,),
        "output.weight": (config.vocab_size // parts, dim),
    }
    present = set(names)
    for layer in range(config.num_hidden_layers):
        base = f"layers.{layer}."
        attention, mlp_base = f"{base}attention.", f"{base}feed_forward."
        shapes |= {f"{base}{norm}.weight": (dim,) for norm in _LAYER_NORMS.values()}
        shapes |= {f"{attention}{side}_normalization.{part}": (head,) for side in "qk" for part in ("weight", "bias")}
        if f"{attention}wqkv.weight" in present:
            shapes[f"{attention}wqkv.weight"] = (q + 2 * kv, dim)
        else:
            shapes |= {f"{attention}w{side}.weight": (q if side == "q" else kv, dim) for side in "qkv"}
        shapes[f"{attention}wo.weight"] = (dim, q)
        if f"{mlp_base}w13.weight" in present:
            shapes[f"{mlp_base}w13.weight"] = (2 * mlp, dim)
        else:
            shapes |= {f"{mlp_base}{gate}.weight": (mlp, dim) for gate in ("w1", "w3")}
        shapes[f"{mlp_base}w2.weight"] = (dim, mlp)
    return shapes


def check_parts(config: ChameleonConfig, parts: Sequence[Mapping[str, Tensor]], files: Sequence[Path]) -> None:
    """One :class:`InputError` for all missing, misshapen and extra tensors of all files."""
    if config.intermediate_size % len(parts) or config.vocab_size % len(parts):
        raise InputError(
            f"{files[0].parent}: {len(parts)} parts do not divide a vocabulary of {config.vocab_size} and a "
            f"feed-forward width of {config.intermediate_size}"
        )
    expected: dict[str, tuple[int, ...]] = {}
    actual: dict[str, tuple[int, ...]] = {}
    for part, file in zip(parts, files, strict=True):
        label = f"{file.name}: " if len(files) > 1 else ""
        expected |= {label + name: shape for name, shape in expected_part(config, len(parts), list(part)).items()}
        actual |= {label + name: tuple(tensor.shape) for name, tensor in part.items()}
    check_tensors(expected, actual, str(files[0] if len(files) == 1 else files[0].parent))


def to_transformers(
    config: ChameleonConfig, parts: Sequence[Mapping[str, Tensor]], files: Sequence[Path]
) -> dict[str, StoredTensor]:
    """Map to transformers' names; each tensor is put together when it is asked for, in the type it is stored in."""
    makers = _Makers(config, parts).all()
    # Shapes and types are had from tensors without data, so that nothing is read to learn them.
    phantom = [{name: tensor.to("meta") for name, tensor in part.items()} for part in parts]
    shadows = _Makers(config, phantom).all()
    return {name: describe_tensor(files[0], shadows[name](), make) for name, make in makers.items()}


class _Makers:
    def __init__(self, config: ChameleonConfig, parts: Sequence[Mapping[str, Tensor]]) -> None:
        self.config, self.parts = config, parts
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = config.num_key_value_heads or self.heads
        self.head: int = config.hidden_size // self.heads

    def all(self) -> dict[str, Maker]:
        makers: dict[str, Maker] = {
            "model.embed_tokens.weight": lambda: self._joined("tok_embeddings.weight", 1),
            "model.norm.weight": lambda: self._replicated("norm.weight"),
            "lm_head.weight": lambda: self._joined("output.weight", 0),
        }
        for layer in range(self.config.num_hidden_layers):
            makers |= self._layer(f"layers.{layer}.")
        return makers

    def _layer(self, base: str) -> dict[str, Maker]:
        attention, gates = f"{base}attention.", f"{base}feed_forward."
        makers: dict[str, Maker] = {
            "self_attn.q_proj.weight": lambda: half_split(self._qkv(attention, "q"), self.heads),
            "self_attn.k_proj.weight": lambda: half_split(self._qkv(attention, "k"), self.kv_heads),
            "self_attn.v_proj.weight": lambda: self._qkv(attention, "v"),
            "self_attn.o_proj.weight": lambda: self._joined(f"{attention}wo.weight", 1),
            "mlp.gate_proj.weight": lambda: self._gate(gates, "w1"),
            "mlp.up_proj.weight": lambda: self._gate(gates, "w3"),
            "mlp.down_proj.weight": lambda: self._joined(f"{gates}w2.weight", 1),
        }
        for side, heads in (("q", self.heads), ("k", self.kv_heads)):
            for part in ("weight", "bias"):
                makers[f"self_attn.{side}_norm.{part}"] = self._norm_maker(
                    f"{attention}{side}_normalization.{part}", heads
                )
        for ours, theirs in _LAYER_NORMS.items():
            makers[f"{ours}.weight"] = self._replicated_maker(f"{base}{theirs}.weight")
        return {f"model.{base}{name}": make for name, make in makers.items()}

    def _joined(self, name: str, dim: int) -> Tensor:
        tensors = [part[name] for part in self.parts]
        return tensors[0] if len(tensors) == 1 else torch.cat(tensors, dim)

    def _replicated(self, name: str) -> Tensor:
        """Every file has a copy; should they have drifted apart, their mean, as in transformers' conversion."""
        tensors = [part[name] for part in self.parts]
        if len(tensors) == 1 or tensors[0].is_meta or all(torch.equal(tensors[0], other) for other in tensors[1:]):
            return tensors[0]
        return torch.stack([tensor.double() for tensor in tensors]).mean(0).to(tensors[0].dtype)

    def _replicated_maker(self, name: str) -> Maker:
        return lambda: self._replicated(name)

    def _norm_maker(self, name: str, heads: int) -> Maker:
        """(P, K) in the order of pairs to (H, K) in the order of halves: a part's norm serves all its heads."""

        def make() -> Tensor:
            per_part_PK = torch.stack([part[name] for part in self.parts])
            halves_PK = per_part_PK.view(len(self.parts), -1, 2).transpose(1, 2).reshape(len(self.parts), -1)
            return halves_PK.repeat_interleave(heads // len(self.parts), 0)

        return make

    def _qkv(self, attention: str, side: str) -> Tensor:
        """Rows of all heads; a fused projection holds a part's queries, then its keys, then its values."""
        if f"{attention}w{side}.weight" in self.parts[0]:
            return self._joined(f"{attention}w{side}.weight", 0)
        q, kv = (heads * self.head // len(self.parts) for heads in (self.heads, self.kv_heads))
        spans = {"q": slice(0, q), "k": slice(q, q + kv), "v": slice(q + kv, q + 2 * kv)}
        return torch.cat([part[f"{attention}wqkv.weight"][spans[side]] for part in self.parts])

    def _gate(self, gates: str, name: str) -> Tensor:
        """w1 (under the non-linearity) or w3; fused, a part's w1 stands before its w3."""
        if f"{gates}{name}.weight" in self.parts[0]:
            return self._joined(f"{gates}{name}.weight", 0)
        index = ("w1", "w3").index(name)
        return torch.cat([part[f"{gates}w13.weight"].chunk(2)[index] for part in self.parts])
