"""Write the nano world from a seed: supervised pairs in AURORA's layout and unlabelled videos.

Not known here: how a scene is rendered (:mod:`wm.nano.world`).
"""

import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from jobs.shared.tasks import each
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.errors import InputError
from wm.files.mirror import list_below, on_this_node, publish, uri_of
from wm.paths import OutputPath
from wm.runs import Run, RunRecord, read_run


class TabletopResources(Recipe):
    """Processes that render and encode; they do not change the result."""

    num_workers: int = Field(default=2, ge=0)
    """Ray tasks that render and encode; 0: in this process, without Ray."""
    clips_per_task: int = Field(default=50, ge=1)
    """Clips that a process takes at a time: fewer show progress more often, more cost less overhead."""


class TabletopRecipe(Recipe):
    """How much of everything. The same seed writes the same world."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources"})
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"questions"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "num_workers": "resources.num_workers",
        "clips_per_task": "resources.clips_per_task",
    }

    out: OutputPath
    """Folder for out/supervised (AURORA layout), out/videos (a folder a class) and out/questions."""
    train: int = Field(default=1000, ge=0)
    """Supervised pairs for training."""
    tune: int = Field(default=200, ge=0)
    """Supervised pairs for choosing settings."""
    test: int = Field(default=200, ge=0)
    """Supervised pairs for reporting."""
    videos: int = Field(default=1400, ge=0)
    """Unlabelled clips, mp4 and avi, of four to seven actions each."""
    questions: int = Field(default=0, ge=0)
    """Questions of where things are, for wm ask."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another world."""
    resources: TabletopResources = TabletopResources()
    """Who renders and encodes."""


def write_clips(seeds: list[int], folder: str) -> int:
    """Render and encode the clips of these seeds that are not there yet.

    Args:
        seeds: One a clip.
        folder: Absolute path, or one that stands for a folder of a bucket; a subfolder for each class is made in it.

    Returns:
        Number of clips of the seeds.

    Raises:
        InputError: A clip cannot be written.
    """
    import cv2

    from wm.nano.world.videos import clip_path, plan_clip, write_clip

    cv2.setNumThreads(1)  # the tasks share the cores already
    for seed in seeds:
        clip = plan_clip(seed)
        path = clip_path(on_this_node(folder), clip)
        # A clip is renamed when it is complete: an existing one needs nothing.
        if not path.exists():
            try:
                write_clip(clip, path)
            except OSError as error:
                message = f"cannot write {path}: {error}; what is written is kept, the same command resumes"
                raise InputError(message) from error
        publish(path)
    return len(seeds)


def run(recipe: TabletopRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the world into ``recipe.out``.

    Args:
        recipe: Sizes, seed and output folder.
        dry_run: Print what would be written.

    Returns:
        The run's record; empty on a dry run.
    """
    stage = Run(recipe.out, "tabletop", recipe)
    is_complete = stage.is_complete()
    splits = {"train": recipe.train, "tune": recipe.tune, "test": recipe.test}
    if dry_run or is_complete:
        print(
            f"tabletop: {'already complete in' if is_complete else 'would write'} {recipe.out}: "
            f"{', '.join(f'{count:,} {split} pairs' for split, count in splits.items())}, {recipe.videos:,} clips"
            f"{f', {recipe.questions:,} questions' if recipe.questions else ''}"
        )
        return (read_run(recipe.out) or {}) if is_complete else {}
    stage.start(leave=["*.mp4", "*.avi"])
    out = Path(recipe.out)
    with stage.timed("videos_s"):
        _write_videos(recipe, out / "videos")
    with stage.timed("pairs_s"):
        _write_pairs(recipe, out / "supervised", splits)
    counts = {**splits, "videos": recipe.videos}
    if recipe.questions:
        with stage.timed("questions_s"):
            _write_questions(recipe, out / "questions")
        counts["questions"] = recipe.questions
    record = stage.finish(counts)
    print(f"tabletop: {sum(splits.values()):,} pairs in {out}/supervised, {recipe.videos:,} clips in {out}/videos")
    return record


def _write_videos(recipe: TabletopRecipe, folder: Path) -> None:
    if not recipe.videos:
        return
    first = recipe.seed * 1_000_000  # worlds of different seeds share no clip
    seeds = _find_missing(list(range(first, first + recipe.videos)), folder)
    step = recipe.resources.clips_per_task
    parts = [(seeds[start : start + step],) for start in range(0, len(seeds), step)]
    # As many tasks as workers: each logical CPU's worker would stay in memory for the stages that follow.
    num_workers = recipe.resources.num_workers
    results = each(write_clips, parts, str(folder.absolute()), on_ray=num_workers > 0, max_running=num_workers or None)
    num_finished = recipe.videos - len(seeds)
    with progress_bar(recipe.videos, "clip", "tabletop videos", num_finished) as bar, closing(results):
        for num_clips in results:
            bar.update(num_clips)


def _find_missing(seeds: list[int], folder: Path) -> list[int]:
    """List the seeds whose clips are not in a bucket yet; all of them where clips are files, which tasks look at."""
    if uri_of(folder) is None:
        return seeds
    from wm.nano.world.videos import clip_path, plan_clip

    present = {facts.name for facts in list_below(folder, missing_ok=True)}
    return [seed for seed in seeds if str(clip_path(folder, plan_clip(seed)).relative_to(folder)) not in present]


def _write_pairs(recipe: TabletopRecipe, root: Path, splits: dict[str, int]) -> None:
    from wm.nano.world.triplets import write_triplets

    with progress_bar(sum(splits.values()), "pair", "tabletop pairs") as bar:
        for split, count in splits.items():
            if count:
                write_triplets(root, split, count, recipe.seed, bar.update)


def _write_questions(recipe: TabletopRecipe, folder: Path) -> None:
    from wm.nano.world.questions import write_questions

    with progress_bar(recipe.questions, "question", "tabletop questions") as bar:
        write_questions(folder, recipe.questions, recipe.seed, bar.update)
    print(f"tabletop: {recipe.questions:,} questions in {folder}")


def main() -> int:
    """Run the command line; returns the exit status."""
    return cli_main(TabletopRecipe, run, name="tabletop", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
