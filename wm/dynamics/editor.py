"""Edit images through a pipeline of diffusers: source and action in, predicted image out, one seed an image.

The pipeline may be any whose call takes ``image``, ``prompt`` and ``generator``. How one is loaded is not known here.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from wm.dynamics.editor_calls import (
    BATCHED,
    SEEDS_BATCHED,
    Setting,
    StepMeter,
    call_pipeline,
    check_call_settings,
    list_call_settings,
)
from wm.dynamics.protocols import OnSamples, SampleFailure
from wm.errors import InputError
from wm.images import Pixels
from wm.sampling.batches import halving

Fit: TypeAlias = Literal["crop", "stretch"]

_SIDE_STEP_PX = 64
ASPECT_TOLERANCE = 0.1
"""How much wider or higher than its source an image may be, relative to it; ours. FLUX Kontext makes the nearest of the
sizes that it was trained with, whose aspect is up to 8 % off; a square of a 4:3 source is 25 % off."""

_CLIP_ONLY = BATCHED
"""Pipelines whose one reader of the action is CLIP, which cuts long texts without an error."""


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


def fit_to_source(image: Pixels, source: Pixels, editor_input: Image.Image, fit: Fit) -> Pixels:
    """Scale an edited image to the frame of its source, so that the next edit begins with the frame of this one.

    With ``crop``, what was cropped away stays as it is in the source: the editor saw nothing of it.

    Args:
        image: uint8 RGB, as the pipeline gave it.
        source: uint8 RGB (H, W, 3).
        editor_input: What the pipeline was given.
        fit: How that was made of the source.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        InputError: The image has another aspect than what the pipeline was given.
    """
    height, width = source.shape[:2]
    # 1. An image of another aspect shows another part of the scene, and nothing says which.
    ratio = image.shape[1] / image.shape[0] / (editor_input.width / editor_input.height)
    if not 1 / (1 + ASPECT_TOLERANCE) <= ratio <= 1 + ASPECT_TOLERANCE:
        raise InputError(
            f"the editor made an image of {image.shape[1]} x {image.shape[0]} pixels of one of {editor_input.width} x "
            f"{editor_input.height}: another aspect, which would not be the source's frame; give settings.width and "
            "settings.height, or sources of an aspect that it makes"
        )
    # 2. The part of the source that the editor was given, in the source's pixels.
    x_px, y_px, end_x_px, end_y_px = _find_crop(source, editor_input) if fit == "crop" else (0, 0, width, height)
    if image.shape[:2] != (end_y_px - y_px, end_x_px - x_px):
        size = end_x_px - x_px, end_y_px - y_px
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    if image.shape == source.shape:
        return image
    # 3. Around it the source as it was.
    frame = source.copy()
    frame[y_px:end_y_px, x_px:end_x_px] = image
    return frame


def _find_crop(source: Pixels, editor_input: Image.Image) -> tuple[int, int, int, int]:
    """Find the centre of the source that has the aspect of what the editor was given, as ``PIL.ImageOps.fit`` does."""
    height, width = source.shape[:2]
    aspect = editor_input.width / editor_input.height
    crop_width, crop_height = (aspect * height, height) if width / height >= aspect else (width, width / aspect)
    x_px, y_px = (width - crop_width) / 2, (height - crop_height) / 2
    return round(x_px), round(y_px), round(x_px + crop_width), round(y_px + crop_height)


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
        name = type(self.pipeline).__name__
        check_call_settings(self.pipeline, name, self.settings)
        if self.batch_size > 1 and not self.takes_batches:
            raise InputError(f"batch_size = {self.batch_size}: {name} takes one image a call; expected 1")

    @property
    def takes_batches(self) -> bool:
        """Whether the pipeline makes several images a call: of any rows, or of one source and action."""
        return type(self.pipeline).__name__ in (*BATCHED, *SEEDS_BATCHED)

    def list_settings(self) -> dict[str, object]:
        """Return all settings, the pipeline's own defaults among them."""
        defaults: dict[str, object] = {
            name: default
            for name, default in list_call_settings(self.pipeline).items()
            if default is None or isinstance(default, bool | int | float | str)
        }
        return defaults | dict(self.settings)

    def edit(
        self,
        sources: Sequence[Pixels],
        actions: Sequence[str],
        seeds: Sequence[int],
        *,
        batch_size: int | None = None,
        on_progress: OnSamples | None = None,
    ) -> list[Pixels | SampleFailure]:
        """Edit images; the order of the images changes nothing but rounding.

        Args:
            sources: uint8 RGB of any size.
            actions: An instruction for each.
            seeds: Of the noise of each.
            batch_size: Images of a call at most; that of the editor without it. Fewer where memory does not suffice.
            on_progress: Called with the denoising steps that are done, of all images, and their number.

        Returns:
            An image for each, of the pipeline's size, or why there is none.

        Raises:
            InputError: The pipeline cannot be called with these settings.
        """
        # 1. Prepare sources one by one: their sizes differ. Rows of one source share its array.
        distinct = {id(source): source for source in sources}
        fitted = {key: self.fit_source(source) for key, source in distinct.items()}
        images = [fitted[id(source)] for source in sources]
        keys = [self._batch_key(row, id(sources[row]), images[row], actions[row]) for row in range(len(sources))]
        groups: dict[object, list[int]] = defaultdict(list)
        for row, key in enumerate(keys):
            groups[key].append(row)
        # 2. Results go back to the rows of their sources.
        results: dict[int, Pixels | SampleFailure] = {}
        meter = StepMeter(on_progress, len(sources))
        for rows in groups.values():

            def work(begin: int, stop: int, rows: list[int] = rows) -> None:
                batch = rows[begin:stop]
                meter.begin(len(results), len(batch))
                edited = call_pipeline(
                    self.pipeline, self.settings, [images[row] for row in batch], [actions[row] for row in batch],
                    [seeds[row] for row in batch], meter=meter,
                )  # fmt: skip
                results.update(zip(batch, edited, strict=True))

            halving(work, len(rows), (batch_size or self.batch_size) if self.takes_batches else 1)
        return [results[row] for row in range(len(sources))]

    def check_action(self, action: str) -> None:
        """Check that the pipeline reads all of an action.

        Args:
            action: A text.

        Raises:
            InputError: It has no words, or the pipeline would cut it.
        """
        if not action.strip():
            raise InputError(f"action = {action!r}: expected some words, without which an editor edits nothing")
        name = type(self.pipeline).__name__
        # Others read long texts, or have a second reader that does.
        if name in _CLIP_ONLY:
            tokenizer = self.pipeline.tokenizer
            count = len(tokenizer(action, truncation=False, verbose=False).input_ids)
            if count > tokenizer.model_max_length:
                raise InputError(
                    f"action {action!r:.60} has {count} tokens with their ends; {name} reads "
                    f"{tokenizer.model_max_length} at most"
                )

    def fit_source(self, source: Pixels) -> Image.Image:
        """Scale a source to what the pipeline is given; see :func:`fit_resolution`.

        Args:
            source: uint8 RGB of any size.
        """
        return fit_resolution(Image.fromarray(source), self.resolution, self.fit)

    def _batch_key(self, row: int, source: int, image: Image.Image, action: str) -> object:
        """Return what rows of one call have in common."""
        name = type(self.pipeline).__name__
        # A batch has images of one size: a pipeline would stretch the others to that of the first.
        if name in BATCHED:
            return image.size
        return (source, action) if name in SEEDS_BATCHED else row
