"""Image codecs read from model folders of every layout: Hugging Face's, with or without decoder, and the original."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec, PixelScale, identity_of
from wm.models.codec.vqgan import VQGAN
from wm.models.folder_checks import check_config, check_no_code, neutralise, read_json, refusing
from wm.models.release.read import VQGAN_CKPT, VQGAN_YAML, find_release
from wm.models.release.vqgan import (
    IGNORED_PREFIX,
    read_vqgan_checkpoint,
    read_vqgan_config,
    vqgan_file,
    yaml_beside,
)
from wm.models.unreadable import explain_missing_codec
from wm.models.weights import CODEC_PREFIX, check_floats, check_tensors, load_tensors, place_of

_DECODER = "decoder."
ORIGINAL_SCALE = PixelScale(rescale=2 / 255)
"""[0, 255] to [-1, 1] exactly, as ``chameleon/inference/image_tokenizer.py``; transformers rounds 2/255 to 0.0078."""


def read_codec(path: Path, device: str | torch.device = "cpu", *, decoder: Path | None = None) -> ImageCodec:
    """Read the codec of a Chameleon folder, from its image tokenizer's tensors alone; no other weights are read.

    ``path``: a Hugging Face folder (``model.vqmodel.*``), or an original release, its ``tokenizer`` folder or
    its ``vqgan.ckpt`` (with ``vqgan.yaml`` beside). ``decoder``: a ``vqgan.ckpt``, or a folder that has one, to
    take the decoder from; a Hugging Face folder without decoder finds a ``vqgan.ckpt`` inside by itself.

    Raises :class:`InputError` for tensors that do not fit, and for a decoder trained with another codebook.
    """
    release = find_release(path)
    if release is None:
        codec = _read_transformers_codec(path, decoder)
    else:
        file = path if path.is_file() else release.tokenizer / VQGAN_CKPT
        codec = _read_original_codec(file, decoder)
    return codec.to(device)


def chameleon_codec_shape(path: Path) -> tuple[int, int]:
    """Tokens an image and codes of the codec of a folder that :func:`read_codec` reads, from its configuration."""
    release = find_release(path)
    folder = release.tokenizer if release else path
    is_original = (folder / VQGAN_YAML).is_file()
    config = read_vqgan_config(folder / VQGAN_YAML) if is_original else _read_vq_config(path)
    side = config.resolution // 2 ** (len(config.channel_multiplier) - 1)
    return side * side, config.num_embeddings


def _read_original_codec(file: Path, decoder: Path | None) -> ImageCodec:
    checkpoint = read_vqgan_checkpoint(file)
    config = read_vqgan_config(yaml_beside(file))
    tensors = checkpoint.tensors
    if decoder is not None:
        tensors = _with_decoder(tensors, config, decoder, str(file))
    scale = PixelScale.read(file.parent, ORIGINAL_SCALE)
    return _assemble(config, tensors, scale, str(file), ignored=checkpoint.ignored)


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
    config = _read_vq_config(folder)
    stored = load_tensors(folder, CODEC_PREFIX)
    if not stored:
        explain_missing_codec(folder, "chameleon")
    tensors = {name: tensor for name, tensor in stored.items() if not name.startswith(IGNORED_PREFIX)}
    if decoder is None and not _has_decoder(tensors) and (folder / VQGAN_CKPT).is_file():
        decoder = folder / VQGAN_CKPT
    if decoder is not None:
        tensors = _with_decoder(tensors, config, decoder, str(folder))
    ignored = tuple(sorted(set(stored) - set(tensors)))
    scale = PixelScale.read(folder)
    return _assemble(config, tensors, scale, str(folder), prefix=CODEC_PREFIX, ignored=ignored)


def _assemble(
    config: ChameleonVQVAEConfig,
    tensors: Mapping[str, Tensor],
    scale: PixelScale,
    where: str,
    *,
    prefix: str = "",
    ignored: tuple[str, ...] = (),
) -> ImageCodec:
    """``prefix``: what stands before the tensors' names in the file."""
    with refusing(f"{where}: its configuration describes no VQGAN"), torch.device("meta"):
        vqgan = VQGAN(config)
    # Meta's release comes without decoder: it encodes all the same.
    has_decoder = _has_decoder(tensors)
    expected = {
        prefix + name: tensor.shape
        for name, tensor in vqgan.state_dict().items()
        if has_decoder or not name.startswith(_DECODER)
    }
    check_tensors(expected, {prefix + name: tensor.shape for name, tensor in tensors.items()}, where)
    if not has_decoder:
        vqgan.decoder = None  # type: ignore[assignment]
    check_floats(vqgan.state_dict(), {name: place_of(Path(where), tensor) for name, tensor in tensors.items()}, where)
    # A copy: what is memory-mapped must not hang on a file that may be replaced.
    copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()}
    with refusing(f"{where} holds no image codec that can be used"):
        vqgan.load_state_dict(copies, assign=True)
        codec = ImageCodec(vqgan, scale, has_decoder=has_decoder, where=where)
    codec.ignored = ignored
    return codec


def _with_decoder(
    tensors: Mapping[str, Tensor], config: ChameleonVQVAEConfig, decoder: Path, where: str
) -> dict[str, Tensor]:
    """``tensors`` with the decoder of a separate checkpoint, which must be of the same encoder and codebook."""
    checkpoint = read_vqgan_checkpoint(vqgan_file(decoder))
    file = checkpoint.file
    if not _has_decoder(checkpoint.tensors):
        raise InputError(f"{file} holds no decoder.* weights")
    if yaml_beside(file).is_file():
        _need_same_architecture(config, read_vqgan_config(yaml_beside(file)), where, yaml_beside(file))
    for name, tensor in tensors.items():
        other = checkpoint.tensors.get(name)
        if name.startswith(_DECODER) or other is None:
            continue
        # The folder may hold the same numbers rounded to a shorter type.
        if other.shape != tensor.shape or not torch.equal(other.to(tensor.dtype), tensor):
            raise InputError(f"the decoder in {file} belongs to another codec than {where}: {name} differs")
    encoder_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_DECODER)}
    return encoder_tensors | {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith(_DECODER)}


def _need_same_architecture(config: ChameleonVQVAEConfig, other: ChameleonVQVAEConfig, where: str, file: Path) -> None:
    ours, theirs = identity_of(config), identity_of(other)
    for key in ours:
        if ours[key] != theirs[key] and key != "norm_over":  # the file cannot say that
            raise InputError(f"{file} is of another codec than {where}: {key} is {theirs[key]!r}, not {ours[key]!r}")


def _has_decoder(tensors: Mapping[str, Tensor]) -> bool:
    return any(name.startswith(_DECODER) for name in tensors)
