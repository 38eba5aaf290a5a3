"""Write clips to measure on, in the shapes of two corpora: synthetic, or re-encoded from real videos."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import cv2
import numpy as np

from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.images import Pixels
from wm.video import VideoError
from wm.video.decode import frames

MIN_FRAMES = 75
"""A shorter part of a real video is left out: it offers no choice of key-frames."""


@dataclass(frozen=True)
class Shape:
    """How a corpus stores its clips; ``options`` are the encoder's."""

    name: str
    suffix: str
    codec: str
    tag: str
    height_px: int
    width_px: int
    fps: int
    length_s: float
    options: tuple[tuple[str, str], ...]

    @property
    def num_frames(self) -> int:
        """Return the frames of a complete clip."""
        return round(self.fps * self.length_s)


XVID = Shape("xvid", ".avi", "mpeg4", "xvid", 240, 320, 25, 7.2, (("qmin", "4"), ("qmax", "6"), ("b", "600k")))
"""UCF-101: 320 x 240 Xvid at 25 frames/s, 7.2 s in the mean (Soomro et al. 2012)."""
H264 = Shape("h264", ".mp4", "libx264", "", 256, 340, 25, 9.0, (("crf", "23"), ("preset", "medium")))
"""Kinetics as it is passed on: H.264 with a short side of 256 pixels; clips last 9 s in the paper's Table 7."""
SHAPES = (XVID, H264)


def list_sources(videos: str) -> list[Path]:
    """List the real videos of a recipe's ``videos`` key; none where it is empty."""
    return [Path(str(row["uri"])) for row in list_videos(videos).to_pylist()] if videos else []


def made_clips(folder: Path, shape: Shape, count: int, length_s: float | None = None) -> list[Path]:
    """Write synthetic scenes (the same in every run).

    Args:
        folder: Where to write.
        shape: Size, rate and codec.
        count: Number of clips.
        length_s: Length of each; None: the shape's.

    Returns:
        The files.
    """
    # Shorter clips are for quick runs.
    num_frames = round(shape.fps * length_s) if length_s else shape.num_frames
    return [
        encode(folder / f"made-{seed:03d}{shape.suffix}", shape, scene(seed, shape, num_frames))
        for seed in range(count)
    ]


def real_clips(folder: Path, shape: Shape, videos: Sequence[Path]) -> list[Path]:
    """Re-encode real videos, cut to the shape's length (a long video gives its first two parts).

    Args:
        folder: Where to write.
        shape: Size, rate and codec.
        videos: Local files; those that cannot be decoded are left out, with a message.

    Returns:
        The files.

    Raises:
        InputError: No video is long enough.
    """
    clips = []
    for video in videos:
        # Two parts of one video are clips of their own, as in the corpora.
        for part, images in enumerate(_iterate_parts(video, shape)):
            name = f"{video.name.replace('.', '-')}-{part}{shape.suffix}"
            clips.append(encode(folder / name, shape, images))
    if not clips:
        raise InputError(f"no video of {MIN_FRAMES} frames or more among the {len(videos)} given")
    return clips


def encode(path: Path, shape: Shape, images: Iterable[Pixels]) -> Path:
    """Encode images to a file.

    Args:
        path: The file; its folder is made.
        shape: Size, rate and codec.
        images: uint8 RGB, of the shape's size.

    Returns:
        ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # A container of its own a clip, as corpora have them.
    with av.open(str(path), "w") as container:
        stream = container.add_stream(shape.codec, rate=Fraction(shape.fps), options=dict(shape.options))
        stream.height, stream.width, stream.pix_fmt = shape.height_px, shape.width_px, "yuv420p"
        stream.thread_type = "NONE"  # the same bytes in every run
        if shape.tag:
            stream.codec_tag = shape.tag
        for number, pixels in enumerate(images):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            # A constant rate, stated: the muxer would guess one.
            frame.pts, frame.time_base = number, Fraction(1, shape.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _iterate_parts(video: Path, shape: Shape) -> Iterator[list[Pixels]]:
    """Iterate over the first two parts of a video in the shape's size and length."""
    try:
        with closing(frames(video)) as decoded:
            images = (_fit(raw.rgb(), shape) for raw in decoded)
            for _ in range(2):
                # Taken from one iterator: the second part follows the first.
                part = list(islice(images, shape.num_frames))
                if len(part) >= MIN_FRAMES:
                    yield part
    except VideoError as error:
        print(f"benchmark: left out, {error}")


def _fit(pixels: Pixels, shape: Shape) -> Pixels:
    size = (shape.width_px, shape.height_px)
    # Area means against aliasing; where it grows they would give blocks.
    shrinks = pixels.shape[0] > shape.height_px
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def scene(seed: int, shape: Shape, num_frames: int) -> Iterator[Pixels]:
    """Render a textured background with four textured objects, which start, stop and turn.

    The camera pans and shakes, with pauses; there is a little sensor noise.

    Args:
        seed: The same seed gives the same frames.
        shape: Height and width.
        num_frames: Length.

    Yields:
        uint8 RGB frames, shape (height, width, 3).
    """
    rng = np.random.default_rng(seed)
    height, width = shape.height_px, shape.width_px
    # The camera may pan this far without leaving the background.
    margin = 48
    background = _draw_texture(rng, height + 2 * margin, width + 2 * margin, 3)
    objects = [_draw_object(rng, int(rng.integers(24, 90))) for _ in range(4)]
    camera_T2 = _draw_path(rng, num_frames, fastest_px=3.0, shake_px=0.4)
    paths = [_draw_path(rng, num_frames, fastest_px=7.0, shake_px=0.0) for _ in objects]
    size = np.array((width, height))
    starts = rng.uniform((0, 0), size, (len(objects), 2))
    for number in range(num_frames):
        shift = margin + (margin - 2) * np.sin(camera_T2[number] / margin)
        move = np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]], np.float32)
        # Mirrored at the edges: an object that leaves on one side would cut the flow.
        image = cv2.warpAffine(background, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        for (pixels, mask), path_T2, start in zip(objects, paths, starts, strict=True):
            center = start + path_T2[number]
            center = np.abs((center + size) % (2 * size) - size)
            _paste(image, pixels, mask, center)
        # Sensor noise, the same in all channels: without it rest would be exactly still.
        noise = rng.normal(0, 2.0, image.shape[:2]).astype(np.float32)
        yield np.clip(image + noise[..., None], 0, 255).astype(np.uint8)


def _draw_texture(rng: np.random.Generator, height: int, width: int, octaves: int) -> Pixels:
    total = np.zeros((height, width, 3), np.float32)
    # Coarse octaves weigh more, so that flow has something to hold at every size.
    for octave in range(octaves):
        cell = 4 * 3**octave
        coarse = rng.normal(size=(height // cell + 3, width // cell + 3, 3)).astype(np.float32)
        total += (0.5 + octave) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(128 + 32 * total, 0, 255).astype(np.uint8)


def _draw_object(rng: np.random.Generator, side: int) -> tuple[Pixels, np.ndarray]:
    mask = np.zeros((side, side), np.uint8)
    axes = (side // 2 - 1, int(rng.integers(side // 4, side // 2)))
    cv2.ellipse(mask, (side // 2, side // 2), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1)
    # A tint of its own: an object must not vanish into the background.
    tint = rng.integers(-80, 80, 3)
    return np.clip(_draw_texture(rng, side, side, 2) + tint, 0, 255).astype(np.uint8), mask > 0


def _draw_path(rng: np.random.Generator, num_frames: int, fastest_px: float, shake_px: float) -> np.ndarray:
    """Sample offsets (T, 2) in pixels: stretches of 10 to 40 frames, a third at rest, each of one speed and bend."""
    speed_T2 = np.zeros((num_frames, 2))
    begin = 0
    while begin < num_frames:
        length = int(rng.integers(10, 40))
        if rng.random() > 1 / 3:
            size, angle, bend = rng.uniform(0.3, fastest_px), rng.uniform(0, 2 * math.pi), rng.normal(0, 0.03)
            # Speed rises and falls in a half sine: nothing starts with a jump.
            steps = np.arange(min(length, num_frames - begin))
            ease = np.sin(np.pi * (steps + 0.5) / length)
            turn = angle + bend * steps
            speed_T2[begin : begin + length] = (size * ease * (np.cos(turn), np.sin(turn))).T
        begin += length
    return np.cumsum(speed_T2, axis=0) + rng.normal(0, shake_px, (num_frames, 2)) * (shake_px > 0)


def _paste(image: Pixels, pixels: Pixels, mask: np.ndarray, center: np.ndarray) -> None:
    """Paste an object in place, by integer pixels: no sub-pixel shift over a moving background."""
    side = mask.shape[0]
    left_px, top_px = (round(float(value)) - side // 2 for value in center)
    x, y = max(0, left_px), max(0, top_px)
    right, bottom = min(image.shape[1], left_px + side), min(image.shape[0], top_px + side)
    # The camera has panned away from it.
    if right <= x or bottom <= y:
        return
    # Only the part inside the image.
    cut = (slice(y - top_px, bottom - top_px), slice(x - left_px, right - left_px))
    image[y:bottom, x:right][mask[cut]] = pixels[cut][mask[cut]]
