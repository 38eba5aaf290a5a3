"""Images to codebook ids and back. Tokenising needs the VQGAN's tensors alone, never the language model's.

Shape suffixes: B images, H and W pixels, C = 3 channels, N image tokens in row-major order, D code width.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import ChameleonVQVAEConfig

from wm.errors import InputError
from wm.models.codec.vqgan import VQModel
from wm.models.folder_checks import read_json
from wm.models.identity import tensor_digest
from wm.models.weights import CODEC_PREFIX

PixelBatch: TypeAlias = npt.NDArray[np.uint8] | Tensor
_IDENTITY_KEYS = (
    "embed_dim",
    "num_embeddings",
    "latent_channels",
    "resolution",
    "base_channels",
    "channel_multiplier",
    "num_res_blocks",
    "attn_resolutions",
    "attn_type",
    "norm_over",
)


@dataclass(frozen=True)
class PixelScale:
    """uint8 to network input: ``(x * rescale - mean) / std``, as Chameleon's image processor.

    The defaults are those of the released ``preprocessor_config.json`` (0.0078, not 2/255: 255 becomes
    0.989).
    """

    rescale: float = 0.0078
    mean: float = 1.0
    std: float = 1.0

    def apply(self, pixels_BHWC: Tensor) -> Tensor:
        """Scale uint8 (B, H, W, 3) to float32 (B, 3, H, W)."""
        scaled = pixels_BHWC.permute(0, 3, 1, 2).to(torch.float32) * self.rescale
        return (scaled - self.mean) / self.std

    @classmethod
    def read(cls, folder: Path, default: "PixelScale | None" = None) -> "PixelScale":
        """Read the scale of a folder.

        Args:
            folder: Perhaps with an image processor's configuration (see :func:`read_image_processor`).
            default: Where there is none; None: the released values.

        Returns:
            The scale.

        Raises:
            InputError: It is no scale, or another one for each channel.
        """
        values, path = read_image_processor(folder), folder / "preprocessor_config.json"
        # Liquid's VQGAN comes without a processor's configuration.
        if not values:
            return default or cls()
        if not path.is_file():
            path = folder / "processor_config.json"
        means, stds = values.get("image_mean", [cls.mean]), values.get("image_std", [cls.std])
        rescale = values.get("rescale_factor", cls.rescale)
        if not all(isinstance(numbers, list) and numbers for numbers in (means, stds)) or not all(
            isinstance(number, int | float) and math.isfinite(number) for number in (rescale, *means, *stds)
        ):
            raise InputError(
                f"{path}: expected numbers for rescale_factor, image_mean and image_std (the last two by channel), got "
                f"{rescale!r:.60}, {means!r:.60} and {stds!r:.60}"
            )
        # One number serves all channels here; others would be another network input.
        if len(set(means)) != 1 or len(set(stds)) != 1:
            raise InputError(f"{path}: expected one mean and deviation for all channels, got {means} and {stds}")
        # A division by 0, or one colour for all images.
        if stds[0] == 0 or rescale == 0:
            raise InputError(f"{path}: rescale_factor and image_std must not be 0, got {rescale} and {stds[0]}")
        return cls(float(rescale), float(means[0]), float(stds[0]))


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Read the image processor's configuration: a file of its own, or part of ``processor_config.json`` as newer
    versions of transformers write it; empty where there is none."""
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json")
    # The dedicated file goes first: older folders have nothing else.
    values: Any = None
    if (folder / "processor_config.json").is_file():
        values = read_json(folder / "processor_config.json").get("image_processor")
    return values if isinstance(values, dict) else {}


class ImageCodec(nn.Module):
    """A VQ model with its pixel scale and identity. Evaluation only; no gradients."""

    codec_id: str
    """Hash of what decides an image's codes and their meaning: encoder, quantiser, their configuration and the pixel
    scale. The decoder is left out, so that adding one to a checkpoint that came without keeps all codes valid."""
    ignored: tuple[str, ...] = ()
    """Names of tensors of the checkpoint that play no part (those of its training)."""

    def __init__(
        self, vqgan: VQModel, scale: PixelScale, *, has_decoder: bool = True, where: str = "this codec"
    ) -> None:
        super().__init__()
        # The codec is never trained with the model: its codes must keep their meaning.
        self.vqgan = vqgan.eval().requires_grad_(False)
        self.scale = scale
        self.has_decoder = has_decoder
        self.where = where
        self.side_px: int = vqgan.config.resolution
        self.tokens_per_image: int = vqgan.side_tokens**2
        self.num_codes: int = vqgan.config.num_embeddings
        self.codec_id = codec_id_of(vqgan.state_dict(), vqgan.config, scale)
        # Convolution kernels may differ with the batch size: a fixed one keeps an image's codes independent of the
        # other images. One, where an image is work enough for a processor; four small images cost a request for one of
        # them little, and many of them not much more each than larger batches would.
        self.chunk = max(1, min(4, 128**2 // self.side_px**2))

    @cached_property
    def decoder_id(self) -> str | None:
        """Hash of encoder, codebook and decoder: the same pixels from the same codes; None without decoder."""
        if not self.has_decoder:
            return None
        return "vqd-" + tensor_digest(self.vqgan.decoder.state_dict(), self.codec_id)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.vqgan.quantize.embedding.weight.device
        return device

    def encode(self, pixels_BHWC: PixelBatch) -> Tensor:
        """Encode uint8 RGB (B, side, side, 3) as codebook ids, int64 (B, N)."""
        return self.encode_with_features(pixels_BHWC)[0]

    @torch.no_grad()
    def encode_with_features(self, pixels_BHWC: PixelBatch) -> tuple[Tensor, Tensor]:
        """Encode images in batches of one fixed size, so that an image's codes do not depend on the others.

        Args:
            pixels_BHWC: uint8 RGB (B, side, side, 3).

        Returns:
            Codes int64 (B, N) and pre-quantised features ``quant_conv(encoder(x))`` float32 (B, N, D).

        Raises:
            InputError: Another shape or type.
        """
        pixels = self._check_pixels(pixels_BHWC)
        codes, features = [], []
        for chunk in torch.split(pixels, self.chunk):
            features_BND = self.vqgan.features(self.scale.apply(self._fill_up(chunk).to(self.device)))
            codes.append(self.vqgan.nearest(features_BND)[: len(chunk)])
            features.append(features_BND[: len(chunk)])
        if not codes:  # no images
            width = self.vqgan.config.embed_dim
            empty = torch.zeros((0, self.tokens_per_image), dtype=torch.int64, device=self.device)
            return empty, torch.zeros((0, self.tokens_per_image, width), device=self.device)
        return torch.cat(codes), torch.cat(features)

    @torch.no_grad()
    def decode(self, codes_BN: Tensor | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Decode images in batches of one fixed size.

        Args:
            codes_BN: Codebook ids (B, N).

        Returns:
            uint8 RGB (B, side, side, 3).

        Raises:
            InputError: A wrong length, an id outside [0, num_codes), or a checkpoint without decoder.
        """
        self.check_decoder()
        # Checked for all images first: an id beyond the codebook would end a GPU's process.
        codes = self._check_codes(codes_BN)
        # Collected on the CPU, as a GPU holds few decoded images beside the model.
        images = []
        for chunk in torch.split(codes, self.chunk):
            vectors_BND = self.vqgan.quantize.embedding(self._fill_up(chunk))
            pixels_BCHW = self.vqgan.decode_features(vectors_BND)[: len(chunk)]
            # The decoder was trained on [-1, 1], whatever constant the image processor rounds 2/255 to.
            images.append(((pixels_BCHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
        if not images:
            return np.zeros((0, self.side_px, self.side_px, 3), dtype=np.uint8)
        return np.asarray(torch.cat(images).numpy())

    def check_decoder(self) -> None:
        """Raise :class:`InputError` if images cannot be decoded; for jobs that will decode some after long work."""
        if not self.has_decoder:
            raise InputError(
                f"{self.where} holds no {CODEC_PREFIX}decoder.* weights: it encodes images but decodes none; put the "
                "release's tokenizer/vqgan.ckpt into it, or give that file as the decoder"
            )

    def _fill_up(self, chunk: Tensor) -> Tensor:
        return torch.cat([chunk, chunk.new_zeros(self.chunk - len(chunk), *chunk.shape[1:])])

    def _check_pixels(self, pixels_BHWC: PixelBatch) -> Tensor:
        pixels = torch.as_tensor(pixels_BHWC)
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (self.side_px, self.side_px, 3):
            raise InputError(
                f"expected uint8 pixels (B, {self.side_px}, {self.side_px}, 3), "
                f"got {pixels.dtype} {tuple(pixels.shape)}"
            )
        return pixels

    def _check_codes(self, codes_BN: Tensor | npt.NDArray[Any]) -> Tensor:
        array = torch.as_tensor(codes_BN)
        fractional = array.is_floating_point() or array.is_complex() or array.dtype == torch.bool
        if fractional or array.ndim != 2 or array.shape[1] != self.tokens_per_image:
            raise InputError(
                f"expected integer codes (B, {self.tokens_per_image}), got {array.dtype} {tuple(array.shape)}"
            )
        # Compared where they are used, so that nothing is copied twice.
        codes = array.to(self.device, torch.int64)
        bad = codes[(codes < 0) | (codes >= self.num_codes)]
        if bad.numel():
            raise InputError(f"code {int(bad[0])} is outside the codebook [0, {self.num_codes})")
        return codes


def change_map(source_features_BND: Tensor, target_features_BND: Tensor) -> Tensor:
    """Measure where the target differs from the source: the recognition model of paper section 3.2, not normalised.

    Args:
        source_features_BND: Pre-quantised features.
        target_features_BND: Pre-quantised features.

    Returns:
        Squared L2 distance per image token, float32 (B, N).

    Raises:
        InputError: The shapes differ.
    """
    if source_features_BND.shape != target_features_BND.shape:
        shapes = f"{tuple(source_features_BND.shape)} and {tuple(target_features_BND.shape)}"
        raise InputError(f"source and target features differ in shape: {shapes}")
    return (target_features_BND.float() - source_features_BND.float()).square().sum(-1)


def codec_id_of(tensors: Mapping[str, Tensor], config: ChameleonVQVAEConfig, scale: PixelScale) -> str:
    """Hash what decides an image's codes: ``vq-`` and 16 hexadecimal digits.

    Args:
        tensors: The codec's tensors by name; those of the decoder are passed over.
        config: Its configuration.
        scale: How pixels become its input.
    """
    encoder_tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("decoder.")}
    identity = identity_of(config)
    return "vq-" + tensor_digest(encoder_tensors, identity, asdict(scale))


def identity_of(config: ChameleonVQVAEConfig) -> dict[str, Any]:
    """Return what of a configuration decides an image's codes, with one spelling for what can be spelled in two
    ways."""
    values = {key: getattr(config, key, None) for key in _IDENTITY_KEYS}
    # Both spellings mean the released architecture, whose id must not depend on them.
    if values["norm_over"] == "groups":
        values["norm_over"] = None
    values["attn_resolutions"] = values["attn_resolutions"] or None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
