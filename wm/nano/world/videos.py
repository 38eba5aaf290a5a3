"""Write unlabelled clips of the tabletop: several actions each, with still stretches, a drifting camera and crumbs.

Stop-motion: most actions happen between two frames, some take two to four. So a key-frame by motion is mostly the
frame right after an action, and now and then one in mid-action, which is the noise that real key-frames have.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from wm.images import Pixels
from wm.nano.world.actions import KINDS, Action, Kind, random_action
from wm.nano.world.scenes import (
    CELL_PX,
    COLOURS,
    GRID,
    MARGIN_PX,
    SIDE_PX,
    Camera,
    Sprite,
    State,
    object_name,
    random_crumbs,
    random_state,
    render_sprites,
    resting,
    sprites_of,
)

FPS = 25
CLASSES: dict[Kind, str] = {"move": "moving", "add": "adding", "remove": "removing", "recolour": "painting"}
"""Class folders, as UCF-101 has. 60 % of a clip's actions are sampled of its class; on a full table an addition, and on
an all but bare one a removal, becomes a move: 35 % of the actions of such clips are of their class, of the others'
two thirds or more."""


@dataclass(frozen=True)
class Moment:
    """A resting state from ``frame`` on (the first frame that shows it complete), and the action that led to it."""

    frame: int
    state: State
    action: Action | None


@dataclass(frozen=True)
class Clip:
    """A clip as a plan: what happens when. ``frames`` renders it."""

    class_label: str
    moments: tuple[Moment, ...]
    num_frames: int
    camera: Camera
    drift_px: tuple[float, float]
    seed: int

    def frames(self) -> Iterator[Pixels]:
        """Render every frame (48, 64, 3) in order."""
        # A stream of its own for noise: another number of frames leaves the plan as it is.
        rng = np.random.default_rng([self.seed, 1])
        for index in range(self.num_frames):
            # A slow drift there and back, as of a camera in a hand.
            swing = np.sin(index * 2 * np.pi / 60)
            shift = (self.drift_px[0] * swing, self.drift_px[1] * swing)
            camera = Camera(shift, self.camera.noise, self.camera.crumbs)
            yield render_sprites(self.moments[0].state.background, self._sprites(index), camera, rng)

    def _sprites(self, index: int) -> list[Sprite]:
        last = max(number for number, moment in enumerate(self.moments) if moment.frame <= index or number == 0)
        state = self.moments[last].state
        if last + 1 == len(self.moments):
            return sprites_of(state)
        coming = self.moments[last + 1]
        # Above 0 only in the frames of the action itself.
        progress = 1 - (coming.frame - index) / self._sample_duration(last + 1)
        if progress <= 0 or coming.action is None:
            return sprites_of(state)
        return _move_sprites(state, coming.action, progress)

    def _sample_duration(self, number: int) -> int:
        """Sample the frames that an action takes: 1 (between two frames) for 85 % of them, else 2 to 4."""
        rng = np.random.default_rng([self.seed, 2, number])
        return 1 if rng.random() < 0.85 else int(rng.integers(2, 5))


def plan_clip(seed: int) -> Clip:
    """Plan the clip of a seed, whose class is ``seed % 4``: 4 to 7 actions, 10 to 18 still frames around them."""
    # A stream of its own for the plan: more frames or noise leave the actions as they are.
    rng = np.random.default_rng([seed, 0])
    kind = KINDS[seed % len(KINDS)]
    state = random_state(rng)
    frame = 0
    moments = [Moment(0, state, None)]
    for _ in range(int(rng.integers(4, 8))):
        action = random_action(state, rng, kind if rng.random() < 0.6 else None)
        state = action.apply(state) or state
        frame += int(rng.integers(10, 19))
        moments.append(Moment(frame, state, action))
    end = frame + int(rng.integers(10, 19))
    # Most clips have a still camera.
    drifts = rng.random() < 0.3
    drift = tuple(float(value) for value in rng.uniform(-1, 1, 2)) if drifts else (0.0, 0.0)
    crumbs = random_crumbs(rng) if rng.random() < 0.3 else ()
    return Clip(CLASSES[kind], tuple(moments), end, Camera(crumbs=crumbs), (drift[0], drift[1]), seed)


def write_clip(clip: Clip, path: Path) -> None:
    """Encode a clip at 25 frames/s into a temporary file, which is then renamed.

    Args:
        clip: Is rendered frame by frame.
        path: ``.mp4``: H.264; ``.avi``: MPEG-4 part 2.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        _encode(clip, temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _encode(clip: Clip, path: Path) -> None:
    codec, options = ("libx264", {"crf": "16", "preset": "ultrafast"}) if path.suffix == ".mp4" else ("mpeg4", {})
    with av.open(str(path), "w", format=path.suffix[1:]) as container:
        stream = container.add_stream(codec, rate=Fraction(FPS), options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE_PX + 2 * MARGIN_PX, SIDE_PX, "yuv420p"
        # The same bytes on every machine.
        stream.thread_count = 1
        if codec == "mpeg4":
            stream.bit_rate = 600_000
        for pixels_HWC in clip.frames():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels_HWC, format="rgb24")))
        container.mux(stream.encode(None))


def clip_path(folder: Path, clip: Clip) -> Path:
    """Return the path of a clip: a folder a class; every third file is an avi.

    Args:
        folder: Of all clips.
        clip: Gives class and number.
    """
    # Two formats, since real data sets have several.
    suffix = ".avi" if clip.seed % 3 == 2 else ".mp4"
    return folder / clip.class_label / f"clip_{clip.seed:06d}{suffix}"


def _move_sprites(state: State, action: Action, progress: float) -> list[Sprite]:
    """List the sprites at a ``progress`` strictly between 0 and 1 of an action."""
    # All but the object of the action rest.
    origin = state.cell_of(action.thing)
    others = [resting(thing, cell) for cell, thing in enumerate(state.cells) if thing and cell != origin]
    if action.kind == "add" and action.cell is not None:
        return [*others, resting(action.thing, action.cell, progress)]
    if origin is None:
        raise ValueError(f"{action} cannot happen in {state}")
    if action.kind == "remove":
        return [*others, resting(action.thing, origin, 1 - progress)]
    now = resting(action.thing, origin)
    if action.kind == "recolour" and action.becomes is not None:
        goal = COLOURS[object_name(action.becomes)[0]]
        mixed = [a + (b - a) * progress for a, b in zip(now.rgb, goal, strict=True)]
        return [*others, Sprite(now.shape, (mixed[0], mixed[1], mixed[2]), now.left_px, now.top_px)]
    # A moved object slides in a straight line.
    row, column = divmod(action.cell or 0, GRID)
    column_px = round(now.left_px + (column * CELL_PX - now.left_px) * progress)
    top = round(now.top_px + (row * CELL_PX - now.top_px) * progress)
    return [*others, Sprite(now.shape, now.rgb, column_px, top)]
