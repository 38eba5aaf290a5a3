"""Write the nano world: supervised pairs in AURORA's layout and unlabelled videos, from a seed."""

import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs.shared.ray_session import connect
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import OutputPath
from wm.runs import Run, read_run


class TabletopRecipe(Recipe):
    """How much of everything. The same seed writes the same world."""

    out: OutputPath
    """Folder for out/supervised (AURORA layout) and out/videos (a folder a class)."""
    train: int = Field(default=1000, ge=1)
    """Supervised pairs for training."""
    tune: int = Field(default=200, ge=0)
    """Supervised pairs for choosing settings."""
    test: int = Field(default=200, ge=1)
    """Supervised pairs for reporting."""
    videos: int = Field(default=1400, ge=0)
    """Unlabelled clips, mp4 and avi, of four to seven actions each."""
    seed: int = Field(default=0, ge=0)
    """Another seed, another world."""
    num_workers: int = Field(default=2, ge=1)
    """Processes that draw and encode."""
    clips_per_task: int = Field(default=50, ge=1)
    """Clips that one Ray task draws and encodes."""


def write_clips(folder: str, seeds: list[int]) -> str:
    """Draw and encode the clips of these seeds that do not stand yet; returns what is wrong with the disk, or ""."""
    import cv2

    from wm.nano.world.videos import clip_path, plan_clip, write_clip

    cv2.setNumThreads(1)
    for seed in seeds:
        clip = plan_clip(seed)
        path = clip_path(Path(folder), clip)
        if not path.exists():
            try:
                write_clip(clip, path)
            except OSError as error:
                return f"cannot write {path}: {error}"
    return ""


def run(recipe: TabletopRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Write the world into ``recipe.out``; returns the run's record."""
    stage = Run(recipe.out, "tabletop", recipe)
    whole = stage.is_whole()
    splits = {"train": recipe.train, "tune": recipe.tune, "test": recipe.test}
    if dry_run or whole:
        print(
            f"tabletop: {'already whole in' if whole else 'would write'} {recipe.out}: "
            f"{', '.join(f'{count:,} {split} pairs' for split, count in splits.items())}, {recipe.videos:,} clips"
        )
        return (read_run(recipe.out) or {}) if whole else {}
    stage.start()
    out = Path(recipe.out)
    with stage.timed("videos_s"):
        _write_videos(recipe, out / "videos")
    with stage.timed("pairs_s"):
        _write_pairs(recipe, out / "supervised", splits)
    record = stage.finish({**splits, "videos": recipe.videos})
    print(f"tabletop: {sum(splits.values()):,} pairs in {out}/supervised, {recipe.videos:,} clips in {out}/videos")
    return record


def _write_videos(recipe: TabletopRecipe, folder: Path) -> None:
    if not recipe.videos:
        return
    connect()
    import ray

    first = recipe.seed * 1_000_000
    seeds = list(range(first, first + recipe.videos))
    step = recipe.clips_per_task
    task = ray.remote(write_clips).options(num_cpus=1, max_retries=2)
    parts = [seeds[at : at + step] for at in range(0, len(seeds), step)]
    waiting: dict[Any, int] = {}
    with progress_bar(len(seeds), "clip", "tabletop videos") as bar:
        while parts or waiting:
            # So many at a time: each logical CPU's worker would stay in memory for the stages that follow.
            while parts and len(waiting) < recipe.num_workers:
                part = parts.pop(0)
                waiting[task.remote(str(folder.absolute()), part)] = len(part)
            (done,), _ = ray.wait(list(waiting))
            problem = ray.get(done)
            if problem:
                raise InputError(f"{problem}; what is written is kept, the same command goes on")
            bar.update(waiting.pop(done))


def _write_pairs(recipe: TabletopRecipe, root: Path, splits: dict[str, int]) -> None:
    from wm.nano.world.triplets import write_triplets

    with progress_bar(sum(splits.values()), "pair", "tabletop pairs") as bar:
        for split, count in splits.items():
            if count:
                write_triplets(root, split, count, recipe.seed, bar.update)


def main() -> int:
    """Command line."""
    return cli_main(TabletopRecipe, run, name="tabletop", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
