"""Draw a clip's motion curve with the key-frames that each rule chooses, and the frames themselves."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wm.files.atomic import replace_file
from wm.images import decode_image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

COLOURS = ("#1667c7", "#c2560c", "#14804a", "#8a3ffc", "#9f1853", "#005d5d")
_WIDTH_IN, _CURVE_IN, _TITLES_IN = 12.0, 2.6, 0.6
_DPI = 100


@dataclass(frozen=True)
class Choice:
    """What a rule chose of a clip."""

    rule: str
    frames: Sequence[int]  # indices in time order
    images: Sequence[bytes]  # their PNG bytes, or none where there are fewer than two


def draw_curve(
    path: Path, title: str, times_s: npt.NDArray[np.float64], motion: npt.NDArray[np.float32], choices: Sequence[Choice]
) -> None:
    """Draw a motion curve with the key-frames of each choice as marks, and below it a strip of frames for each choice.

    Args:
        path: PNG to write, completely or not at all.
        title: Text above the curve.
        times_s: Seconds of the file's clock, (T,).
        motion: px/frame, (T,).
        choices: At most as many as :data:`COLOURS`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # 1. A grid: the curve over all columns, below it a row of frames for each choice.
    widest = max([2, *(len(choice.frames) for choice in choices)])
    strips = [_strip_height_in(choice, _WIDTH_IN / widest) for choice in choices]
    heights = [_CURVE_IN, *strips]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights)), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(heights), widest, height_ratios=heights)
    # No mathematics in names: a file may be called $x_1$.mp4.
    _draw_motion(figure.add_subplot(grid[0, :]), title, times_s, motion, choices)
    for number, choice in enumerate(choices):
        _draw_strip(figure, [grid[number + 1, cell] for cell in range(widest)], times_s, choice, COLOURS[number])
    # 2. The file, renamed when it is complete.
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without a font here
        canvas.print_png(buffer)
    with replace_file(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def _draw_motion(
    axes: "Axes",
    title: str,
    times_s: npt.NDArray[np.float64],
    motion: npt.NDArray[np.float32],
    choices: Sequence[Choice],
) -> None:
    axes.plot(times_s, motion, color="#5b636b", linewidth=1)
    top = float(motion.max()) or 1.0
    for number, choice in enumerate(choices):
        frames = list(choice.frames)
        # Marks of a later rule are smaller and above, so that those of an earlier one show behind them.
        axes.scatter(
            times_s[frames], motion[frames], color=COLOURS[number], label=f"{choice.rule} ({len(frames)})",
            marker="ov^sDP"[number], s=max(12, 60 - 24 * number), zorder=3 + number,
        )  # fmt: skip
        axes.vlines(times_s[frames], 0, motion[frames], color=COLOURS[number], linewidth=0.8, alpha=0.6)
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel("time (s)", fontsize=9)
    axes.set_ylabel("motion (px/frame)", fontsize=9)
    axes.set_ylim(0, top * 1.08)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _strip_height_in(choice: Choice, cell_in: float) -> float:
    # No images: a line of text is enough.
    if not choice.images:
        return _TITLES_IN
    height, width = decode_image(choice.images[0], "a frame").shape[:2]
    return _TITLES_IN + min(3.0, cell_in * float(height / width))


def _draw_strip(
    figure: "Figure", cells: Sequence["SubplotSpec"], times_s: npt.NDArray[np.float64], choice: Choice, colour: str
) -> None:
    for position, cell in enumerate(cells):
        axes = figure.add_subplot(cell)
        axes.set_axis_off()
        # The first cell names the rule, also where there is no frame.
        above = choice.rule if position == 0 else ""
        below = ""
        if position < len(choice.images):
            frame = choice.frames[position]
            axes.imshow(decode_image(choice.images[position], f"frame {frame}"))
            below = f"frame {frame}, {times_s[frame]:.2f} s"
        elif position == 0:
            below = f"{len(choice.frames)} key-frame: no pair"
        axes.set_title(f"{above}\n{below}", fontsize=9, color=colour, loc="left", pad=3)
