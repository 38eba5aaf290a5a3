"""Chameleon's language model and tokenizer read from folders: Hugging Face's, sharded or not, and the original."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from wm.errors import InputError
from wm.models.folder_checks import check_amount, check_config, check_no_code, neutralise, read_json, refusing
from wm.models.release.pickled import need_downloaded
from wm.models.release.read import find_release, read_original_tokenizer
from wm.models.release.weights import open_original, pairs_to_halves
from wm.models.unreadable import explain_missing_tokenizer
from wm.models.weights import (
    CODEC_PREFIX,
    TensorPlace,
    check_floats,
    check_tensors,
    count_numbers,
    list_tensors,
    read_places,
)

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_COMPUTED = "rotary_emb.inv_freq"
"""A buffer that older versions of transformers wrote; it is computed."""


def read_chameleon_module(
    folder: Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> ChameleonForConditionalGeneration:
    """Read the Hugging Face model of a folder, its own or an original release, without its image tokenizer
    (:class:`~wm.models.codec.codec.ImageCodec` is that).

    Names and shapes are checked against the configuration before a weight is read; one :class:`InputError`
    lists what is missing, misshapen or too much. On the device ``meta`` no weight is read.
    """
    release = find_release(folder)
    if torch.device(device).type == "meta":
        skeleton = _skeleton(open_original(release)[0] if release else _read_config(folder), folder)
        del skeleton.model.vqmodel
        return skeleton.eval()
    if release is not None:
        config, locations = open_original(release)
    else:
        config = _read_config(folder)
        locations = _checked(config, pairs_to_halves(config, list_tensors(folder)), folder)
    # What is memory-mapped is copied: the model must not hang on a file that may be overwritten.
    tensors = {name: tensor.to(dtype, copy=locations[name].make is not None) for name, tensor in read_places(locations)}
    # The image tokenizer that transformers adds is made of random numbers and thrown away.
    with quiet_transformers(), torch.random.fork_rng(devices=[]), refusing(f"{folder} cannot be loaded"):
        module = ChameleonForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    del module.model.vqmodel
    module.config.name_or_path = str(folder)  # PEFT notes it in adapters
    return module.to(device).eval()


def _read_config(folder: Path) -> ChameleonConfig:
    values = read_json(folder / "config.json")
    if values.get("model_type") != "chameleon":
        raise InputError(f"{folder}: model_type is {values.get('model_type')!r}, expected 'chameleon'")
    check_no_code(folder)
    check_config(values, folder / "config.json")
    with refusing(f"{folder / 'config.json'} is no configuration of Chameleon"):
        config = ChameleonConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    neutralise(config)
    return config


def _skeleton(config: ChameleonConfig, folder: Path) -> ChameleonForConditionalGeneration:
    with refusing(f"{folder}: its configuration describes no Chameleon"), torch.device("meta"):
        return ChameleonForConditionalGeneration(config)


def _checked(config: ChameleonConfig, locations: Mapping[str, TensorPlace], folder: Path) -> dict[str, TensorPlace]:
    """Return the places of the tensors that the language model has, or an error that lists what does not fit."""
    skeleton = _skeleton(config, folder)
    check_amount(skeleton, count_numbers(locations), str(folder))
    spare = {_HEAD} if config.tie_word_embeddings else set()
    if spare and _HEAD in locations and _EMBEDDING in locations:
        tied = dict(read_places({name: locations[name] for name in (_HEAD, _EMBEDDING)}))
        if not torch.equal(tied[_HEAD], tied[_EMBEDDING]):
            raise InputError(f"{folder}: config.json ties head and embedding, but {_HEAD} and {_EMBEDDING} differ")

    def counts(name: str) -> bool:
        return not name.startswith(CODEC_PREFIX) and name not in spare and not name.endswith(_COMPUTED)

    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items() if counts(name)}
    used = {name: location for name, location in locations.items() if counts(name)}
    check_tensors(expected, {name: location.shape for name, location in used.items()}, str(folder))
    check_floats(skeleton.state_dict(), used, str(folder))
    return used


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar, and no report of "unexpected" tensors: the decoder's are that, and welcome."""
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a folder; :class:`InputError` if it has none."""
    release = find_release(folder)
    if release is not None:
        return read_original_tokenizer(release)
    if not (folder / "tokenizer.json").is_file():
        explain_missing_tokenizer(folder)
    need_downloaded(folder / "tokenizer.json")
    check_no_code(folder)
    with refusing(f"{folder}: the tokenizer (tokenizer.json, …) cannot be read"):
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
