"""Find a data set's layout by name or by recognition, for ``annotate`` and ``ingest`` alike.

A layout is one file here and one line of :data:`LAYOUTS`.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator

from wm.datasets.layouts.base import Layout
from wm.errors import InputError

LAYOUTS: dict[str, str] = {
    "folder": "wm.datasets.layouts.folder",
    "ucf101": "wm.datasets.layouts.ucf101",
    "kinetics": "wm.datasets.layouts.kinetics",
    "moments": "wm.datasets.layouts.moments",
    "epic": "wm.datasets.layouts.epic",
    "something": "wm.datasets.layouts.something",
    "aurora": "wm.datasets.layouts.aurora",
    "aurora_something": "wm.datasets.layouts.aurora_something",
    "magicbrush": "wm.datasets.layouts.magicbrush",
}
"""Every layout's name → the module that ends in its ``LAYOUT``. Recognition asks them in this order."""

_HEAD_CHARS = 65536


def _check_name(name: str) -> str:
    if name != "auto" and name not in LAYOUTS:
        raise ValueError(f"expected one of auto, {', '.join(LAYOUTS)}")
    return name


DatasetLayout = Annotated[str, AfterValidator(_check_name)]
"""Field of a recipe that takes the name of a layout, or ``auto``: the layout is recognised."""


def load_layout(name: str) -> Layout:
    """Load a layout.

    Raises:
        InputError: There is none of this name; the message names those that there are.
    """
    if name not in LAYOUTS:
        raise InputError(f"dataset_layout = {name!r}; expected one of auto, {', '.join(LAYOUTS)}")
    layout: Layout = import_module(LAYOUTS[name]).LAYOUT
    return layout


def recognise_table(path: Path, key: str, name: str) -> str:
    """Recognise the layout whose own table a file is by how it begins.

    Args:
        path: The file.
        key: Recipe key that names it, for messages.
        name: The file as the user wrote it, for messages.

    Returns:
        Name of the layout.

    Raises:
        InputError: It is no text, or no layout's table.
    """
    # The beginning suffices: a table may have millions of rows.
    try:
        with path.open(encoding="utf-8-sig") as file:
            head = file.read(_HEAD_CHARS)
    except UnicodeDecodeError as error:
        raise InputError(f"{key} = {name!r} is no table (not UTF-8 text)") from error
    # The first that knows it: what each looks at is in no other's tables.
    layouts = {layout_name: load_layout(layout_name) for layout_name in LAYOUTS}
    for layout_name, layout in layouts.items():
        if layout.recognise_table is not None and layout.recognise_table(head):
            return layout_name
    line = head.partition("\n")[0].strip()
    examples = ", or ".join(layout.table_example for layout in layouts.values() if layout.table_example)
    raise InputError(f"{key} = {name!r}: first line {line!r:.80} is none that is known; expected {examples}")


def class_rule(name: str, is_list: bool = False) -> Callable[[str], str]:
    """Return the function from a video's key to its class, empty where the layout has none.

    It looks at one key alone, so a video's class does not change with its neighbours. Under ``auto`` (and for a layout
    without a rule of its own) the first layout that recognises the path gives the class; a path that none recognises
    has one if it is exactly ``class/FILE``.

    Args:
        name: A layout, or ``auto``.
        is_list: The key is of a list file, where the folder of a path that none recognises may be anything.
    """
    class_of = load_layout(name).class_of if name != "auto" else None
    if class_of is not None:
        rule = class_of
        return lambda key: rule(_split_key(key))
    # Listed once: the rule runs for millions of keys.
    recognisers = [layout.recognise_path for layout in map(load_layout, LAYOUTS) if layout.recognise_path]

    def recognise(parts: Sequence[str]) -> str:
        for recognise_path in recognisers:
            if (label := recognise_path(parts)) is not None:
                return label
        return parts[0] if len(parts) == 2 and not is_list else ""

    return lambda key: recognise(_split_key(key))


def _split_key(key: str) -> list[str]:
    """Split the path of a key into its folders and its name."""
    if key.startswith(("http://", "https://")):
        key = unquote(key.partition("?")[0])
    scheme, _, rest = key.rpartition("://")
    parts = rest.split("/")
    return (parts[1:] or [""]) if scheme else parts  # without host or bucket
