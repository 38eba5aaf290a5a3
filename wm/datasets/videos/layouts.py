"""Derive a video's class from its path: the layouts of UCF-101, Kinetics-700, Moments in Time."""

import re
from collections.abc import Callable
from typing import Final, Literal, get_args
from urllib.parse import unquote

Layout = Literal["auto", "folder", "ucf101", "kinetics", "moments", "epic"]
LAYOUTS: Final = get_args(Layout)

_SPLITS: Final = {"train", "training", "val", "valid", "validation", "test", "testing"}
_UCF_NAME = re.compile(r"v_(.+)_g\d\d_c\d\d\.[^.]+")
_KINETICS_NAME = re.compile(r".{11}_\d{6}_\d{6}\.[^.]+")


def class_rule(layout: Layout, is_list: bool = False) -> Callable[[str], str]:
    """Return the function from a key to a class, empty where the layout has none.

    It looks at one key alone, so a video's class does not change with its neighbours.

    - ``folder``: the folder that the video lies in, at any depth; none directly below the root.
    - ``ucf101``: ``{Class}/v_{Class}_gNN_cNN.avi`` → the folder; without a folder the class in the name.
    - ``kinetics``, ``moments``: ``{train,val,…}/{class}/FILE``, ``{class}/FILE`` → the folder, unless it is a split's.
    - ``auto``, in this order: a UCF-101 name, alone or in its class's folder (in any case: ``HandstandPushups`` holds
      ``v_HandStandPushups_…``) as ``ucf101``; a file in a folder in a split's folder: the inner folder; a Kinetics name
      in a split's folder itself: none; exactly ``class/FILE``: the folder. In a list file (``is_list``) the last
      rule is left out: there a folder may be anything.
    """
    rules = {"folder": _folder, "ucf101": _ucf101, "kinetics": _split_folder, "moments": _split_folder}
    rule = rules.get(layout, _auto_in_list if is_list else _auto)
    return lambda key: rule(_parts(key))


def _parts(key: str) -> list[str]:
    if key.startswith(("http://", "https://")):
        key = unquote(key.partition("?")[0])
    scheme, _, rest = key.rpartition("://")
    parts = rest.split("/")
    return (parts[1:] or [""]) if scheme else parts  # without host or bucket


def _folder(parts: list[str]) -> str:
    return parts[-2] if len(parts) > 1 else ""


def _ucf101(parts: list[str]) -> str:
    name = _UCF_NAME.fullmatch(parts[-1])
    return _folder(parts) or (name[1] if name else "")


def _split_folder(parts: list[str]) -> str:
    folder = _folder(parts)
    return "" if folder.lower() in _SPLITS else folder


def _auto_in_list(parts: list[str]) -> str:
    folder, name = _folder(parts), _UCF_NAME.fullmatch(parts[-1])
    if name and folder.lower() in ("", name[1].lower()):
        return folder or name[1]
    return folder if len(parts) > 2 and parts[-3].lower() in _SPLITS else ""


def _auto(parts: list[str]) -> str:
    label = _auto_in_list(parts)
    if label or len(parts) != 2:
        return label
    is_flat_split = parts[0].lower() in _SPLITS and _KINETICS_NAME.fullmatch(parts[1])
    return "" if is_flat_split else parts[0]
