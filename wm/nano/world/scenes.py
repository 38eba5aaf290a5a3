"""Define states of the tabletop and render their images.

A table of 3 x 3 cells of 16 px (48 x 48 px), 2 to 4 objects, each of another colour and shape, on one of three
table tops. The sizes are those of the prototype that reproduced the paper's claims at laptop scale.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt

from wm.images import Pixels

CELL_PX = 16
GRID = 3
NUM_CELLS = GRID * GRID
SIDE_PX = CELL_PX * GRID
MARGIN_PX = 8
"""Table shown left and right of the cells in a clip: the clip is 64 x 48, its centre square is the scene."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 80, 225),
    "yellow": (250, 215, 40),
}
SHAPES = ("circle", "square", "triangle")
POSITIONS = (
    "top-left",
    "top",
    "top-right",
    "left",
    "center",
    "right",
    "bottom-left",
    "bottom",
    "bottom-right",
)
BACKGROUNDS = ("linen", "slate", "checker")
NUM_OBJECTS = len(COLOURS) * len(SHAPES)

FloatImage = npt.NDArray[np.float32]


@dataclass(frozen=True)
class State:
    """``background``: index into BACKGROUNDS. ``cells``: 9 entries, row-major; 0 is empty, 1 to 12 an object."""

    background: int
    cells: tuple[int, ...]

    def cell_of(self, thing: int) -> int | None:
        """Return the cell of an object, or None."""
        return self.cells.index(thing) if thing in self.cells else None

    def things(self) -> list[int]:
        """List the objects on the table, by cell."""
        return [thing for thing in self.cells if thing]

    def free(self) -> list[int]:
        """List the empty cells."""
        return [cell for cell, thing in enumerate(self.cells) if not thing]

    def put(self, cell: int, thing: int) -> "State":
        """Return the state with another content of one cell.

        Args:
            cell: 0 to 8.
            thing: Object id; 0: empty.
        """
        return State(self.background, (*self.cells[:cell], thing, *self.cells[cell + 1 :]))


def object_id(colour: str, shape: str) -> int:
    """Return the id of an object.

    Args:
        colour: One of :data:`COLOURS`.
        shape: One of :data:`SHAPES`.

    Returns:
        1 to 12.
    """
    return 1 + list(COLOURS).index(colour) * len(SHAPES) + SHAPES.index(shape)


def object_name(thing: int) -> tuple[str, str]:
    """Return (colour, shape) of an object id from 1 to 12."""
    return list(COLOURS)[(thing - 1) // len(SHAPES)], SHAPES[(thing - 1) % len(SHAPES)]


def random_state(rng: np.random.Generator) -> State:
    """Sample a state of 2 to 4 different objects in different cells."""
    count = int(rng.integers(2, 5))
    # Without replacement: an object is on the table once, a cell holds one object.
    cells = [0] * NUM_CELLS
    things = rng.choice(NUM_OBJECTS, count, replace=False) + 1
    for cell, thing in zip(rng.choice(NUM_CELLS, count, replace=False), things, strict=True):
        cells[int(cell)] = int(thing)
    return State(int(rng.integers(len(BACKGROUNDS))), tuple(cells))


@dataclass(frozen=True)
class Camera:
    """What differs between two images of one state: a shift in px (right, down; -2 to 2), sensor noise (standard
    deviation in grey levels) and crumbs (x, y in px on the wide table, darkness in grey levels)."""

    shift_px: tuple[float, float] = (0.0, 0.0)
    noise: float = 2.0
    crumbs: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True)
class Sprite:
    """An object in mid-action: its position (left, top in px of the 16 px box), colour and opacity (0 to 1)."""

    shape: int
    rgb: tuple[float, float, float]
    left_px: int
    top_px: int
    opacity: float = 1.0


def sprites_of(state: State) -> list[Sprite]:
    """List the sprites of a state at rest."""
    return [resting(thing, cell) for cell, thing in enumerate(state.cells) if thing]


def resting(thing: int, cell: int, opacity: float = 1.0) -> Sprite:
    """Return the sprite of an object at rest in a cell.

    Args:
        thing: Object id, 1 to 12.
        cell: 0 to 8.
        opacity: 0 to 1.
    """
    colour, shape = object_name(thing)
    # Cells are row-major.
    row, column = divmod(cell, GRID)
    return Sprite(SHAPES.index(shape), COLOURS[colour], column * CELL_PX, row * CELL_PX, opacity)


def render(state: State, camera: Camera, rng: np.random.Generator) -> Pixels:
    """Render an image of a state at rest.

    Args:
        state: The table.
        camera: Shift, noise and crumbs.
        rng: Samples the noise.

    Returns:
        uint8 RGB (48, 48, 3).
    """
    wide = render_sprites(state.background, sprites_of(state), camera, rng)
    return wide[:, MARGIN_PX : MARGIN_PX + SIDE_PX]


def render_sprites(background: int, sprites: list[Sprite], camera: Camera, rng: np.random.Generator) -> Pixels:
    """Render a frame of the wide table.

    Args:
        background: Index into :data:`BACKGROUNDS`.
        sprites: Painted in this order.
        camera: Shift, noise and crumbs.
        rng: Samples the noise.

    Returns:
        uint8 RGB (48, 64, 3).
    """
    canvas = _render_table(background).copy()
    # Crumbs are on the table, under the objects.
    for x_px, y_px, darkness in camera.crumbs:
        canvas[y_px + 2 : y_px + 4, x_px + 2 : x_px + 4] -= darkness
    for sprite in sprites:
        top, column = sprite.top_px + 2, sprite.left_px + 2 + MARGIN_PX
        box = canvas[top : top + CELL_PX, column : column + CELL_PX]
        alpha = _render_mask(sprite.shape)[..., None] * sprite.opacity
        # Blended over the table by its coverage, so that edges are smooth.
        box += alpha * (np.asarray(sprite.rgb, np.float32) - box)
    # Shift and crop in one resampling; the canvas has 2 px to spare on each side.
    right, down = camera.shift_px
    move = np.asarray([[1, 0, right - 2], [0, 1, down - 2]], np.float32)
    view = np.asarray(cv2.warpAffine(canvas, move, (SIDE_PX + 2 * MARGIN_PX, SIDE_PX), flags=cv2.INTER_LINEAR))
    # Noise last: it is the sensor's, not the table's.
    if camera.noise:
        view = view + rng.standard_normal(view.shape, np.float32) * camera.noise
    pixels_HWC: Pixels = np.clip(np.rint(view), 0, 255).astype(np.uint8)
    return pixels_HWC


def random_camera(rng: np.random.Generator, shifted_share: float = 0.3, crumbed_share: float = 0.2) -> Camera:
    """Sample a camera for one image.

    Args:
        rng: Samples it.
        shifted_share: How many are shifted, by up to 1 px; 0 to 1.
        crumbed_share: How many see crumbs on the table; 0 to 1.
    """
    shift = tuple(float(value) for value in rng.uniform(-1, 1, 2)) if rng.random() < shifted_share else (0.0, 0.0)
    crumbs = random_crumbs(rng) if rng.random() < crumbed_share else ()
    return Camera((shift[0], shift[1]), crumbs=crumbs)


def random_crumbs(rng: np.random.Generator) -> tuple[tuple[int, int, int], ...]:
    """Sample 1 to 4 crumbs of 2 x 2 px, where four cells meet (an object never hides them)."""
    corners = rng.integers(0, (4, 4), (int(rng.integers(1, 5)), 2))
    return tuple(
        (int(x) * CELL_PX + MARGIN_PX - 1, int(y) * CELL_PX - (1 if y else 0), int(rng.integers(20, 50)))
        for x, y in corners
    )


@cache
def _render_mask(shape: int) -> FloatImage:
    """Compute the coverage (16, 16), 0 to 1, of a shape at most 12 px wide, four samples a side and px."""
    # Centres of the samples, about the middle of the cell.
    grid = (np.arange(CELL_PX * 4) + 0.5) / 4 - CELL_PX / 2
    x, y = np.meshgrid(grid, grid)
    half = 6.0
    # 6 px from the middle at most: 2 px to the cell's edge, which a shifted camera may take.
    inside = {
        "circle": x**2 + y**2 <= (half - 0.8) ** 2,
        "square": np.maximum(abs(x), abs(y)) <= half,
        "triangle": (y <= half) & (abs(x) <= (y + half) / 2),
    }[SHAPES[shape]]
    coverage: FloatImage = inside.reshape(CELL_PX, 4, CELL_PX, 4).mean((1, 3)).astype(np.float32)
    return coverage


@cache
def _render_table(background: int) -> FloatImage:
    """Render the bare table (52, 68, 3): the wide view and 2 px around it for the camera's shift."""
    height, width = SIDE_PX + 4, SIDE_PX + 2 * MARGIN_PX + 4
    y, x = np.mgrid[0:height, 0:width] - 2
    tops = {"linen": (238, 228, 212), "slate": (62, 64, 72), "checker": (150, 150, 156)}
    table = np.empty((height, width, 3), np.float32)
    table[:] = tops[BACKGROUNDS[background]]
    if BACKGROUNDS[background] == "checker":
        # Period 8 px divides the cell, so every empty cell of this table looks the same.
        table += np.where((x // 4 + y // 4) % 2 == 0, 10.0, -10.0)[..., None].astype(np.float32)
    return table
