"""Check a model folder before anything of transformers or PEFT reads it: readable JSON that names no code.

A configuration may name code (``auto_map``), a kernel that is fetched from the hub (``attn_implementation =
"OWNER/NAME"``), or another model that is loaded beside (``audio_tokenizer``). Whether the folder fits one of our
families is not known here.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from wm.errors import InputError
from wm.models.config_bounds import VOCABULARY_KEYS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

MAX_JSON_BYTES = 256 << 20
"""The largest JSON file that is read; released tokenizers have up to 35 MB."""
MAX_DEPTH = 64
"""The most objects and lists inside each other in a configuration."""

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "audio_tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    "adapter_config.json",
)
"""What transformers and PEFT read of a folder beside weights and vocabulary."""
_CODE_KEYS = ("auto_map", "custom_pipelines", "custom_generate")
_KERNEL_KEYS = ("kernel_config", "use_kernels", "allow_all_kernels", "fusion_config")
_IMPLEMENTATION_KEYS = (
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
    "_experts_implementation",
    "_experts_implementation_internal",
)
IMPLEMENTATIONS = frozenset(
    ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm")
)
"""Implementations that are part of torch, transformers or an installed package. Older versions wrote them into
configurations; they are passed over, as :func:`neutralise` chooses anew."""
_QUANTISED_KEYS = ("quantization_config", "compression_config")
_OTHER_FILE_KEYS = ("transformers_weights", "audio_tokenizer")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Args:
        path: The file, UTF-8 with or without byte-order mark, at most :data:`MAX_JSON_BYTES`.

    Returns:
        The object.

    Raises:
        InputError: The file is absent, no file, too large, or holds no JSON object.
    """
    try:
        if not path.is_file():
            if path.exists():
                raise InputError(f"{path} is no file; expected JSON")
            raise InputError(f"no {path.name} in {path.parent}; expected a Hugging Face model folder")
        # Bounded first: a file of gigabytes would be read into memory.
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InputError(f"{path} has {size:,} bytes; expected a JSON file of at most {MAX_JSON_BYTES:,}")
        text = path.read_text(encoding="utf-8-sig")
        # The most frequent damage: a clone without git-lfs.
        if text.startswith("version https://git-lfs"):
            raise InputError(f"{path} is a git-lfs pointer, not the file itself; fetch it with `git lfs pull`")
        value = json.loads(text, parse_constant=_parse_constant)
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{path} is no readable JSON: its values are nested too deeply") from error
    except (ValueError, OSError) as error:  # a whole number of 5,000 digits is a plain ValueError
        raise InputError(f"{path} is no readable JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def check_no_code(folder: Path) -> None:
    """Refuse a folder whose configurations name code, kernels, quantisers or other models.

    Nothing of the folder is given to transformers or PEFT before. Files of code that nothing names are harmless, as
    they are never imported.

    Args:
        folder: A full model folder, or one of an adapter, a codec or a processor.

    Raises:
        InputError: A configuration names what is never run or fetched; the message says the file, the key and the
            value.
    """
    for name in CONFIG_FILES:
        file = folder / name
        if file.is_file():
            _check_no_code_in(read_json(file), file, "")
    # transformers looks for code in a folder of this name, whatever the configuration says.
    if (folder / "custom_generate").exists():
        raise InputError(
            f"{folder / 'custom_generate'} holds code for sampling; code of a model folder is never run: remove it"
        )


def neutralise(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """Take the choice of attention and experts from a configuration: the class's own default is used.

    Args:
        config: A configuration of transformers, changed in place, as are those inside it.

    Returns:
        ``config``.
    """
    # A name of the hub in it would be fetched when the model is built.
    config._attn_implementation = None
    config._experts_implementation = None
    for value in list(vars(config).values()):
        # Not every nested configuration is among `sub_configs`, through which transformers passes the choice on.
        if hasattr(value, "_attn_implementation_internal"):
            neutralise(value)
    return config


@contextmanager
def refusing(subject: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged folder into one line.

    Args:
        subject: The start of the message, such as "FILE is no tokenizer".

    Raises:
        InputError: Something was raised inside; a GPU without memory is passed on as it is.
    """
    try:
        yield
    except (InputError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the libraries raise bare exceptions, and whatever odd files make of their code
        raise InputError(f"{subject}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Put the message of an error in one line of at most 300 characters, its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _parse_constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)


def _check_no_code_in(value: object, file: Path, path: str, depth: int = 0) -> None:
    if depth > MAX_DEPTH:
        raise InputError(f"{file}: {path:.80}… is nested too deeply, expected at most {MAX_DEPTH} levels")
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict | list):
                _check_no_code_in(item, file, f"{path}[{index}]", depth + 1)
    if not isinstance(value, dict):
        return
    # Any depth: transformers passes nested configurations on to its auto classes.
    for key, item in value.items():
        key_path = f"{path}.{key}" if path else str(key)
        _check_no_code_key(key, item, file, key_path)
        if key not in VOCABULARY_KEYS:
            _check_no_code_in(item, file, key_path, depth + 1)


def _check_no_code_key(key: str, value: object, file: Path, path: str) -> None:
    # An empty value switches the key off.
    if value is None or value is False or value in ({}, []):
        return
    if key in _CODE_KEYS:
        raise InputError(
            f"{file}: {path} = {_shown(value)} names code of the folder's own, which is never run; expected a model "
            "that transformers has a class for (if it has one, remove the key)"
        )
    # transformers fetches kernels from the hub when a configuration asks for them.
    if key in _KERNEL_KEYS:
        raise InputError(f"{file}: {path} = {_shown(value)} asks for kernels, which are never fetched; remove the key")
    # A name with a slash is one of the hub, and fetched; older versions wrote their own choice, which is harmless.
    if key in _IMPLEMENTATION_KEYS:
        choices = list(value.values()) if isinstance(value, dict) else [value]
        unknown = [
            choice
            for choice in choices
            if choice is not None and not (isinstance(choice, str) and choice in IMPLEMENTATIONS)
        ]
        if unknown:
            raise InputError(
                f"{file}: {path} = {_shown(unknown[0])} names a kernel, which is never fetched or run; expected one "
                "of eager and sdpa, or no such key"
            )
    # Reading such weights takes a library of others, which runs code that it finds.
    if key in _QUANTISED_KEYS:
        method = value.get("quant_method") if isinstance(value, dict) else value
        raise InputError(
            f"{file}: {path} says that the weights are quantised ({_shown(method)}), which needs code and kernels of "
            "others; expected weights in float32, bfloat16 or float16"
        )
    # Another file would be read unchecked.
    if key in _OTHER_FILE_KEYS and file.name != "special_tokens_map.json":
        raise InputError(f"{file}: {path} = {_shown(value)} names other weights to be read, which is not done")
    # PEFT imports the class that is named here.
    if key == "auto_mapping" and isinstance(value, dict):
        library = str(value.get("parent_library", "transformers"))
        if library.split(".", maxsplit=1)[0] not in ("transformers", "peft", "wm"):
            raise InputError(f"{file}: {path} = {_shown(library)} names code of others, which is never run")
    if key == "megatron_config" or (key == "megatron_core" and value != "megatron.core"):
        raise InputError(f"{file}: {path} = {_shown(value)} asks for Megatron's layers, which are not supported")


def _shown(value: object) -> str:
    return f"{value!r:.80}"
