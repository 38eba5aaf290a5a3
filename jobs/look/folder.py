"""Choose the folder of a look whose recipe names none: never among the videos. Makes nothing."""

import hashlib
import json
import os
import re
from pathlib import Path

from jobs.look.recipe import LookRecipe
from wm.datasets.videos.folders import is_glob
from wm.files.uris import is_remote, local_path


def default_out(recipe: LookRecipe, digest: str) -> Path:
    """Return the folder of a run whose recipe names none: other videos and other settings have other folders.

    Args:
        recipe: Its identity settings are part of the name.
        digest: Of the listing.
    """
    # A budget is no part of the name: the same folder resumes with another one.
    settings = type(recipe).identity_settings(recipe.model_dump(mode="json"))
    text = json.dumps([settings, digest], sort_keys=True)
    spec = recipe.videos if is_remote(recipe.videos) else os.path.abspath(local_path(recipe.videos))  # noqa: PTH100
    words = [part for part in spec.split("/") if part and not is_glob(part)] or ["videos"]
    name = f"{safe_name(words[-1])}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    if is_remote(recipe.videos) or not _is_among_videos(Path.cwd(), local_path(recipe.videos)):
        return Path("runs", "look", name)
    # Nothing is written among the videos, where the next listing would come across it.
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - stays if unknown
    return Path(cache, "wm", "look", name)


def _is_among_videos(folder: Path, videos: str) -> bool:
    """Return whether a folder is one in which the specification looks for videos."""
    # The part before a pattern; of one file, its folder.
    fixed = Path(videos)
    while is_glob(fixed.name) or fixed.is_file():
        fixed = fixed.parent
    goes_deeper = Path(videos).is_dir() or "**" in videos
    here, there = folder.resolve(), fixed.resolve()
    return here.is_relative_to(there) if goes_deeper else here == there


def safe_name(text: str) -> str:
    """Convert a text to a part of a file name: letters, digits, dot, dash and underscore, its last 60 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[-60:] or "videos"
