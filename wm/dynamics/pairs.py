"""Put a forward and an inverse model of any kinds together, and show an image to both.

Two unified models of one codec exchange codes, and nothing is decoded between them; any other two exchange pixels. How
they are loaded is not known here (:mod:`wm.dynamics.pair_folders`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from wm.dynamics.code_models import CodeForward, CodeInverse
from wm.dynamics.editor_forward import EditorForward
from wm.dynamics.observation import Observation, codes_of
from wm.dynamics.protocols import ForwardModel, InverseModel, OnSamples
from wm.images import Pixels, fit_square
from wm.models.codec.codec import ImageCodec


@dataclass(frozen=True)
class ModelPair:
    """A forward model and the inverse model that verifies it."""

    forward: ForwardModel
    inverse: InverseModel

    @property
    def codec(self) -> ImageCodec | None:
        """Codec of the forward model's images; None: it makes pixels."""
        return self.forward.codec if isinstance(self.forward, CodeForward) else None

    @property
    def stored_codec(self) -> ImageCodec | None:
        """Codec of the codes that are stored of predictions: the forward model's, else the inverse one's, else None."""
        return self.codec or self.inverse_codec

    @property
    def inverse_codec(self) -> ImageCodec | None:
        """Codec of the inverse model; None: it reads pixels."""
        return self.inverse.codec if isinstance(self.inverse, CodeInverse) else None

    def frame(self, pixels_HWC: Pixels) -> Pixels:
        """Cut an image to what both models see of it.

        Args:
            pixels_HWC: uint8 RGB of any size.

        Returns:
            The square that a forward model's codec encodes; the middle square in its own size where an editor's images
            are encoded by the inverse model; the image as it is where neither has a codec.
        """
        if self.codec is not None:
            return fit_square(pixels_HWC, self.codec.side_px)
        return fit_square(pixels_HWC, min(pixels_HWC.shape[:2])) if self.stored_codec is not None else pixels_HWC

    @property
    def shares_codec(self) -> bool:
        """Whether both models have one codec, so that they exchange codes."""
        forward, inverse = self.forward, self.inverse
        if not isinstance(forward, CodeForward) or not isinstance(inverse, CodeInverse):
            return False
        return forward.role.model.codec_id == inverse.role.model.codec_id

    def observe(self, pixels_HWC: Pixels, codes: Sequence[int] | None = None) -> Observation:
        """Read an image that no model made, as both models take it.

        Args:
            pixels_HWC: uint8 RGB of any size, which is cut as by :meth:`frame`.
            codes: Its codes of the forward model's codec, where they are known.

        Returns:
            Codes where both models have one codec; else pixels, which the forward model's codec encodes when it is
            asked: the inverse model is shown the image itself, as it was in training.
        """
        framed_HWC = self.frame(pixels_HWC)
        if self.codec is not None and self.shares_codec:
            return Observation.from_codes(codes or self.codec.encode(framed_HWC[None])[0].tolist(), self.codec)
        known = {self.codec.codec_id: tuple(codes)} if self.codec is not None and codes else {}
        return Observation.from_pixels(framed_HWC, known)

    def to_codes(self, image: Observation) -> Observation:
        """Return an image as the forward model reads it: as codes, or as it is where that is an editor.

        Args:
            image: Of either kind.
        """
        if self.codec is None or not image.is_of_pixels:
            return image
        return Observation.from_codes(codes_of([image], self.codec)[0], self.codec)

    def listen(self, on_progress: OnSamples) -> "ModelPair":
        """Return the same models, an editor of which reports its denoising steps: one step of a rollout takes minutes.

        Args:
            on_progress: Called with the steps that are done and their number.
        """
        if not isinstance(self.forward, EditorForward):
            return self
        return replace(self, forward=replace(self.forward, on_progress=on_progress))

    def describe(self) -> dict[str, object]:
        """Describe how images are made, for records.

        Returns:
            ``decoding`` of a model of image codes; ``editor``: all settings of an editor's call, its pipeline's own
            defaults among them.
        """
        if isinstance(self.forward, CodeForward):
            return {"decoding": self.forward.role.runner.describe_decoding()}
        return {"editor": self.forward.editor.list_settings()} if isinstance(self.forward, EditorForward) else {}

    def check_actions(self, actions: Iterable[str]) -> None:
        """Check that both models can read every action, before any of the work.

        Args:
            actions: Texts; each is checked once.

        Raises:
            InputError: One of the models cannot read an action.
        """
        for action in dict.fromkeys(actions):
            self.forward.check_action(action)
            self.inverse.check_action(action)
