"""Define what ``predict`` is asked: models, source, search."""

from collections.abc import Mapping
from itertools import accumulate
from operator import mul
from typing import ClassVar

from pydantic import Field, model_validator

from jobs.shared.roles import RolesRecipe
from wm.dynamics import Search
from wm.paths import InputPath, OutputPath, TablePath

_ACTION_CHARS = 1000
"""Of an action, as on the server."""
_MAX_BRANCHES = 64
"""Images of a tree: their number multiplies from level to level."""


class PredictRecipe(RolesRecipe):
    """Which models, from what, and how to search."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        **RolesRecipe.RENAMED_KEYS,
        **{old: f"search.{new}" for old, new in Search.RENAMED_KEYS.items()},
        "max_unchanged": "search.max_unchanged",
    }

    image: InputPath = ""
    """The source image (PNG, JPEG, WebP, BMP), cut to its middle square where one of the models has image codes."""
    actions: list[str] = []
    """With image: what is done, one action after the other."""
    tree: list[list[str]] | None = Field(default=None, min_length=1)
    """With image, instead of actions: a tree of actions, level by level. Each action of a level is done in every image
    of the level before; the images are in out/tree.png. Left out: none."""
    triplets: TablePath = ""
    """Instead of image: folder of triplets, whose actions are done in their source images."""
    limit: int = Field(default=0, ge=0)
    """With triplets: use so many, spread evenly over the set; 0: all."""
    storyboard_triplets: int | None = Field(default=None, ge=1, le=16)
    """With triplets: show so many of them, each with its best distinct candidates (search.num_return) and their scores,
    in out/storyboard.png; left out: none."""
    out: OutputPath
    """Output folder."""
    search: Search = Search()
    """How a prediction is searched for."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the samples: the same seed gives the same predictions."""

    @model_validator(mode="after")
    def _check_source(self) -> "PredictRecipe":
        if bool(self.image) == bool(self.triplets):
            raise ValueError("give image=FILE with actions=[…] or tree=[[…], …], or triplets=FOLDER, and not both")
        if self.tree is not None:
            self._check_tree(self.tree)
        if self.image and not self.actions and self.tree is None:
            raise ValueError("actions = []: expected one action or more to be done in the image")
        if self.triplets and self.actions:
            raise ValueError("actions belong to image; triplets have their own")
        if self.image and self.limit:
            raise ValueError(f"limit = {self.limit} belongs to triplets")
        if self.image and self.storyboard_triplets:
            raise ValueError(
                f"storyboard_triplets = {self.storyboard_triplets} belongs to triplets; image has its storyboard"
            )
        if self.triplets and self.search.num_beams > 1:
            raise ValueError(
                f"search.num_beams = {self.search.num_beams} belongs to actions one after the other; "
                "a triplet has one action"
            )
        # The server's limits, so that what is predicted here can be asked there.
        for action in (*self.actions, *(action for level in self.tree or () for action in level)):
            if not action.strip() or len(action) > _ACTION_CHARS:
                problem = "is empty" if not action.strip() else f"has {len(action)} letters"
                raise ValueError(
                    f"action {action!r:.60} {problem}; expected some words, {_ACTION_CHARS} letters at most"
                )
        return self

    def _check_tree(self, tree: list[list[str]]) -> None:
        if self.triplets or self.actions:
            other = "triplets" if self.triplets else "actions"
            raise ValueError(f"tree belongs to image, without {other}")
        if self.search.num_beams > 1:
            raise ValueError(
                f"search.num_beams = {self.search.num_beams} belongs to actions; a tree keeps one sequence for each of "
                "its paths"
            )
        for number, level in enumerate(tree, 1):
            if not level or len(set(level)) < len(level):
                problem = "has one action twice" if level else "is empty"
                raise ValueError(f"level {number} of tree {problem}; expected different actions, one or more")
        if (count := self.num_branches) > _MAX_BRANCHES:
            raise ValueError(f"tree has {count:,} images; expected {_MAX_BRANCHES} at most")

    @property
    def num_branches(self) -> int:
        """Return the images of the tree, the source not counted."""
        sizes = list(accumulate(map(len, self.tree or ()), mul))
        return sum(sizes)
