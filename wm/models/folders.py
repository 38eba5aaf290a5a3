"""Reading and writing the Hugging Face folder of any family: checks, weights, files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor

from wm.errors import InputError
from wm.models.chameleon_files import quiet_transformers
from wm.models.codec.codec import ImageCodec, PixelScale
from wm.models.folder_checks import check_amount, check_config, check_no_code, neutralise, read_json, refusing
from wm.models.unreadable import explain_missing_codec
from wm.models.vlm import Facts
from wm.models.weights import (
    CODEC_PREFIX,
    check_floats,
    check_tensors,
    count_numbers,
    list_tensors,
    load_tensors,
    place_of,
    read_places,
)
from wm.runs import write_json

Device: TypeAlias = str | torch.device
Renames: TypeAlias = Sequence[tuple[str, str]]
"""(prefix in older files, prefix of today's module), the first that fits is taken."""


class Family(NamedTuple):
    """How folders of one ``model_type`` are read and written."""

    load: Callable[[Path, Device, torch.dtype, Facts], Any]
    """A full folder as a :class:`~wm.models.UnifiedVLM`; its codec was read and is described by the
    facts."""
    read_codec: Callable[[Path, Device, Path | None], ImageCodec]
    """The image codec of a full folder, perhaps with the decoder of another file; reads no other weights."""
    write: Callable[[Any, ImageCodec, Mapping[str, Tensor], Path], None]
    """Write model, codec and tokenizer of a full folder; the tensors are the language model's."""
    codec_shape: Callable[[Path], tuple[int, int]] | None = None
    """Tokens an image and codes of the codebook, from configurations alone; None: the codec must be read."""


def read_module(
    folder: Path,
    model_class: Any,
    config: Any,
    device: Device,
    dtype: torch.dtype,
    *,
    without: tuple[str, ...] = (),
    renames: Renames = (),
) -> Any:
    """Read the Hugging Face model of a folder, in evaluation mode.

    Names, shapes, types and amount are checked against the configuration before a weight is read. transformers is
    given the tensors, never the folder, so that it reads nothing that was not checked.

    Args:
        folder: Holds the weight files.
        model_class: The model's class in transformers.
        config: As :func:`read_config` returns it.
        device: On ``meta`` no weight file is looked at.
        dtype: Of the model's weights.
        without: Prefixes of modules that are not needed; they are neither expected nor kept.
        renames: Names in older files.

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
    locations = list_tensors(folder)
    model_tensors = skeleton.state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in model_tensors.items()}
    stored = {rename(name, renames): location for name, location in locations.items()}
    shapes = {name: location.shape for name, location in stored.items()}
    spare = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    if spare:
        _need_tied(folder, stored)
    check_tensors(_but(expected, spare, without), _but(shapes, spare, without), str(folder))
    check_floats(model_tensors, stored, str(folder))
    check_amount(skeleton, count_numbers(locations), str(folder))
    # 3. Read. What is memory-mapped is copied: the model must not depend on a file that may be overwritten.
    tensors = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=locations[name].make is not None)
        for name, tensor in read_places(locations)
    }
    # 4. Build. Parts that the file does not hold get random numbers, and are removed below.
    with quiet_transformers(), torch.random.fork_rng(devices=[]), refusing(f"{folder} cannot be loaded"):
        module = model_class.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    module.config.name_or_path = str(folder)  # PEFT notes it in adapters
    return _without(module, without).to(device).eval()


def build_skeleton(model_class: Any, config: Any, folder: Path) -> Any:
    """Build a model without data, on the device ``meta``.

    Raises:
        InputError: The configuration of ``folder`` describes no such model.
    """
    subject = f"{folder / 'config.json'} describes no {model_class.__name__}"
    with refusing(subject), torch.device("meta"):
        return model_class(config)


def _without(module: Any, prefixes: tuple[str, ...]) -> Any:
    for prefix in prefixes:
        parent, _, name = prefix.rstrip(".").rpartition(".")
        delattr(module.get_submodule(parent), name)
    return module


def read_config(folder: Path, config_class: Any) -> Any:
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


def _but(shapes: Mapping[str, Any], spare: set[str], without: tuple[str, ...]) -> dict[str, Any]:
    """Without tied heads, unwanted modules, and a buffer that older versions wrote and that is computed."""
    return {
        name: shape
        for name, shape in shapes.items()
        if name not in spare and not name.startswith(without) and not name.endswith(".inv_freq")
    }


def rename(name: str, renames: Renames) -> str:
    """Today's name of a tensor."""
    for old, new in renames:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _need_tied(folder: Path, stored: Mapping[str, Any]) -> None:
    """Check that a file holds the same head beside embeddings that it is tied to, or none."""
    if "lm_head.weight" not in stored:
        return
    head = load_tensors(folder, "lm_head.")["weight"]
    embeddings = next((name for name in list_tensors(folder) if name.endswith("embed_tokens.weight")), None)
    if embeddings is None or not torch.equal(head, load_tensors(folder, embeddings)[""]):
        raise InputError(
            f"{folder}: config.json ties lm_head.weight to the embeddings, but the file holds other values for it; "
            "set tie_word_embeddings to false"
        )


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Read the image processor's configuration: a file of its own, or part of ``processor_config.json`` as newer
    versions of transformers write it."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    values: Any = {}
    if (folder / "processor_config.json").is_file():
        values = read_json(folder / "processor_config.json").get("image_processor") or {}
    if not isinstance(values, dict) or not values:
        raise InputError(f"no preprocessor_config.json in {folder}, which says how pixels are scaled")
    return values


def read_own_codec(
    folder: Path, build: Callable[[], Any], *, family: str, prefixes: Sequence[str], device: Device = "cpu"
) -> ImageCodec:
    """Read the codec of a family that keeps its VQ model, with decoder, beside the language model.

    Args:
        folder: A full folder, with the image processor's configuration, which says how pixels are scaled.
        build: Makes an empty model with the interface of :class:`~wm.models.codec.vqgan.VQGAN`.
        family: Named where the weights hold no codec.
        prefixes: What tensor names may begin with.
        device: Where to put the codec.

    Returns:
        The codec, in float32.

    Raises:
        InputError: It is not there, or does not fit its configuration.
    """
    read_image_processor(folder)
    with refusing(f"{folder / 'config.json'}: vq_config describes no image codec"), torch.device("meta"):
        vqgan = build()
    tensors: dict[str, Tensor] = {}
    for prefix in prefixes:
        tensors = tensors or load_tensors(folder, prefix)
    if not tensors:
        explain_missing_codec(folder, family)
    model_tensors = vqgan.state_dict()
    expected = {name: tensor.shape for name, tensor in model_tensors.items()}
    check_tensors(expected, {name: tensor.shape for name, tensor in tensors.items()}, f"{folder} ({prefixes[0]}*)")
    check_floats(model_tensors, {name: place_of(folder, tensor) for name, tensor in tensors.items()}, str(folder))
    # Copies: what is memory-mapped must not hang on a file that may be replaced.
    copies = {
        name: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }
    with refusing(f"{folder} holds no image codec that can be used"):
        vqgan.load_state_dict(copies, assign=True)
        return ImageCodec(vqgan, PixelScale.read(folder), where=str(folder)).to(device)


def write_weights(vlm: Any, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """``config.json``, ``model.safetensors`` and the tokenizer's files."""
    config = vlm.inner.config
    own_tensors = dict(tensors)
    if getattr(config, "tie_word_embeddings", False):
        own_tensors.pop("lm_head.weight", None)
    write_tensors(own_tensors, folder)
    config.architectures = [type(vlm.inner).__name__]
    config.save_pretrained(folder)
    vlm.tokenizer.save_pretrained(folder)


def write_tensors(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """``model.safetensors``."""
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(ready, folder / "model.safetensors", metadata={"format": "pt"})


def write_codec_folder(codec: ImageCodec, folder: Path) -> None:
    """Write a VQGAN of Chameleon's architecture in a folder of its own, which :func:`~wm.models.codec.files.read_codec`
    reads."""
    folder.mkdir()
    write_tensors({CODEC_PREFIX + name: tensor for name, tensor in codec.vqgan.state_dict().items()}, folder)
    write_json(folder / "config.json", {"vq_config": codec.vqgan.config.to_dict()})
    write_json(folder / "preprocessor_config.json", scale_config(codec.scale))


def scale_config(scale: PixelScale) -> dict[str, Any]:
    """Return what :meth:`~wm.models.codec.codec.PixelScale.read` reads of a ``preprocessor_config.json``."""
    return {"rescale_factor": scale.rescale, "image_mean": [scale.mean] * 3, "image_std": [scale.std] * 3}
