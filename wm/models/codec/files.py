"""Read image codecs from model folders: the VQ model in Hugging Face weights, and VQGAN checkpoints of their own."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec, PixelScale, identity_of, read_image_processor
from wm.models.codec.taming import (
    IGNORED_PREFIX,
    VQGAN_CKPT,
    VQGAN_YAML,
    read_vqgan_checkpoint,
    read_vqgan_config,
    vqgan_file,
    yaml_beside,
)
from wm.models.codec.vqgan import VQGAN, VQModel
from wm.models.config_bounds import check_config
from wm.models.folder_checks import check_no_code, neutralise, read_json, refusing
from wm.models.missing import explain_missing_codec
from wm.models.tensor_checks import check_floats, check_tensors
from wm.models.weights import CODEC_PREFIX, describe_tensor, load_tensors

_DECODER = "decoder."
EXACT_SCALE = PixelScale(rescale=2 / 255)
"""[0, 255] to [-1, 1] exactly, as ``chameleon/inference/image_tokenizer.py``; transformers rounds 2/255 to 0.0078."""


def is_vqgan(path: Path) -> bool:
    """Return whether a path is a VQGAN checkpoint of its own: ``vqgan.ckpt``, or a folder that has one and no model."""
    if path.is_file():
        return path.suffix == ".ckpt"
    return (path / VQGAN_CKPT).is_file() and not (path / "config.json").is_file()


def read_codec(path: Path, device: str | torch.device = "cpu", decoder: Path | None = None) -> ImageCodec:
    """Read a codec of Chameleon's architecture from its own tensors; no other weights are read.

    Args:
        path: A Hugging Face folder (``model.vqmodel.*``), or ``vqgan.ckpt`` with ``vqgan.yaml`` beside, or the folder
            of these two.
        device: Where to put the codec.
        decoder: A ``vqgan.ckpt``, or a folder that has one, to take the decoder from. A Hugging Face folder without
            decoder finds a ``vqgan.ckpt`` inside by itself.

    Returns:
        The codec, in float32.

    Raises:
        InputError: Tensors do not fit, or the decoder was trained with another codebook.
    """
    codec = _read_checkpoint(path, decoder) if is_vqgan(path) else _read_transformers_codec(path, decoder)
    return codec.to(device)


def read_own_codec(
    folder: Path,
    build: Callable[[], VQModel],
    *,
    family: str,
    prefixes: Sequence[str],
    device: str | torch.device = "cpu",
    decoder: Path | None = None,
) -> ImageCodec:
    """Read the codec of a family that keeps its VQ model, with decoder, beside the language model.

    Args:
        folder: A full folder, with the image processor's configuration, which says how pixels are scaled.
        build: Makes an empty model with the interface of :class:`~wm.models.codec.vqgan.VQGAN`.
        family: Named where the weights hold no codec.
        prefixes: What tensor names may begin with.
        device: Where to put the codec.
        decoder: Refused: the VQ model has one.

    Returns:
        The codec, in float32.

    Raises:
        InputError: It is not there, or does not fit its configuration.
    """
    if decoder is not None:
        raise InputError(f"decoder = {decoder}: {family.capitalize()}'s VQ model has its own decoder")
    if not read_image_processor(folder):
        raise InputError(f"no preprocessor_config.json in {folder}, which says how pixels are scaled")
    # Older versions of transformers wrote other names.
    tensors: dict[str, Tensor] = {}
    for prefix in prefixes:
        tensors = tensors or load_tensors(folder, prefix)
    if not tensors:
        explain_missing_codec(folder, family)
    return assemble_codec(build, tensors, PixelScale.read(folder), str(folder), prefix=prefixes[0]).to(device)


def chameleon_codec_shape(path: Path) -> tuple[int, int]:
    """Return the tokens an image and the codes of a codec that :func:`read_codec` reads, from its configuration."""
    # From configurations alone, as a plan is made before weights are there.
    is_checkpoint = (path / VQGAN_YAML).is_file() and not (path / "config.json").is_file()
    config = read_vqgan_config(path / VQGAN_YAML) if is_checkpoint else _read_vq_config(path)
    side = config.resolution // 2 ** (len(config.channel_multiplier) - 1)
    return side * side, config.num_embeddings


def _read_checkpoint(path: Path, decoder: Path | None) -> ImageCodec:
    checkpoint = read_vqgan_checkpoint(path)
    file = checkpoint.file
    config = read_vqgan_config(yaml_beside(file))
    tensors = checkpoint.tensors
    if decoder is not None:
        tensors = _with_decoder(tensors, config, decoder, str(file))
    # The release has no file for the scale; one that somebody put beside goes first.
    scale = PixelScale.read(file.parent, EXACT_SCALE)
    return _assemble_vqgan(config, tensors, scale, str(file), ignored=checkpoint.ignored)


def _read_vq_config(folder: Path) -> ChameleonVQVAEConfig:
    file = folder / "config.json"
    values = read_json(file)
    check_no_code(folder)
    check_config(values, file)
    with refusing(f"{file}: vq_config is no configuration of a VQGAN"):
        config = ChameleonVQVAEConfig(**values.get("vq_config") or {})
    neutralise(config)
    return config


def _read_transformers_codec(folder: Path, decoder: Path | None) -> ImageCodec:
    # The configuration first: it is small, and says what the tensors must be.
    config = _read_vq_config(folder)
    stored = load_tensors(folder, CODEC_PREFIX)
    if not stored:
        explain_missing_codec(folder, "chameleon")
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith(IGNORED_PREFIX)}
    # transformers' class has no decoder, so its conversion leaves it out: it may be in a file beside.
    if decoder is None and not _has_decoder(tensors) and (folder / VQGAN_CKPT).is_file():
        decoder = folder / VQGAN_CKPT
    if decoder is not None:
        tensors = _with_decoder(tensors, config, decoder, str(folder))
    ignored = tuple(sorted(set(stored) - set(tensors)))
    scale = PixelScale.read(folder)
    return _assemble_vqgan(config, tensors, scale, str(folder), prefix=CODEC_PREFIX, ignored=ignored)


def _assemble_vqgan(
    config: ChameleonVQVAEConfig,
    tensors: Mapping[str, Tensor],
    scale: PixelScale,
    where: str,
    *,
    prefix: str = "",
    ignored: tuple[str, ...],
) -> ImageCodec:
    # Chameleon as transformers converts it comes without decoder: it encodes all the same.
    has_decoder = _has_decoder(tensors)
    return assemble_codec(
        lambda: VQGAN(config), tensors, scale, where, prefix=prefix, has_decoder=has_decoder, ignored=ignored
    )


def assemble_codec(
    build: Callable[[], VQModel],
    tensors: Mapping[str, Tensor],
    scale: PixelScale,
    where: str,
    *,
    prefix: str = "",
    has_decoder: bool = True,
    ignored: tuple[str, ...] = (),
) -> ImageCodec:
    """Build a codec of tensors, which are compared with the model that they should fill.

    Args:
        build: Makes an empty model.
        tensors: By name.
        scale: How pixels become the codec's input.
        where: Named in errors.
        prefix: What the file has before the names.
        has_decoder: Whether the tensors hold a decoder; images can only be encoded without.
        ignored: Names of tensors of the file that play no part.

    Returns:
        The codec, in float32.

    Raises:
        InputError: Tensors are missing, misshapen or too many.
    """
    with refusing(f"{where}: its configuration describes no image codec"), torch.device("meta"):
        vqgan = build()
    # Built without memory first, to be compared with what the file holds.
    model_tensors = vqgan.state_dict()
    expected = {
        prefix + name: tensor.shape
        for name, tensor in model_tensors.items()
        if has_decoder or not name.startswith(_DECODER)
    }
    check_tensors(expected, {prefix + name: tensor.shape for name, tensor in tensors.items()}, where)
    # No weights, no module: random ones would decode to noise without an error.
    if not has_decoder:
        vqgan.decoder = None  # type: ignore[assignment]
    check_floats(model_tensors, {name: describe_tensor(Path(where), tensor) for name, tensor in tensors.items()}, where)
    # Copies: what is memory-mapped must not depend on a file that may be replaced.
    copies = {
        name: tensor.to(torch.float32, copy=True) if tensor.is_floating_point() else tensor.clone()
        for name, tensor in tensors.items()
    }
    with refusing(f"{where} holds no image codec that can be used"):
        vqgan.load_state_dict(copies, assign=True)
        codec = ImageCodec(vqgan, scale, has_decoder=has_decoder, where=where)
    codec.ignored = ignored
    return codec


def _with_decoder(
    tensors: Mapping[str, Tensor], config: ChameleonVQVAEConfig, decoder: Path, where: str
) -> dict[str, Tensor]:
    """Replace the decoder by that of a separate checkpoint, which must be of the same encoder and codebook."""
    checkpoint = read_vqgan_checkpoint(vqgan_file(decoder))
    file = checkpoint.file
    if not _has_decoder(checkpoint.tensors):
        raise InputError(f"{file} holds no decoder.* weights")
    # Without it the tensors alone must agree.
    if yaml_beside(file).is_file():
        _check_same_architecture(config, read_vqgan_config(yaml_beside(file)), where, yaml_beside(file))
    # Encoder and codebook say whose decoder it is; what only one of the two has says nothing.
    for name, tensor in tensors.items():
        other = checkpoint.tensors.get(name)
        if name.startswith(_DECODER) or other is None:
            continue
        # The folder may hold the same numbers rounded to a shorter type.
        if other.shape != tensor.shape or not torch.equal(other.to(tensor.dtype), tensor):
            raise InputError(f"the decoder in {file} belongs to another codec than {where}: {name} differs")
    # The encoder stays that of the folder, so that its codes do.
    encoder_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_DECODER)}
    return encoder_tensors | {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_DECODER)}


def _check_same_architecture(config: ChameleonVQVAEConfig, other: ChameleonVQVAEConfig, where: str, file: Path) -> None:
    values, other_values = identity_of(config), identity_of(other)
    for key, value in values.items():
        if value != other_values[key] and key != "norm_over":  # the file cannot say that
            raise InputError(f"{file} is of another codec than {where}: {key} is {other_values[key]!r}, not {value!r}")


def _has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_DECODER) for name in tensors)
