"""Attach PEFT adapters to their base: every tensor that the adapter has is in the file, and nothing else is.

PEFT itself starts what is missing at random and passes over what it does not know.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from wm.errors import InputError
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, one_line, read_json, refusing
from wm.models.layer_patterns import check_patterns
from wm.models.manifest import ADAPTER_CONFIG, Manifest, check_same_codec
from wm.models.tensor_checks import check_tensors
from wm.models.vlm import UnifiedVLM
from wm.models.weights import read_header

ADAPTER_WEIGHTS = "adapter_model.safetensors"
if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from transformers import PreTrainedModel

MERGE_ERRORS = (NotImplementedError, ValueError, RuntimeError, AttributeError)
"""What PEFT raises for an adapter that it cannot add into a weight."""
_SMALL_RANK = 1024
"""Ranks up to this one may be set without being used: it takes little memory to find out."""


def attach(vlm: UnifiedVLM, folder: Path, manifest: Manifest) -> "PeftModel":
    """Attach the adapter of a folder to a model and return its module; the model takes the adapter's prompt layout.

    Args:
        vlm: The bare base, whose module is wrapped.
        folder: The adapter's folder.
        manifest: The adapter's manifest.

    Returns:
        The module as PEFT wraps it, in evaluation mode.

    Raises:
        InputError: The codec is another one, or as :func:`attach_module`.
    """
    check_same_codec(vlm.codec_id, manifest.codec_id, folder)
    adapted = attach_module(vlm.inner, folder)
    # The adapter was trained with its own prompt layout, not with the base's.
    vlm.action_slot_tokens = manifest.action_slot_tokens
    return adapted


def attach_module(module: "PreTrainedModel", folder: Path) -> "PeftModel":
    """Attach the adapter of a folder to a model of transformers.

    Args:
        module: The bare base, which PEFT wraps.
        folder: The adapter's folder.

    Returns:
        The module as PEFT wraps it, in evaluation mode.

    Raises:
        InputError: A file is absent or cut short, or tensors are missing, misshapen or extra (they are listed).
    """
    from peft import PeftModel, get_peft_model_state_dict

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise InputError(f"no {ADAPTER_WEIGHTS} in {folder} (pickled weights are never read)")
    stored_shapes = {name: location.shape for name, location in read_header(file).items()}
    # Checked before PEFT builds anything: ranks take memory, and expressions time.
    config = read_adapter_config(folder, stored_shapes)
    check_patterns(config, [name for name, _ in module.named_modules()], folder / ADAPTER_CONFIG)
    try:
        with quiet_peft():
            adapted = PeftModel.from_pretrained(module, str(folder), config=config, local_files_only=True).eval()
    except KeyError as error:
        raise InputError(f"{file}: tensors do not fit the adapter's configuration; missing: {error}") from error
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # PEFT raises what odd settings make of its code
        raise InputError(f"adapter {folder} does not fit its base: {one_line(error)}") from error
    # PEFT would start missing tensors at random and pass over unknown ones: both are looked for here.
    own = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    # PEFT saves embeddings and heads beside adapters of them, and reads them again.
    beside = adapted.state_dict().keys() - own.keys()
    check_tensors(
        {name: tensor.shape for name, tensor in own.items()},
        {name: shape for name, shape in stored_shapes.items() if name not in beside},
        str(file),
    )
    return adapted


def read_adapter_config(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> "PeftConfig":
    """Read the PEFT configuration of an adapter folder, before PEFT builds anything of it.

    Args:
        folder: Holds ``adapter_config.json``.
        shapes: Of the adapter's stored tensors, by name.

    Returns:
        The configuration, of PEFT's class for its ``peft_type``.

    Raises:
        InputError: It names code, other adapters or another base's tokenizer, is of a type that PEFT does not know or
            that adds no weights, or has a rank that its tensors have not.
    """
    from peft.config import PromptLearningConfig
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.utils import PeftType

    file = folder / ADAPTER_CONFIG
    values = read_json(file)
    check_no_code(folder)
    check_config(values, file)
    kind = values.get("peft_type")
    if kind not in list(PeftType) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise InputError(f"{file}: peft_type is {kind!r:.60}, which PEFT does not know")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    # Prompts learned as vectors would move the positions that the prompt layout counts.
    if issubclass(config_class, PromptLearningConfig):
        raise InputError(f"adapter {folder} is {kind}: expected one of weights (LoRA, …), no prompt")
    if kind == PeftType.XLORA:
        raise InputError(f"adapter {folder} is {kind}, which loads other adapters by name: expected one of weights")
    _check_ranks(values, shapes, file)
    with refusing(f"{file} is no configuration of {kind}"):
        return config_class.from_pretrained(str(folder), local_files_only=True)


def _check_ranks(values: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], file: Path) -> None:
    """Memory for the ranks is taken before PEFT compares them with the file."""
    # The rank is a side of each factor: the longest side of all bounds it.
    largest = max((max(shape, default=0) for shape in shapes.values()), default=0)
    pattern = values.get("rank_pattern") or {}
    ranks = [values.get("r"), *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    for rank in ranks:
        if rank is not None and (type(rank) is not int or not 0 <= rank <= max(largest, _SMALL_RANK)):
            raise InputError(f"{file}: rank {rank!r:.60} fits no tensor of the adapter (largest side: {largest:,})")


def merge_adapter(adapted: "PeftModel", folder: Path) -> "PreTrainedModel":
    """Add an adapter into the weights of its base and return the bare model.

    Args:
        adapted: The base with its adapter; its module is used up.
        folder: The adapter's folder, named in errors.
    """
    # Before PEFT adds anything: afterwards the shared weight has changed already.
    _untie(adapted)
    try:
        return adapted.merge_and_unload()
    except MERGE_ERRORS as error:
        raise InputError(f"adapter {folder} cannot be merged: {one_line(error)}") from error


def _untie(adapted: "PeftModel") -> None:
    """Give the head a weight of its own where it shares the embeddings' and one of the two carries an adapter: adding
    it into the shared weight would change the other one as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    inner = adapted.get_base_model()
    layers = [inner.get_input_embeddings(), inner.get_output_embeddings()]
    bare = [layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer for layer in layers]
    weights = [getattr(layer, "weight", None) for layer in bare]
    # Two weights cannot disturb each other.
    if weights[0] is None or weights[0] is not weights[1]:
        return
    if any(isinstance(layer, BaseTunerLayer) for layer in layers):
        bare[1].weight = torch.nn.Parameter(weights[1].detach().clone(), requires_grad=False)
        # Both configurations: some classes ask the one, some the other.
        inner.config.tie_word_embeddings = False
        inner.config.get_text_config().tie_word_embeddings = False


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers for an attribute by its former name, which its users can do nothing about, and warns
    of missing tensors, which are an error here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message="Found missing adapter keys.*")
        yield
