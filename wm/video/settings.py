"""Group the settings of key-frames and decoding, for every recipe that has some."""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from wm.config import Recipe
from wm.video.keyframes import KEYFRAME_RULES
from wm.video.motion import MotionKind


def _check_rule_name(name: str) -> str:
    # Checked with the recipe: an unknown name must not wait for the first video.
    if name not in KEYFRAME_RULES:
        raise ValueError(f"expected {' or '.join(KEYFRAME_RULES)}")
    return name


RuleName = Annotated[str, AfterValidator(_check_rule_name)]
"""Field of a recipe that takes the name of a key-frame rule."""


MotionDevice: TypeAlias = Literal["cpu", "cuda"]


class MotionSettings(Recipe):
    """Which motion is measured, and how many frames are chosen by it."""

    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"device"})

    max_keyframes: int = Field(default=6, ge=2)
    """K_f: max number of key-frames of a video."""
    min_interval_frames: int = Field(default=20, ge=1)
    """I_f: min number of frames between two key-frames."""
    motion: MotionKind = "dis"
    """Optical flow: dis (fast), or farneback: the key-frames that full-size Farneback on every frame gives, measured
    only where the choice can still change; over twice as fast with the extra wm[fast]."""
    device: MotionDevice = "cpu"
    """Where farneback is measured: cpu, or cuda: a GPU measures every frame, in batches, once its flow of a made clip
    is the CPU's. Where it is not, or a GPU fails, the CPU measures and run.json says why."""
    motion_side_px: int = Field(default=40, ge=16)
    """Frames are halved as long as their long side stays this or more, and dis runs on the result (40: 320 x 240 is
    seen at 40 x 30). With farneback frames that are not halved are all measured."""

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.device != "cpu" and self.motion != "farneback":
            raise ValueError(f"device = {self.device!r} with motion = {self.motion!r}; only farneback runs on a GPU")
        return self


class KeyframeSettings(MotionSettings):
    """How key-frames are chosen, and which pairs of them move enough."""

    rule: RuleName = "top_then_spacing"
    """top_then_spacing: the max_keyframes frames of most motion, then those too close to a chosen one dropped.
    greedy_spacing: down the order of motion until max_keyframes are chosen."""
    min_motion_px: float = Field(default=0.0, ge=0)
    """Pairs whose target frame moves less (px/frame at full size) are filtered; 0 keeps all."""


class DecodeLimits(Recipe):
    """How long a video may take before it is given up."""

    time_limit_s: float = Field(default=120.0, gt=0)
    """For each of: download, motion pass, fetching the images."""
