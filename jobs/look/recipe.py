"""Define the recipe of ``look``: which videos, how long, and the settings that an annotation would have."""

import json
import os
import shlex
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from jobs.annotate.recipe import AnnotateRecipe, Limits
from wm.config import Recipe
from wm.datasets.filters import Filters
from wm.datasets.layouts import DatasetLayout
from wm.paths import OptionalInputPath, OutputPath, SourcePath
from wm.video import KEYFRAME_RULES, Reader
from wm.video.settings import KeyframeSettings

SHARED_KEYS = (
    "dataset_layout",
    "annotations",
    "dataset",
    "keyframes",
    "filters",
    "reader",
    "image_side_px",
    "limits",
    "videos_per_shard",
)
"""Keys that mean the same to ``annotate``, and that its command takes over."""


class LookRecipe(Recipe):
    """Which videos, for how long, how key-frames and pairs are chosen."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"budget_s", "max_clips", "num_workers"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "layout": "dataset_layout",
        "limit": "max_clips",
        "motion": "keyframes.motion",
        "motion_side_px": "keyframes.motion_side_px",
        "max_keyframes": "keyframes.max_keyframes",
        "min_interval": "keyframes.min_interval_frames",
        "time_limit_s": "limits.time_limit_s",
    }

    videos: SourcePath
    """Folder, glob, list or one video, local or remote, as for wm annotate; may be given without videos=."""
    out: OutputPath = ""
    """Folder for the page; empty: a folder in runs/look named after the videos and the settings."""
    budget_s: float = Field(default=40.0, ge=0)
    """Seconds after which no further clip is begun and those under way are left out; the same command resumes with
    the next ones. 0: no limit."""
    max_clips: int = Field(default=200, ge=1)
    """Max number of clips, evenly spread over the classes and the list."""
    num_workers: int = Field(default=0, ge=0)
    """Clips that are read at once, each in a process; 0: as many as there are CPUs."""
    image_px: int = Field(default=320, ge=64, le=1024)
    """Max long side of the page's images."""
    dataset_layout: DatasetLayout = "auto"
    """How paths imply classes (see wm annotate)."""
    annotations: OptionalInputPath = None
    """The data set's own table, for layouts that have one (see wm annotate)."""
    dataset: str = Field(default="videos", min_length=1)
    """Name of the data set, of which the ids of pairs are made."""
    keyframes: KeyframeSettings = KeyframeSettings()
    """How key-frames are chosen; the page shows every rule, and begins with keyframes.rule."""
    filters: Filters = Filters()
    """Which pairs are kept; filters that need a model (unchanged, action, likelihood) appear in annotate's command
    only."""
    reader: Reader = "auto"
    """Who reads the chosen frames (see wm annotate)."""
    image_side_px: int = Field(default=512, ge=0)
    """Short side of the images that an annotation would store and filter; 0 = as large as the video."""
    limits: Limits = Limits()
    """What a video may cost (see wm annotate)."""
    videos_per_shard: int = Field(default=32, ge=1)
    """Videos among which an annotation looks for near-duplicate pairs (see wm annotate)."""

    def to_annotate(self) -> AnnotateRecipe:
        """Return the recipe of an annotation with the same settings; its model and folder are placeholders."""
        values = {name: getattr(self, name) for name in SHARED_KEYS}
        return AnnotateRecipe(videos=self.videos, idm="MODEL", out="data/annotated", **values)

    def rules(self) -> list[str]:
        """List the key-frame rules by name, the chosen one first."""
        return sorted(KEYFRAME_RULES, key=lambda name: name != self.keyframes.rule)

    def workers(self) -> int:
        """Return how many clips are read at once."""
        return self.num_workers or len(os.sched_getaffinity(0))

    def changed_settings(self) -> list[str]:
        """List what differs from the defaults and means the same to ``annotate``, as ``key=value``."""
        # Against the class, so that a new default is followed.
        values = self.model_dump(mode="json", include=set(SHARED_KEYS))
        defaults = {name: field.get_default() for name, field in type(self).model_fields.items()}
        defaults = {
            name: value.model_dump(mode="json") if isinstance(value, Recipe) else value
            for name, value in defaults.items()
        }
        return _list_changes({name: values[name] for name in SHARED_KEYS}, defaults, "")

    def annotate_command(self) -> str:
        """Build the command of an annotation with the same settings."""
        words = [f"videos={self.videos}", "idm=MODEL", "out=data/annotated", *self.changed_settings()]
        return f"wm annotate {shlex.join(words)}"


def _list_changes(values: Mapping[str, object], defaults: Mapping[str, object], table: str) -> list[str]:
    # Numbers and lists as TOML, texts as they are.
    texts: list[str] = []
    for key, value in values.items():
        default = defaults[key]
        # Keys of tables are dotted, as a command line takes them.
        if isinstance(value, dict) and isinstance(default, dict):
            texts += _list_changes(value, default, f"{table}{key}.")
        elif value != default:
            texts.append(f"{table}{key}={value if isinstance(value, str) else json.dumps(value)}")
    return texts
