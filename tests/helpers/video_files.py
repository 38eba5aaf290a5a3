"""Small videos whose every frame says which one it is."""

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIDE_PX = (48, 64)
BARS = 8


def marked_frame(index: int, height: int = SIDE_PX[0], width: int = SIDE_PX[1]) -> np.ndarray:
    """Eight upright bars, bright where the bit of ``index`` is set; coloured, with a light left upper
    corner."""
    pixels = np.zeros((height, width, 3), np.uint8)
    bar = width // BARS
    for bit in range(BARS):
        pixels[:, bit * bar : (bit + 1) * bar] = (200, 180, 160) if index >> bit & 1 else (40, 50, 60)
    pixels[: height // 4, : width // 4] = 235
    return pixels


def read_mark(pixels: np.ndarray) -> int:
    """The index that :func:`marked_frame` wrote into an upright frame of any size."""
    height, width = pixels.shape[:2]
    row = pixels[int(height * 0.7)].mean(axis=-1)
    return sum(1 << bit for bit in range(BARS) if row[int((bit + 0.5) * width / BARS)] > 110)


def decord_frame(path: str, index: int) -> tuple[int, ...]:
    """Shape of one frame by decord, which never returns for some; for a process that can be killed."""
    import decord

    shape: tuple[int, ...] = decord.VideoReader(path, num_threads=1).get_batch([index]).shape
    return shape


_held: list[np.ndarray] = []


def hold_memory(size_mb: int) -> int:
    """Take memory and never give it back; for a process that can be replaced."""
    _held.append(np.ones(size_mb * 2**20, np.uint8))
    return size_mb


def write_video(
    path: Path,
    frames: list[np.ndarray],
    *,
    fps: int | Fraction = 25,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    pts: list[int] | None = None,
    rotation: int = 0,
    gop: int = 12,
    full_range: bool = False,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames nearly losslessly. ``pts``: their times in 1/fps; ``rotation``: anti-clockwise, as
    metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if options is None:
        options = {"crf": "8", "preset": "ultrafast"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], pix_fmt
        stream.codec_context.gop_size = gop
        if codec == "mpeg4":
            stream.bit_rate = 3_000_000
        if full_range:
            stream.codec_context.color_range = 2
        if rotation:
            stream.set_display_rotation(rotation)
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if full_range:
                frame = frame.reformat(format=pix_fmt, dst_color_range="JPEG")
            frame.pts = pts[number] if pts else number
            frame.time_base = Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def run_ffmpeg(*args: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run the ffmpeg binary that imageio-ffmpeg brings."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-y", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120, check=True)


def ffmpeg_images(path: Path, filters: str = "null", *options: str) -> np.ndarray:
    """Every frame of a file as ffmpeg shows it, uint8 RGB (T, height, width, 3). ``options`` come before the input."""
    sink = ("-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    process = run_ffmpeg(*options, "-i", path, "-map", "0:v:0", "-vf", f"{filters},showinfo", *sink)
    width, height = map(int, re.findall(r" s:(\d+)x(\d+)", process.stderr.decode(errors="replace"))[-1])
    return np.frombuffer(process.stdout, np.uint8).reshape(-1, height, width, 3)
