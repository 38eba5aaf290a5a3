"""Read VQ models of taming-transformers' layout that come without a configuration: MoVQGAN's and Emu3.5's.

Their builders are configured in the authors' code or in a YAML file beside. Names and shapes of the tensors say the
same: widths, levels, blocks, which levels attend, and the codebook.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import ChameleonVQVAEConfig

from wm.errors import InputError
from wm.models.codec.codec import ImageCodec, PixelScale, read_image_processor
from wm.models.codec.files import EXACT_SCALE, assemble_codec
from wm.models.codec.taming import read_vqgan_checkpoint
from wm.models.codec.vqgan import VQGAN
from wm.models.config_bounds import MAX_LEVELS, MAX_SIDE_PX, check_config
from wm.models.folder_checks import refusing
from wm.models.weights import has_weights, load_tensors

PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
"""Beginnings of the names of a VQ model's tensors; a checkpoint may hold more, of its training."""
_BLOCK = re.compile(r"encoder\.down\.(\d{1,4})\.(block|attn)\.(\d{1,4})\.")


def read_shaped_codec(
    folder: Path, vq_class: type[VQGAN], side_px: int, scale: PixelScale, device: str | torch.device = "cpu"
) -> ImageCodec:
    """Read a VQ model whose architecture its tensors say.

    Args:
        folder: Holds one ``.ckpt`` of torch, read as tensors alone, or ``model.safetensors``.
        vq_class: How codes are chosen and decoded.
        side_px: Side of the images.
        scale: How pixels become the codec's input.
        device: Where to put the codec.

    Returns:
        The codec, in float32.

    Raises:
        InputError: There is no such file, or its tensors are no VQ model of this layout.
    """
    where, tensors, ignored = _read_tensors(folder)
    # Whether all tensors fit this architecture is checked as they are loaded.
    config = config_of_tensors(tensors, side_px, where)
    return assemble_codec(lambda: vq_class(config), tensors, scale, str(where), ignored=ignored).to(device)


def _read_tensors(folder: Path) -> tuple[Path, dict[str, Tensor], tuple[str, ...]]:
    """Return the file, the VQ model's tensors, and the names of the others in it."""
    ignored: tuple[str, ...] = ()
    if has_weights(folder):
        where, tensors = folder, load_tensors(folder, "")
    else:
        files = sorted(folder.glob("*.ckpt"))
        if len(files) != 1:
            names = ", ".join(file.name for file in files) or "none"
            raise InputError(f"{folder}: expected one file *.ckpt with the image tokenizer's weights, got {names}")
        checkpoint = read_vqgan_checkpoint(files[0])
        where, tensors, ignored = checkpoint.file, checkpoint.tensors, checkpoint.ignored
    # Running averages, discriminators and the like are named in the codec's `ignored`.
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}
    return where, own, tuple(sorted({*ignored, *(set(tensors) - set(own))}))


def config_of_tensors(tensors: Mapping[str, Tensor], side_px: int, where: Path) -> ChameleonVQVAEConfig:
    """Read the architecture off names and shapes; whether all tensors fit it is checked when they are loaded.

    Args:
        tensors: A VQ model's, by name.
        side_px: Side of the images, which the architecture does not depend on.
        where: Named in errors.

    Returns:
        The configuration under transformers' names.

    Raises:
        InputError: A tensor that decides the architecture is not there, or no such architecture has these shapes.
    """
    blocks: dict[int, set[int]] = {}
    attended: set[int] = set()
    for name in tensors:
        if match := _BLOCK.match(name):
            level = int(match[1])
            blocks.setdefault(level, set()).add(int(match[3]))
            attended |= {level} if match[2] == "attn" else set()
    # Each level but the last halves the side.
    levels = max(blocks, default=-1) + 1
    if not 1 <= levels <= MAX_LEVELS:
        raise InputError(f"{where} is no VQ model: expected tensors encoder.down.N.block.N.*, got {levels} levels")
    factor = 2 ** (levels - 1)
    if side_px < factor or side_px % factor:
        raise InputError(f"{where}: images of {side_px} px are not made of cells of {factor} px")
    base, *_ = _shape_of(tensors, "encoder.conv_in.weight", 4, where)
    widths = [_shape_of(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4, where)[0] for level in range(levels)]
    # The 1 x 1 convolution before the codebook: from the encoder's width to the codes'.
    code_width, latent_width, *_ = _shape_of(tensors, "quant_conv.weight", 4, where)
    num_codes, _ = _shape_of(tensors, "quantize.embedding.weight", 2, where)
    values = {
        "embed_dim": code_width,
        "num_embeddings": num_codes,
        "latent_channels": latent_width,
        "resolution": side_px,
        "base_channels": base,
        "channel_multiplier": [max(1, width // base) for width in widths],
        "num_res_blocks": len(blocks[0]) if 0 in blocks else 0,
        # transformers finds the levels that attend by their side.
        "attn_resolutions": [side_px >> level for level in sorted(attended)],
    }
    check_config(values, where)
    with refusing(f"{where} is no VQ model"):
        return ChameleonVQVAEConfig(**values, attn_type="vanilla", double_latent=False)


def _shape_of(tensors: Mapping[str, Tensor], name: str, num_sides: int, where: Path) -> tuple[int, ...]:
    shape = tuple(tensors[name].shape) if name in tensors else ()
    # An absent tensor and one of no elements decide nothing.
    if len(shape) != num_sides or not all(shape):
        raise InputError(f"{where} is no VQ model: expected {name} with {num_sides} sides, got {shape or 'none'}")
    return shape


def read_side(folder: Path, default_px: int, multiple_px: int) -> int:
    """Return the side of the images that a model folder is made for.

    Args:
        folder: A model folder, perhaps with an image processor's configuration and its ``size``.
        default_px: Where it says none.
        multiple_px: What the side must be a multiple of.

    Raises:
        InputError: It is no square of such a side.
    """
    size = read_image_processor(folder).get("size", {"height": default_px, "width": default_px})
    # A processor may name the side in several ways; a square is asked for.
    side = size.get("height") if isinstance(size, dict) and size.get("height") == size.get("width") else None
    if type(side) is not int or not 0 < side <= MAX_SIDE_PX or side % multiple_px:
        raise InputError(
            f"{folder}: the image processor's size is {size!r:.80}, expected equal height and width, a multiple of "
            f"{multiple_px} up to {MAX_SIDE_PX:,}"
        )
    return side


def read_scale(folder: Path) -> PixelScale:
    """Return how pixels become the codec's input: [-1, 1] exactly, unless the folder's image processor says another.

    Args:
        folder: A model folder.
    """
    # A configuration that only says the size leaves the scale as the authors' code has it.
    return PixelScale.read(folder) if "rescale_factor" in read_image_processor(folder) else EXACT_SCALE
