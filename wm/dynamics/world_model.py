"""Predict in images: both roles and their codec behind one object, for scripts and notebooks.

It gives what :func:`wm.dynamics.predict_observations` and :func:`wm.dynamics.roll_out` give, decoded; those have
batches, progress and every setting. Not known here: files that results go to.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self, TypeAlias

import numpy as np
import torch
from PIL import Image

from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.idm import ScoredAction, propose_actions, score_actions
from wm.dynamics.observation import CodesRow, Observation
from wm.dynamics.predicted_images import ImagePrediction, ImageRollout, PredictedImage, to_png
from wm.dynamics.roles import BaseSharing, Roles, load_roles
from wm.dynamics.rollout import roll_out
from wm.dynamics.search import predict_observations
from wm.dynamics.settings import Search
from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square
from wm.models.checkpoints import load_codec
from wm.models.codec.codec import ImageCodec
from wm.models.manifest import is_adapter, read_adapter_manifest, read_manifest
from wm.packaged import resolve_packaged
from wm.sampling.noise import Sampling

ImageLike: TypeAlias = str | Path | bytes | Image.Image | Pixels
"""A file (``nano:images/NAME.png`` names one of the package), the bytes of one, a PIL image, or uint8 RGB (height,
width, 3)."""


class WorldModel:
    """Both roles and their codec: predict, roll out, propose and score, images in and images out.

    The same source, action and seed give the same images. Larger ``num_candidates`` only add candidates.
    """

    def __init__(self, roles: Roles, codec: ImageCodec) -> None:
        """Put together what is loaded already; :meth:`load` reads folders.

        Args:
            roles: The forward and the inverse model.
            codec: That of both, with a decoder.

        Raises:
            InputError: The codec is another one, or cannot decode.
        """
        codec.check_decoder()
        if roles.fdm.model.codec_id != codec.codec_id:
            raise InputError(f"the models' image codec is {roles.fdm.model.codec_id}, this one {codec.codec_id}")
        self.roles = roles
        self.codec = codec
        self.forward, self.inverse = CodeForward(roles.fdm, codec), CodeInverse(roles.idm, codec)

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
    ) -> Self:
        """Load both models, full ones or adapters, and their codec.

        Args:
            fdm: Folder of the forward model; ``nano:fdm`` is the one that comes with the package.
            idm: Folder of the inverse model; ``nano:idm``.
            base: Base of adapters; the one that their manifests name without it.
            device: Device of torch, such as ``cpu`` or ``cuda``.
            dtype: Type of the weights; ``torch.bfloat16`` halves their memory.
            base_sharing: ``shared`` keeps two adapters over one copy of their base.

        Raises:
            InputError: A folder is no model, was trained for the other role, or the two do not fit together.
        """
        for path, role in ((fdm, "fdm"), (idm, "idm")):
            manifest = read_adapter_manifest(path) if is_adapter(path) else read_manifest(path)
            # The other way round both would load, and predict noise.
            if manifest is not None and manifest.task not in (None, role):
                raise InputError(f"{role} = {str(path)!r} was trained as {manifest.task}")
        # Adapters have no codec of their own: their base's is read.
        codec = load_codec(base or fdm, device)
        roles = load_roles(fdm, idm, base=base, device=device, dtype=dtype, base_sharing=base_sharing)
        return cls(roles, codec)

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
            image: The source; the middle square of it is used.
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
        source_N = self.encode(image)
        with torch.inference_mode():
            prediction = predict_observations(
                self.forward, self.inverse, [Observation.from_codes(source_N, self.codec)], [action], search=search,
                sampling=sampling, seed=seed,
            )[0]  # fmt: skip
        # One batch: the codec pads every batch to one size.
        source, *images = self.decode([source_N, *(candidate.codes for candidate in prediction.distinct)])
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
            image: The source; the middle square of it is used.
            actions: In words, one or more.
            num_candidates: Candidates of each step.
            num_beams: Sequences that remain after each step.
            sampling: Temperature, top-k, top-p, guidance.
            seed: Of the samples.

        Raises:
            InputError: As :meth:`predict`.
        """
        search = Search(num_candidates=num_candidates, num_beams=num_beams)
        source_N = self.encode(image)
        with torch.inference_mode():
            rollout = roll_out(
                self.forward, self.inverse, [Observation.from_codes(source_N, self.codec)], [list(actions)], search=search,
                sampling=sampling, seed=seed,
            )[0]  # fmt: skip
        # The best sequence alone: the others can be decoded from their codes.
        source, *images = self.decode([source_N, *(candidate.codes for candidate in rollout.best.candidates)])
        return ImageRollout(source, tuple(images), rollout)

    def propose(self, source: ImageLike, target: ImageLike) -> ScoredAction:
        """Say what happened between two images: the inverse model's greedy action.

        Args:
            source: The image before.
            target: The image after.
        """
        with torch.inference_mode():
            return propose_actions(
                self.roles.idm.model, [self.encode(source)], [self.encode(target)], runner=self.roles.idm.runner
            )[0]

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
            return score_actions(
                self.roles.idm.model, [self.encode(source)] * count, [self.encode(target)] * count, actions,
                runner=self.roles.idm.runner,
            )  # fmt: skip

    def observe(self, image: ImageLike) -> Observation:
        """Read an image as the functions of :mod:`wm.dynamics` take it."""
        return Observation.from_codes(self.encode(image), self.codec)

    def encode(self, image: ImageLike) -> CodesRow:
        """Encode the middle square of an image as codebook ids."""
        pixels_HWC = fit_square(_read_pixels(image), self.codec.side_px)
        return tuple(self.codec.encode(pixels_HWC[None])[0].tolist())

    def decode(self, codes_BN: Sequence[CodesRow]) -> list[Image.Image]:
        """Decode codebook ids to images of the codec's size."""
        return [Image.fromarray(pixels_HWC) for pixels_HWC in self.codec.decode(torch.tensor(codes_BN))]


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
