"""Meta's original release of Chameleon (and Anole's, the same layout): its files, configuration and tokenizer.

    models/7b/{consolidated.pth, params.json, consolidate_params.json, checklist.chk}
    models/30b/{consolidated.00.pth … consolidated.03.pth, …}
    tokenizer/{text_tokenizer.json, vqgan.ckpt, vqgan.yaml, checklist.chk}

The same files in one flat folder are understood too. Sources of the layout: ``chameleon/download_data.py``,
``chameleon/inference/{loader,transformer,vocab}.py`` of facebookresearch/chameleon, and transformers'
``convert_chameleon_weights_to_hf.py``.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import ChameleonConfig, ChameleonVQVAEConfig, PreTrainedTokenizerFast

from wm.errors import InputError
from wm.models.codec.taming import VQGAN_CKPT
from wm.models.config_bounds import MAX_INTEGER, MAX_LAYERS, MAX_VOCABULARY
from wm.models.folder_checks import read_json
from wm.models.pickled import check_downloaded
from wm.models.unreadable import find_release_models

PARAMS, CONSOLIDATE = "params.json", "consolidate_params.json"
TOKENIZER = "text_tokenizer.json"
IMAGE_TOKEN, IMAGE_TOKEN_WAS = "<image>", "<reserved08707>"
SEPARATOR = "<reserved08706>"
_SHARD = re.compile(r"consolidated\.(\d+)\.pth")


@dataclass(frozen=True)
class Release:
    """Folders of an original release."""

    model: Path
    """Holds ``params.json`` and ``consolidated*.pth``."""
    tokenizer: Path
    """Holds ``text_tokenizer.json``, ``vqgan.ckpt`` and ``vqgan.yaml``."""


def find_release(path: Path) -> Release:
    """Find the parts of the original release at a path.

    Args:
        path: The release's root, its model folder, or a flat folder of all files.

    Returns:
        Its folders.

    Raises:
        InputError: There is none, or several models are in it.
    """
    models = find_release_models(path)
    if not models:
        raise InputError(f"no {PARAMS} and consolidated*.pth in {path}; expected models/7b/{PARAMS} or so")
    if len(models) > 1:
        raise InputError(f"{path} holds {len(models)} models; give one of {', '.join(map(str, models))}")
    model = models[0]
    # The tokenizer serves models of all sizes, so that it is beside the folder of models.
    for folder in (path, path / "tokenizer", model, *(parent / "tokenizer" for parent in (model, *model.parents[:2]))):
        if any((folder / name).is_file() for name in (TOKENIZER, VQGAN_CKPT)):
            return Release(model, folder)
    return Release(model, path / "tokenizer")


def shard_files(folder: Path, model_parallel_size: int) -> list[Path]:
    """List the weight files of a release.

    Args:
        folder: The model folder.
        model_parallel_size: Number of files, as ``params.json`` has it.

    Returns:
        ``consolidated.pth``, or ``consolidated.00.pth`` and so on, in order.

    Raises:
        InputError: One is missing, or there are more.
    """
    # A consolidated release is one file, into however many its training was split.
    if (folder / "consolidated.pth").is_file():
        return [folder / "consolidated.pth"]
    # By number, not by name: the ranks decide which heads a file holds.
    shard_of_rank = {int(match[1]): file for file in folder.iterdir() if (match := _SHARD.fullmatch(file.name))}
    expected = range(model_parallel_size)
    missing = [f"consolidated.{rank:02d}.pth" for rank in expected if rank not in shard_of_rank]
    if missing:
        names = ", ".join(["consolidated.pth"] if model_parallel_size == 1 else missing)
        raise InputError(f"{folder}: {names} not there; {PARAMS} promises {model_parallel_size} model-parallel part(s)")
    if len(shard_of_rank) != model_parallel_size:
        raise InputError(
            f"{folder} holds {len(shard_of_rank)} files consolidated.NN.pth, but {PARAMS} and {CONSOLIDATE} say "
            f"model_parallel_size is {model_parallel_size}"
        )
    return [shard_of_rank[rank] for rank in expected]


def read_params(folder: Path) -> dict[str, object]:
    """Merge ``params.json``, its ``model`` section and ``consolidate_params.json``, the later winning."""
    params = read_json(folder / PARAMS)
    model = params.get("model", {})
    if not isinstance(model, dict):
        raise InputError(f"{folder / PARAMS}: 'model' is {model!r:.60}, expected an object")
    # Written by the consolidation, so later than the other.
    consolidate = read_json(folder / CONSOLIDATE) if (folder / CONSOLIDATE).is_file() else {}
    return {**params, **model, **consolidate}


def read_config(release: Release, vocabulary: dict[str, int], vq_config: ChameleonVQVAEConfig) -> ChameleonConfig:
    """Build the Hugging Face configuration of the same model.

    Args:
        release: Its folders.
        vocabulary: Token name to vocabulary id.
        vq_config: Configuration of its image codec.

    Returns:
        The configuration.

    Raises:
        InputError: A parameter is absent or has no meaning in Chameleon, or the vocabulary does not fit.
    """
    folder = release.model
    where, params = folder / PARAMS, read_params(folder)
    dim, heads = (_positive(params, name, where) for name in ("dim", "n_heads"))
    layers = _positive(params, "n_layers", where, maximum=MAX_LAYERS)
    kv_heads = _positive(params, "n_kv_heads", where) if params.get("n_kv_heads") is not None else heads
    # The files themselves decide: a consolidated release keeps the number it was trained with.
    parts = len(shard_files(folder, _positive(params, "model_parallel_size", where, 1)))
    if dim % heads or heads % kv_heads or kv_heads % parts or dim // heads % 2:
        raise InputError(
            f"{where}: dim {dim}, n_heads {heads}, n_kv_heads {kv_heads} and {parts} part(s) do not divide evenly"
        )
    # Without these norms it is another architecture, of the same file names.
    if not params.get("qk_normalization", True):
        raise InputError(f"{where}: qk_normalization is false; Chameleon normalises queries and keys")
    multiplier = _number(params, "ffn_dim_multiplier", where, 1.0)
    theta = _number(params, "rope_theta", where, 10_000.0)
    # The release does not say how long its sequences were; its base of rotary angles does.
    max_positions = 4096 if theta <= 10_000 else 16_384
    # -1: as large as the tokenizer.
    highest = max(vocabulary.values(), default=0)
    unset = params.get("vocab_size") in (None, -1)
    rows = highest + 1 if unset else _positive(params, "vocab_size", where, maximum=MAX_VOCABULARY)
    if rows <= highest:
        raise InputError(
            f"{where}: vocab_size is {rows}, but {release.tokenizer / TOKENIZER} numbers its tokens up to {highest}: "
            "another model's tokenizer?"
        )
    return ChameleonConfig(
        vocab_size=rows,
        hidden_size=dim,
        intermediate_size=mlp_size(dim, multiplier, _positive(params, "multiple_of", where, 256)),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=_number(params, "norm_eps", where, 1e-5),
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=_positive(params, "max_seq_len", where) if params.get("max_seq_len") else max_positions,
        model_parallel_size=parts,
        swin_norm=bool(params.get("swin_norm", False)),
        tie_word_embeddings=False,
        bos_token_id=vocabulary.get("<s>"),
        pad_token_id=vocabulary.get("<pad>"),
        eos_token_id=vocabulary.get("</s>"),
        vq_config=vq_config.to_dict(),
        vocabulary_map=dict(sorted(vocabulary.items(), key=lambda item: item[1])),
    )


def mlp_size(dim: int, multiplier: float, multiple_of: int) -> int:
    """Compute the feed-forward width: two thirds of 4 ``dim``, times the multiplier, rounded up to a multiple.

    Args:
        dim: Width of the model.
        multiplier: ``ffn_dim_multiplier`` of ``params.json``.
        multiple_of: What the width is a multiple of.
    """
    # Truncated twice, as in the original: the width must be exactly the same.
    width = int(multiplier * int(2 * 4 * dim / 3))
    return multiple_of * ((width + multiple_of - 1) // multiple_of)


def read_original_tokenizer(release: Release) -> PreTrainedTokenizerFast:
    """Read the tokenizer of ``text_tokenizer.json``; as in the Hugging Face release ``<reserved08707>`` becomes
    ``<image>``."""
    path = release.tokenizer / TOKENIZER
    check_downloaded(path)
    # As JSON first: a token is renamed before the library numbers anything.
    values = read_json(path)
    _rename_image_token(values)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the library raises bare exceptions
        raise InputError(f"{path} is no tokenizer: {str(error)[:200]}") from error
    vocabulary = tokenizer.get_vocab()
    # The file says which tokens are special, not what for.
    roles = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>", "sep": SEPARATOR}
    role_tokens = {f"{role}_token": name for role, name in roles.items() if name in vocabulary}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **role_tokens)


def _rename_image_token(values: dict[str, Any]) -> None:
    model = values.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    # transformers' processor looks for it by this name.
    if isinstance(vocabulary, dict) and IMAGE_TOKEN not in vocabulary and IMAGE_TOKEN_WAS in vocabulary:
        vocabulary[IMAGE_TOKEN] = vocabulary.pop(IMAGE_TOKEN_WAS)
        for token in values.get("added_tokens") or []:
            if token.get("content") == IMAGE_TOKEN_WAS:
                token["content"] = IMAGE_TOKEN


def _positive(
    params: Mapping[str, object], name: str, where: Path, default: int | None = None, *, maximum: int = MAX_INTEGER
) -> int:
    value = params.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{where}: {name} is {value!r:.60}, expected a positive whole number")
    if value > maximum:
        raise InputError(f"{where}: {name} is {value:,}, expected at most {maximum:,}")
    return value


def _number(params: Mapping[str, object], name: str, where: Path, default: float) -> float:
    value = params.get(name)
    if value is None:
        return default
    if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
        raise InputError(f"{where}: {name} is {value!r}, expected a number above 0")
    return float(value)
