"""Hold predictions as images, with their scores, and show them in a notebook. Knows nothing of the models."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from wm.dynamics.rollout import Rollout
from wm.dynamics.search import Prediction
from wm.dynamics.verify import Candidate
from wm.images import encode_png

_DISPLAY_PX = 128


@dataclass(frozen=True)
class PredictedImage:
    """A candidate as an image: RGB, of the codec's size or of the source's."""

    image: Image.Image
    candidate: Candidate

    @property
    def logprob(self) -> float:
        """Log-probability of the action between source and this image, summed over its tokens, in nats."""
        return self.candidate.score.logprob

    @property
    def mean_logprob(self) -> float:
        """The same a token."""
        return self.candidate.score.mean_logprob

    @property
    def unchanged_share(self) -> float:
        """Share of image tokens that equal the source's, 0 to 1; 1 is a copy."""
        return self.candidate.unchanged_share

    def _repr_png_(self) -> bytes:
        return to_png(self.image)


@dataclass(frozen=True)
class ImagePrediction:
    """What one action gives: the candidates that differ, the one that the inverse model likes best first. A notebook
    shows the source and all of them with their log-probabilities."""

    source: Image.Image
    """As the inverse model sees it: encoded and decoded where both models have one codec, else the image itself."""
    action: str
    candidates: tuple[PredictedImage, ...]
    prediction: Prediction
    """Equal candidates, those that an editor withheld, and numbers of rounds."""

    @property
    def best(self) -> PredictedImage:
        """The candidate of rank 0."""
        return self.candidates[0]

    @property
    def image(self) -> Image.Image:
        """The best candidate's image."""
        return self.best.image

    def _repr_html_(self) -> str:
        # All of them: what the verifier ranks low says as much as what it ranks high.
        figures = [(candidate.image, f"{candidate.logprob:.2f} nats") for candidate in self.candidates]
        return _show_row([(self.source, "source"), *figures], self.action)


@dataclass(frozen=True)
class ImageRollout:
    """What several actions give, one after the other. A notebook shows the source and the best sequence."""

    source: Image.Image
    """As in :class:`ImagePrediction`."""
    images: tuple[Image.Image, ...]
    """Of the best sequence, one an action."""
    rollout: Rollout
    """Steps, candidates and the other sequences of the beam."""

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions in their order."""
        return tuple(step.action for step in self.rollout.steps)

    @property
    def logprob(self) -> float:
        """Log-probability of all actions given the best sequence, in nats."""
        return self.rollout.best.logprob

    def _repr_html_(self) -> str:
        # A score a step: the sum would not say where a sequence went wrong.
        scores = [candidate.score.logprob for candidate in self.rollout.best.candidates]
        captions = [f"{action}: {score:.2f} nats" for action, score in zip(self.actions, scores, strict=True)]
        return _show_row([(self.source, "source"), *zip(self.images, captions, strict=True)], "")


def to_png(image: Image.Image) -> bytes:
    """Encode a PIL image of any mode as PNG."""
    if image.mode == "RGB":
        return encode_png(np.array(image))
    # Other modes are the user's own images, as Pillow writes them.
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _show_row(figures: Sequence[tuple[Image.Image, str]], title: str) -> str:
    """Write images side by side with a caption each as HTML that needs no other file."""
    style = f"width:{_DISPLAY_PX}px;image-rendering:pixelated"
    # Captions are texts of users: nothing in them may become markup.
    cells = "".join(
        f'<figure style="display:inline-block;margin:4px;width:{_DISPLAY_PX}px;vertical-align:top">'
        f'<img style="{style}" alt="{html.escape(caption)}" '
        f'src="data:image/png;base64,{base64.b64encode(to_png(image)).decode()}">'
        f'<figcaption style="font-size:.8em;margin:0">{html.escape(caption)}</figcaption></figure>'
        for image, caption in figures
    )
    return f"<div><div>{html.escape(title)}</div>{cells}</div>"
