"""Predict in images: a forward and an inverse model behind one object, for scripts and notebooks.

It gives what :func:`wm.dynamics.predict_observations` and :func:`wm.dynamics.roll_out` give, decoded; those have
batches, progress and every setting. Not known here: files that results go to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from PIL import Image

from wm.dynamics.editor_settings import EditorSettings
from wm.dynamics.idm import ScoredAction
from wm.dynamics.observation import CodesRow, Observation, codes_of, pixels_of
from wm.dynamics.pair_folders import PairFolders
from wm.dynamics.pairs import ModelPair
from wm.dynamics.pixel_settings import PixelsSettings
from wm.dynamics.predicted_images import ImagePrediction, ImageRollout, PredictedImage, to_png
from wm.dynamics.roles import BaseSharing
from wm.dynamics.rollout import roll_out
from wm.dynamics.search import predict_observations
from wm.dynamics.settings import Search
from wm.errors import InputError
from wm.images import Pixels, decode_image
from wm.models.codec.codec import ImageCodec
from wm.packaged import resolve_packaged
from wm.sampling.noise import Sampling
from wm.sampling.texts import GREEDY

ImageLike: TypeAlias = str | Path | bytes | Image.Image | Pixels
"""A file (``nano:images/NAME.png`` names one of the package), the bytes of one, a PIL image, or uint8 RGB (height,
width, 3)."""


class WorldModel:
    """A forward and an inverse model of any kinds: predict, roll out, propose and score, images in and images out.

    The same source, action and seed give the same images. Larger ``num_candidates`` only add candidates.
    """

    def __init__(self, pair: ModelPair) -> None:
        """Put together what is loaded already; :meth:`load` reads folders.

        Args:
            pair: The forward and the inverse model.

        Raises:
            InputError: The forward model has image codes that cannot be decoded.
        """
        if pair.codec is not None:
            pair.codec.check_decoder()
        self.pair = pair
        self.forward, self.inverse = pair.forward, pair.inverse

    @classmethod
    def load(
        cls,
        fdm: str | Path,
        idm: str | Path,
        *,
        base: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        base_sharing: BaseSharing = "merged",
        editor: EditorSettings | None = None,
        pixels: PixelsSettings | None = None,
    ) -> Self:
        """Load both models: unified ones, full or adapters; an image editor as the forward one; a vision-language model
        as the inverse one.

        Args:
            fdm: Folder of the forward model; ``nano:fdm`` is the one that comes with the package.
            idm: Folder of the inverse model; ``nano:idm``.
            base: Base of adapters of unified models; the one that their manifests name without it.
            device: Device of torch, such as ``cpu`` or ``cuda``.
            dtype: Type of the weights; ``torch.bfloat16`` halves their memory.
            base_sharing: ``shared`` keeps two adapters over one copy of their base.
            editor: How an image editor is called.
            pixels: How a vision-language model is asked.

        Raises:
            InputError: A folder is no model, was trained for the other role, or the two do not fit together.
        """
        folders = PairFolders(
            str(fdm), str(idm), base=str(base) if base is not None else None, base_sharing=base_sharing,
            editor=editor or EditorSettings(), pixels=pixels or PixelsSettings(),
        )  # fmt: skip
        return cls(folders.load(device=device, dtype=dtype))

    @property
    def codec(self) -> ImageCodec:
        """Codec of the forward model.

        Raises:
            InputError: It is an image editor, which has none.
        """
        if self.pair.codec is None:
            raise InputError("the forward model is an image editor: its images have no codes")
        return self.pair.codec

    def predict(
        self,
        image: ImageLike,
        action: str,
        *,
        num_candidates: int = 8,
        min_gain_nats: float | None = None,
        max_unchanged: float = 1.0,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> ImagePrediction:
        """Predict the image after an action: sample candidates, rank them by how well they explain the action.

        Args:
            image: The source; the middle square of it is used where one of the models has image codes.
            action: In words.
            num_candidates: Candidates at most.
            min_gain_nats: Stop sooner, when another candidate is expected to gain no more than this a token.
            max_unchanged: Copy guard: candidates with a larger share of unchanged tokens rank last; 1: off.
            sampling: Temperature, top-k, top-p, guidance.
            seed: Of the samples.

        Raises:
            InputError: For an image that cannot be read and settings that do not fit the models.
        """
        search = Search(num_candidates=num_candidates, min_gain_nats=min_gain_nats, max_unchanged=max_unchanged)
        observation = self.observe(image)
        with torch.inference_mode():
            prediction = predict_observations(
                self.forward, self.inverse, [observation], [action], search=search, sampling=sampling, seed=seed
            )[0]
        # An editor may have withheld all of them, which is said here.
        _ = prediction.best
        # One batch: the codec pads every batch to one size.
        source, *images = _to_images([observation, *(candidate.observation for candidate in prediction.distinct)])
        candidates = tuple(map(PredictedImage, images, prediction.distinct))
        return ImagePrediction(source, action, candidates, prediction)

    def roll_out(
        self,
        image: ImageLike,
        actions: Sequence[str],
        *,
        num_candidates: int = 8,
        num_beams: int = 1,
        sampling: Sampling | None = None,
        seed: int = 0,
    ) -> ImageRollout:
        """Predict several actions one after the other; each verified image is the source of the next.

        Args:
            image: The source; the middle square of it is used where one of the models has image codes.
            actions: In words, one or more.
            num_candidates: Candidates of each step.
            num_beams: Sequences that remain after each step.
            sampling: Temperature, top-k, top-p, guidance.
            seed: Of the samples.

        Raises:
            InputError: As :meth:`predict`.
        """
        search = Search(num_candidates=num_candidates, num_beams=num_beams)
        observation = self.observe(image)
        with torch.inference_mode():
            rollout = roll_out(
                self.forward, self.inverse, [observation], [list(actions)], search=search, sampling=sampling, seed=seed
            )[0]
        # The best sequence alone: the others are in the rollout.
        source, *images = _to_images([observation, *(candidate.observation for candidate in rollout.best.candidates)])
        return ImageRollout(source, tuple(images), rollout)

    def propose(self, source: ImageLike, target: ImageLike) -> ScoredAction:
        """Say what happened between two images: the inverse model's greedy action.

        Args:
            source: The image before.
            target: The image after.
        """
        with torch.inference_mode():
            return self.inverse.propose([self.observe(source)], [self.observe(target)], sampling=GREEDY, seeds=[0])[0]

    def score(self, source: ImageLike, target: ImageLike, actions: Sequence[str]) -> list[ScoredAction]:
        """Score actions between two images by the inverse model, in the given order.

        Args:
            source: The image before.
            target: The image after.
            actions: In words.
        """
        # One source for all rows, which the scorer reads once.
        count = len(actions)
        with torch.inference_mode():
            return self.inverse.score([self.observe(source)] * count, [self.observe(target)] * count, actions)

    def observe(self, image: ImageLike) -> Observation:
        """Read an image as the functions of :mod:`wm.dynamics` take it."""
        return self.pair.observe(_read_pixels(image))

    def encode(self, image: ImageLike) -> CodesRow:
        """Encode the middle square of an image as codebook ids.

        Raises:
            InputError: The forward model has no codec.
        """
        return codes_of([self.observe(image)], self.codec)[0]

    def decode(self, codes_BN: Sequence[CodesRow]) -> list[Image.Image]:
        """Decode codebook ids to images of the codec's size.

        Raises:
            InputError: The forward model has no codec.
        """
        return [Image.fromarray(pixels_HWC) for pixels_HWC in self.codec.decode(torch.tensor(codes_BN))]


def _to_images(observations: Sequence[Observation]) -> list[Image.Image]:
    return [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_of(observations)]


def _read_pixels(image: ImageLike) -> Pixels:
    """Read an image of any kind as uint8 RGB."""
    if isinstance(image, str | Path):
        path = Path(resolve_packaged(str(image)))
        if not path.is_file():
            raise InputError(f"image = {str(image)!r}: no such file")
        return decode_image(path.read_bytes(), f"image {path}")
    if isinstance(image, bytes):
        return decode_image(image, "the image")
    if isinstance(image, Image.Image):
        if not image.has_transparency_data:
            return np.array(image.convert("RGB"))
        # Transparent pixels become white, as those of files do.
        return decode_image(to_png(image), "the image")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"expected an image of uint8 (height, width, 3), got {image.dtype} {image.shape}")
    return image
