"""Read the Hugging Face folder of any family: configuration, weights and tokenizer, each checked before it is used."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from wm.errors import InputError
from wm.files.mirror import uri_of
from wm.models.codec.codec import ImageCodec
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.missing import explain_missing_tokenizer
from wm.models.pickled import check_downloaded
from wm.models.tensor_checks import check_amount, check_floats, check_tensors, count_numbers
from wm.models.vlm import Facts, UnifiedVLM
from wm.models.weights import StoredTensor, list_tensors, read_stored

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ItemT = TypeVar("ItemT")
Device: TypeAlias = str | torch.device
Renames: TypeAlias = Sequence[tuple[str, str]]
"""(prefix in older files, prefix of today's module), the first that fits is taken."""
VlmT = TypeVar("VlmT", bound=UnifiedVLM)
_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Family(Generic[VlmT]):
    """Functions that read and write folders of one ``model_type``."""

    load: Callable[[Path, Device, torch.dtype, Facts], VlmT]
    """Load a full folder; its codec was read before and is described by the facts."""
    read_codec: Callable[[Path, Device, Path | None], ImageCodec]
    """Read the image codec of a full folder, perhaps with the decoder of another file, and no other weights."""
    write: Callable[[VlmT, ImageCodec, Mapping[str, Tensor], Path], None]
    """Write model, codec and tokenizer to a full folder; the tensors are the language model's."""
    codec_shape: Callable[[Path], tuple[int, int]] | None = None
    """Return the tokens an image and the codes of the codebook, from configurations alone; None: the codec must be
    read."""


def read_module(
    folder: Path,
    model_class: "type[PreTrainedModel]",
    config: "PreTrainedConfig",
    device: Device,
    dtype: torch.dtype,
    *,
    without: tuple[str, ...] = (),
    renames: Renames = (),
    adapt: Callable[[Mapping[str, StoredTensor]], Mapping[str, StoredTensor]] = dict,
) -> "PreTrainedModel":
    """Read the Hugging Face model of a folder, in evaluation mode.

    Names, shapes, types and amount are checked against the configuration before a weight is read. transformers is
    given the tensors, never the folder, so that it reads nothing that was not checked.

    Args:
        folder: Holds the weight files.
        model_class: The model's class in transformers.
        config: As :func:`read_config` returns it.
        device: On ``meta`` no weight file is looked at.
        dtype: Of the model's weights.
        without: Prefixes of modules that are not needed; they are neither read nor kept.
        renames: Names in older files.
        adapt: Gives the stored tensors the shapes of today's class.

    Returns:
        The model.

    Raises:
        InputError: The configuration describes no such model, or the tensors do not fit it; all that are missing,
            misshapen or surplus are listed.
    """
    # 1. Build the shapes alone, so that a wrong folder costs no memory.
    skeleton = build_skeleton(model_class, config, folder)
    if torch.device(device).type == "meta":
        return _without(skeleton, without).eval()
    # 2. Compare names, shapes, types and amount with the headers of the weight files.
    locations = adapt(list_tensors(folder))
    today = {name: rename(name, renames) for name in locations}
    used = _check_stored(skeleton, {today[name]: location for name, location in locations.items()}, without, folder)
    # 3. Read. What is memory-mapped is copied: the model must not depend on a file that may be overwritten.
    selection = {name: location for name, location in locations.items() if today[name] in used}
    tensors = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=locations[name].make is not None)
        for name, tensor in read_stored(selection)
    }
    # 4. Build. Parts that the file does not hold get random numbers, and are removed below.
    with quiet_transformers(), torch.random.fork_rng(devices=[]), refusing(f"{folder} cannot be loaded"):
        module = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    module.config.name_or_path = uri_of(folder) or str(folder)  # PEFT notes it in adapters
    return _without(module, without).to(device).eval()


def _check_stored(
    skeleton: "PreTrainedModel", stored: Mapping[str, StoredTensor], without: tuple[str, ...], folder: Path
) -> dict[str, StoredTensor]:
    """Return the stored tensors that a model needs, or raise :class:`InputError` for all that do not fit."""
    model_tensors = skeleton.state_dict()
    # A tied head need not be stored; where it is, it must be the same.
    is_tied = bool(getattr(skeleton.config, "tie_word_embeddings", False))
    if is_tied:
        _check_tied(folder, stored)
    spare = {_HEAD} if is_tied else set()
    used, expected = _but(stored, spare, without), _but(model_tensors, spare, without)
    shapes = {name: tensor.shape for name, tensor in used.items()}
    check_tensors({name: tensor.shape for name, tensor in expected.items()}, shapes, str(folder))
    check_floats(model_tensors, used, str(folder))
    check_amount(skeleton, count_numbers(stored), str(folder))
    return used


def build_skeleton(model_class: "type[PreTrainedModel]", config: "PreTrainedConfig", folder: Path) -> "PreTrainedModel":
    """Build a model without data, on the device ``meta``.

    Args:
        model_class: The model's class in transformers.
        config: As :func:`read_config` returns it.
        folder: Named in the error.

    Raises:
        InputError: The configuration of ``folder`` describes no such model.
    """
    subject = f"{folder / 'config.json'} describes no {model_class.__name__}"
    with refusing(subject), torch.device("meta"):
        return model_class(config)


def _without(module: "PreTrainedModel", prefixes: tuple[str, ...]) -> "PreTrainedModel":
    # A module that is not there takes no memory, and no adapter finds its layers.
    for prefix in prefixes:
        parent, _, name = prefix.rstrip(".").rpartition(".")
        delattr(module.get_submodule(parent), name)
    return module


def read_config(folder: Path, config_class: "type[PreTrainedConfig]") -> "PreTrainedConfig":
    """Read the configuration of a folder.

    Args:
        folder: Holds ``config.json``, which may name no code and no sizes that cannot be built.
        config_class: Its class in transformers.

    Returns:
        The configuration, without a choice of attention.

    Raises:
        InputError: It is not one of this class.
    """
    file = folder / "config.json"
    check_no_code(folder)
    check_config(read_json(file), file)
    with refusing(f"{file} is no {config_class.__name__}"):
        config = config_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return neutralise(config)


def _but(tensors: Mapping[str, ItemT], spare: set[str], without: tuple[str, ...]) -> dict[str, ItemT]:
    """Leave out tied heads, unwanted modules, and a buffer that older versions wrote and that is computed."""
    return {
        name: item
        for name, item in tensors.items()
        if name not in spare and not name.startswith(without) and not name.endswith(".inv_freq")
    }


def rename(name: str, renames: Renames) -> str:
    """Return today's name of a tensor.

    Args:
        name: A tensor's name in a file.
        renames: Prefixes of older files.
    """
    # The first that fits: a longer prefix is listed before its beginning.
    for old, new in renames:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _check_tied(folder: Path, locations: Mapping[str, StoredTensor]) -> None:
    """Check that a file holds the same head beside embeddings that it is tied to, or none."""
    if _HEAD not in locations:
        return
    # The name depends on the class: all end alike.
    embeddings = next((name for name in locations if name.endswith("embed_tokens.weight")), _HEAD)
    tied = dict(read_stored({name: locations[name] for name in (_HEAD, embeddings)}))
    if embeddings == _HEAD or not torch.equal(tied[_HEAD], tied[embeddings]):
        raise InputError(
            f"{folder}: config.json ties {_HEAD} to the embeddings, but the file holds other values for it; "
            "set tie_word_embeddings to false"
        )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Read the tokenizer of a folder; :class:`InputError` if it has none."""
    if not (folder / "tokenizer.json").is_file():
        explain_missing_tokenizer(folder)
    # A pointer of git-lfs is valid text, of which the library would say something odd.
    check_downloaded(folder / "tokenizer.json")
    check_no_code(folder)
    with refusing(f"{folder}: the tokenizer (tokenizer.json, …) cannot be read"):
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bar, and reports of tensors that are missing or too many: they were compared before."""
    # Both are global: a caller's own choice comes back afterwards.
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
