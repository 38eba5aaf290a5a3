"""Write a Chameleon in the layout of the original release (see :mod:`wm.models.release.read`)."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ChameleonConfig

from wm.errors import InputError
from wm.models.checkpoints import preprocessor_config, written_aside
from wm.models.codec.codec import ImageCodec
from wm.models.codec.files import ORIGINAL_SCALE, read_codec
from wm.models.families.chameleon import ChameleonVLM
from wm.models.manifest import need_same_codec
from wm.models.release.read import (
    CONSOLIDATE,
    IMAGE_TOKEN,
    IMAGE_TOKEN_WAS,
    PARAMS,
    TOKENIZER,
    VQGAN_CKPT,
    VQGAN_YAML,
    mlp_size,
)
from wm.models.release.vqgan import write_vqgan_yaml
from wm.models.release.weights import interleaved
from wm.runs import write_json


def save_original(
    vlm: ChameleonVLM, path: str | Path, *, codec: ImageCodec | None = None, parts: int = 1, size: str = "7b"
) -> None:
    """Write ``models/SIZE`` and ``tokenizer`` that :func:`wm.models.load_model` and Meta's own code read.

    ``parts``: files of a model-parallel split. The codec, with its decoder, is ``codec`` or that of the folder the
    model was read from. Raises :class:`InputError` for what the layout cannot hold: an adapter that is not merged,
    norms of queries and keys that differ between the heads of a part, a codec without group norm or decoder.
    """
    out = Path(path)
    if vlm.module is not vlm.inner:
        raise InputError(f"cannot write {out}: the original layout holds no adapter; merge it first")
    if codec is None:
        if vlm.folder is None:
            raise InputError(f"cannot write {out}: give the codec, the model was not read from a folder that has one")
        codec = read_codec(vlm.folder)
    need_same_codec(codec.codec_id, vlm.codec_id, out)
    _need_writable(codec, out)
    config: ChameleonConfig = vlm.inner.config
    sizes = {name: getattr(config, name) for name in ("num_key_value_heads", "intermediate_size", "vocab_size")}
    uneven = [name for name, count in sizes.items() if parts < 1 or count % parts]
    if uneven:
        raise InputError(f"parts is {parts}, expected a divisor of {uneven[0]} {sizes[uneven[0]]}")
    files = split(config, vlm.inner.state_dict(), parts)
    with written_aside(out) as aside:
        model, tokenizer = aside / "models" / size, aside / "tokenizer"
        model.mkdir(parents=True)
        tokenizer.mkdir()
        for rank, tensors in enumerate(files):
            name = "consolidated.pth" if parts == 1 else f"consolidated.{rank:02d}.pth"
            torch.save(tensors, model / name)
        write_json(model / PARAMS, params_of(config, parts))
        write_json(model / CONSOLIDATE, {"model_parallel_size": parts})
        _write_tokenizer(vlm, codec, tokenizer)
        for folder in (model, tokenizer):
            write_checklist(folder)


def params_of(config: ChameleonConfig, parts: int) -> dict[str, Any]:
    """``params.json`` of a configuration; the feed-forward width is written as multiplier and multiple."""
    dim, mlp = config.hidden_size, config.intermediate_size
    multiplier, multiple = 1.0, 256
    if mlp_size(dim, multiplier, multiple) != mlp:
        multiplier, multiple = min(1.0, mlp / int(8 * dim / 3)), mlp
    model = {
        "dim": dim,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "vocab_size": config.vocab_size,
        "ffn_dim_multiplier": multiplier,
        "multiple_of": multiple,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_parameters["rope_theta"],
        "qk_normalization": True,
        "swin_norm": bool(config.swin_norm),
    }
    return {"model": model, "model_parallel_size": parts, "max_seq_len": config.max_position_embeddings}


def split(config: ChameleonConfig, tensors: Mapping[str, Tensor], parts: int) -> list[dict[str, Tensor]]:
    """Split transformers' tensors into those of each model-parallel file; the inverse of ``original_weights``."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads or config.num_attention_heads
    tensor_of = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    embedding = tensor_of["model.embed_tokens.weight"]
    files: list[dict[str, Tensor]] = [{} for _ in range(parts)]

    def put(name: str, tensor: Tensor, dim: int | None) -> None:
        chunks = [tensor] * parts if dim is None else tensor.chunk(parts, dim)
        for file, chunk in zip(files, chunks, strict=True):
            file[name] = chunk.clone()

    put("tok_embeddings.weight", embedding, 1)
    put("norm.weight", tensor_of["model.norm.weight"], None)
    put("output.weight", tensor_of.get("lm_head.weight", embedding), 0)
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"layers.{layer}."
        put(f"{theirs}attention.wq.weight", interleaved(tensor_of[f"{ours}self_attn.q_proj.weight"], heads), 0)
        put(f"{theirs}attention.wk.weight", interleaved(tensor_of[f"{ours}self_attn.k_proj.weight"], kv_heads), 0)
        put(f"{theirs}attention.wv.weight", tensor_of[f"{ours}self_attn.v_proj.weight"], 0)
        put(f"{theirs}attention.wo.weight", tensor_of[f"{ours}self_attn.o_proj.weight"], 1)
        put(f"{theirs}feed_forward.w1.weight", tensor_of[f"{ours}mlp.gate_proj.weight"], 0)
        put(f"{theirs}feed_forward.w3.weight", tensor_of[f"{ours}mlp.up_proj.weight"], 0)
        put(f"{theirs}feed_forward.w2.weight", tensor_of[f"{ours}mlp.down_proj.weight"], 1)
        put(f"{theirs}attention_norm.weight", tensor_of[f"{ours}input_layernorm.weight"], None)
        put(f"{theirs}ffn_norm.weight", tensor_of[f"{ours}post_attention_layernorm.weight"], None)
        for side in "qk":
            for kind in ("weight", "bias"):
                name = f"{ours}self_attn.{side}_norm.{kind}"
                per_part_PK = _norm_of_parts(tensor_of[name], parts, name)
                for file, norm_K in zip(files, per_part_PK, strict=True):
                    file[f"{theirs}attention.{side}_normalization.{kind}"] = norm_K.clone()
    return files


def write_checklist(folder: Path) -> None:
    """``checklist.chk``: the MD5 sum and name of every other file, as ``md5sum`` writes them."""
    lines = []
    for file in sorted(folder.iterdir()):
        with file.open("rb") as stream:
            lines.append(f"{hashlib.file_digest(stream, 'md5').hexdigest()}  {file.name}\n")
    (folder / "checklist.chk").write_text("".join(lines))


def _norm_of_parts(norm_HK: Tensor, parts: int, name: str) -> Tensor:
    """(H, K) in the order of halves to (P, K) in that of pairs."""
    groups_PGK = norm_HK.view(parts, -1, norm_HK.shape[-1])
    if not torch.equal(groups_PGK, groups_PGK[:, :1].expand_as(groups_PGK)):
        raise InputError(
            f"{name} differs between heads, but the original layout has one norm a file; write more parts, or the "
            "Hugging Face layout"
        )
    return groups_PGK[:, 0].view(parts, 2, -1).transpose(1, 2).reshape(parts, -1)


def _need_writable(codec: ImageCodec, out: Path) -> None:
    if not codec.has_decoder:
        raise InputError(f"cannot write {out}: the codec has no decoder, which vqgan.ckpt holds")
    if getattr(codec.vqgan.config, "norm_over", "groups") != "groups":
        raise InputError(f"cannot write {out}: the original layout knows group norm only, not norm_over='channels'")


def _write_tokenizer(vlm: ChameleonVLM, codec: ImageCodec, folder: Path) -> None:
    values = json.loads(vlm.tokenizer.backend_tokenizer.to_str())
    vocabulary = values["model"]["vocab"]
    if IMAGE_TOKEN in vocabulary and IMAGE_TOKEN_WAS not in vocabulary:
        vocabulary[IMAGE_TOKEN_WAS] = vocabulary.pop(IMAGE_TOKEN)
        for token in values["added_tokens"]:
            if token["content"] == IMAGE_TOKEN:
                token["content"] = IMAGE_TOKEN_WAS
    (folder / TOKENIZER).write_text(json.dumps(values, ensure_ascii=False))
    state = {name: tensor.detach().cpu().clone() for name, tensor in codec.vqgan.state_dict().items()}
    torch.save({"state_dict": state}, folder / VQGAN_CKPT)
    write_vqgan_yaml(codec.vqgan.config, folder / VQGAN_YAML)
    if codec.scale != ORIGINAL_SCALE:
        write_json(folder / "preprocessor_config.json", preprocessor_config(codec))
