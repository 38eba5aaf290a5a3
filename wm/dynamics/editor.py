"""Edit images through a pipeline of diffusers: source and action in, predicted image out, one seed an image.

The pipeline may be any whose call takes ``image``, ``prompt`` and ``generator``. How one is loaded is not known here.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps

from wm.errors import InputError
from wm.images import Pixels
from wm.models.folder_checks import refusing

Setting: TypeAlias = bool | int | float | str
"""An argument of a pipeline's call."""
Fit: TypeAlias = Literal["crop", "stretch"]

BATCHED = ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline")
"""Pipelines that take an image for each prompt; others read a list of images as several references of one prompt."""
_OURS = ("image", "prompt", "generator", "num_images_per_prompt", "output_type", "return_dict", "latents", "kwargs")
"""Arguments that are not settings: they decide which images there are, and in which form."""
_SIDE_STEP_PX = 64


@dataclass(frozen=True)
class EditFailure:
    """Why there is no edited image.

    Attributes:
        reason: ``safety_checker`` or ``black_image``.
        detail: The same in words.
    """

    reason: str
    detail: str


def candidate_seed(seed: int, triplet_id: str, candidate: int) -> int:
    """Compute the seed of one image, which depends on nothing else: not on batches, nor on what was done before.

    Args:
        seed: The recipe's.
        triplet_id: Triplet that the image is for.
        candidate: Number of the candidate.

    Returns:
        A whole number below 2**63, for ``torch.Generator.manual_seed``.
    """
    digest = hashlib.sha256(f"{seed}\n{candidate}\n{triplet_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fit_resolution(image: Image.Image, resolution: int, fit: Fit = "crop") -> Image.Image:
    """Scale an image as InstructPix2Pix's authors do: long side to about ``resolution``, both to multiples of 64.

    The short side is rounded up to a multiple, the long side follows and is rounded down; what then is too wide is
    cropped from the centre (``edit_cli.py`` of github.com/timothybrooks/instruct-pix2pix).

    Args:
        image: RGB of any size.
        resolution: Pixels; 0: the image as it is.
        fit: ``crop``, as above; ``stretch``: to the same size, with the full frame in it.

    Returns:
        The scaled image.
    """
    if not resolution:
        return image
    short, long = min(image.size), max(image.size)
    # In the authors' order of operations, as a product just below a multiple is rounded down.
    factor = resolution / long
    factor = math.ceil(short * factor / _SIDE_STEP_PX) * _SIDE_STEP_PX / short
    width_px, height_px = (int(side * factor) // _SIDE_STEP_PX * _SIDE_STEP_PX for side in image.size)
    if fit == "stretch":
        return image.resize((width_px, height_px), Image.Resampling.LANCZOS)
    return ImageOps.fit(image, (width_px, height_px), method=Image.Resampling.LANCZOS)


@dataclass(frozen=True)
class ImageEditor:
    """A pipeline with its settings."""

    pipeline: Any
    settings: Mapping[str, Setting]
    resolution: int = 512
    batch_size: int = 1
    fit: Fit = "crop"

    def __post_init__(self) -> None:
        """Check the settings against the pipeline's call.

        Raises:
            InputError: A setting is no argument of the pipeline's call, or it takes one image a call and
                ``batch_size`` is more.
        """
        name, allowed = type(self.pipeline).__name__, _list_settings(self.pipeline)
        if unknown := [key for key in self.settings if key not in allowed]:
            raise InputError(
                f"settings.{unknown[0]}: {name} takes no such argument; expected one of {', '.join(sorted(allowed))}"
            )
        if self.batch_size > 1 and name not in BATCHED:
            raise InputError(f"batch_size = {self.batch_size}: {name} takes one image a call; expected 1")

    def list_settings(self) -> dict[str, object]:
        """Return all settings, the pipeline's own defaults among them."""
        defaults: dict[str, object] = {
            name: default
            for name, default in _list_settings(self.pipeline).items()
            if default is None or isinstance(default, bool | int | float | str)
        }
        return defaults | dict(self.settings)

    def edit(
        self, sources: Sequence[Pixels], actions: Sequence[str], seeds: Sequence[int]
    ) -> list[Pixels | EditFailure]:
        """Edit images; the order of the images changes nothing but rounding.

        Args:
            sources: uint8 RGB of any size.
            actions: An instruction for each.
            seeds: Of the noise of each.

        Returns:
            An image for each, of the pipeline's size, or why there is none.

        Raises:
            InputError: The pipeline cannot be called with these settings.
        """
        # 1. Prepare sources one by one: their sizes differ.
        images = [fit_resolution(Image.fromarray(source), self.resolution, self.fit) for source in sources]
        # 2. A batch has images of one size: a pipeline would stretch the others to that of the first.
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            groups[image.size].append(row)
        # 3. Results go back to the places of their sources.
        results: dict[int, Pixels | EditFailure] = {}
        for rows in groups.values():
            for begin in range(0, len(rows), self.batch_size):
                batch = rows[begin : begin + self.batch_size]
                edited = self._call(
                    [images[row] for row in batch], [actions[row] for row in batch], [seeds[row] for row in batch]
                )
                results |= zip(batch, edited, strict=True)
        return [results[row] for row in range(len(sources))]

    def _call(self, images: list[Image.Image], actions: list[str], seeds: list[int]) -> Iterator[Pixels | EditFailure]:
        # On the CPU: the noise is the same on every device.
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        # Not as a list of one: most editors take lists as several references.
        single = len(images) == 1
        arguments: dict[str, Any] = {
            "image": images[0] if single else images,
            "prompt": actions[0] if single else actions,
            "generator": generators[0] if single else generators,
        }
        name = type(self.pipeline).__name__
        with refusing(f"{name} with settings {dict(self.settings)}"), torch.inference_mode():
            output = self.pipeline(**arguments, output_type="pil", **self.settings)
            flags = getattr(output, "nsfw_content_detected", None) or [False] * len(images)
            edited = [np.array(image.convert("RGB")) for image in output.images]
        if len(edited) != len(images):
            raise InputError(f"{name} gave {len(edited)} images for {len(images)}; give settings that make one each")
        return (_check_image(image, bool(flag)) for image, flag in zip(edited, flags, strict=True))


def _check_image(image: Pixels, is_flagged: bool) -> Pixels | EditFailure:
    # The checker hands out a black image, which would be scored as a prediction.
    if is_flagged:
        return EditFailure("safety_checker", "the pipeline's safety checker withheld the image")
    if not image.any():
        return EditFailure("black_image", "every pixel is black, as after NaN in half precision")
    return image


def _list_settings(pipeline: Any) -> dict[str, object]:
    """Return the arguments of a pipeline's call that are settings, with their defaults."""
    parameters = signature(pipeline.__call__).parameters
    return {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in _OURS
        and parameter.default is not Parameter.empty
        and not name.startswith("callback")
        and not name.endswith(("_embeds", "_embeds_mask", "_kwargs", "ip_adapter_image", "sigmas", "timesteps"))
    }
