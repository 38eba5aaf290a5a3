"""Find what is installed with the package: models and images of the nano world, and recipes, by name.

``nano:base`` is a folder of :data:`SHIPPED`, ``nano/demo`` a file of :data:`RECIPES`. Not known here: what is in them.
"""

import difflib
from pathlib import Path
from typing import Final, overload

from wm.errors import InputError

PREFIX: Final = "nano:"
"""What the name of a shipped file or folder begins with."""
SHIPPED: Final = Path(__file__).resolve().parent / "nano" / "shipped"
"""Folder of the shipped models and images; ``wm ship`` makes them."""
RECIPES: Final = Path(__file__).resolve().parents[1] / "jobs" / "recipes"
"""Folder of the packaged recipes: beside this package, in the checkout and where a wheel is installed."""


def shipped_names() -> list[str]:
    """List what ``nano:`` names: every folder, and every image of ``nano:images``."""
    folders = [path.name for path in SHIPPED.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))]
    images = [f"images/{path.name}" for path in (SHIPPED / "images").glob("*.png")]
    return [f"{PREFIX}{name}" for name in sorted([*folders, *images])]


@overload
def resolve_packaged(path: str) -> str: ...
@overload
def resolve_packaged(path: None) -> None: ...
def resolve_packaged(path: str | None) -> str | None:
    """Replace the name of a shipped file or folder by its absolute path; other paths stay as they are.

    Args:
        path: Such as ``nano:base`` or ``nano:images/NAME.png``, or any other path; None stays None.

    Raises:
        InputError: The name begins with ``nano:`` and nothing of that name is shipped.
    """
    if path is None or not path.startswith(PREFIX):
        return path
    # Only what is listed: no name leads out of the folder.
    names = shipped_names()
    name = path.rstrip("/")
    if name in names:
        return str(SHIPPED / name.removeprefix(PREFIX))
    nearest = difflib.get_close_matches(path, names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise InputError(f"nothing is shipped as {path!r:.200}; expected {', '.join(names)}{hint}")


@overload
def to_packaged_name(path: str) -> str: ...
@overload
def to_packaged_name(path: None) -> None: ...
def to_packaged_name(path: str | None) -> str | None:
    """Replace the absolute path of a shipped file or folder by its name, which is the same on every machine.

    Args:
        path: As :func:`resolve_packaged` returns it; any other path, and None, stay as they are.
    """
    root = f"{SHIPPED}/"
    return f"{PREFIX}{path.removeprefix(root)}" if path is not None and path.startswith(root) else path


def recipe_names() -> list[str]:
    """List the packaged recipes: ``nano/demo`` and the like, without their ending."""
    return sorted(str(path.relative_to(RECIPES).with_suffix("")) for path in RECIPES.rglob("*.toml"))


def find_recipe(path: Path) -> Path:
    """Find a recipe file: the file of that path, or else the packaged recipe of that name.

    Args:
        path: A path, or a name such as ``nano/demo``; ``.toml`` may be left out of a name.

    Returns:
        The file.

    Raises:
        InputError: There is neither; the nearest file or name is given.
    """
    if path.is_file():
        return path
    names = recipe_names()
    name = str(path).removesuffix(".toml")
    if name in names:
        return RECIPES / f"{name}.toml"
    # A misspelt name is the usual reason; or the path that a packaged recipe has in the checkout.
    others = [other.name for other in path.parent.glob("*.toml")]
    nearest = [str(path.with_name(other)) for other in difflib.get_close_matches(path.name, others, n=1, cutoff=0.75)]
    nearest = nearest or difflib.get_close_matches(name.removeprefix("jobs/recipes/"), names, n=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    if not nearest and not path.suffix:
        hint = f"; those installed with the package are {', '.join(names)}"
    raise InputError(f"no such recipe file: {path}{hint}")
