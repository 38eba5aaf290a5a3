"""Write a page to look at a triplet data set: contact sheet, filters, motion curves, rejects by reason.

The page is a folder that opens in a browser as it is: no server, nothing loaded from elsewhere.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.runs import Run, digest_of, read_run
from wm.viewer import Limits, open_source, plan_page, write_page


class ViewRecipe(Recipe):
    """Which data set, how many rows."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"num_threads"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"picture_px": "image_px"}

    triplets: InputPath
    """Output folder of annotate or ingest (with its rejects, clips and pairs), or a folder of Parquet triplets."""
    out: OutputPath
    """Folder for the page: open out/index.html."""
    selection: OptionalInputPath = None
    """Output folder of select: its triplets are marked, can be filtered, and come first into a sample."""
    limit: int = Field(default=10_000, ge=1, le=50_000)
    """Max triplets on the page, and again rejects; of more, a sample stratified by class is shown."""
    image_px: int = Field(default=256, ge=32, le=1024)
    """Max long side of the page's images; 128 makes the page about half as large."""
    title: str = ""
    """Headline; empty: the name of the data set's folder."""
    num_threads: int = Field(default=2, ge=1)
    """Threads that encode images."""

    def limits(self) -> Limits:
        """Return the limits of the page."""
        return Limits(rows=self.limit, image_px=self.image_px, threads=self.num_threads)


def run(recipe: ViewRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Write ``out/index.html`` and ``out/page``.

    Args:
        recipe: Which data set, how many rows.
        dry_run: Check the recipe and report the number of rows only.

    Returns:
        The record that ``run.json`` holds; empty on a dry run.

    Raises:
        InputError: On a folder without triplets, or a damaged file.
    """
    source = open_source(recipe.triplets, recipe.selection)
    inputs = {"triplets": digest_of(recipe.triplets)}
    if recipe.selection is not None:
        inputs["selection"] = digest_of(recipe.selection)
    stage = Run(recipe.out, "view", recipe, inputs)
    if stage.is_complete():
        print(f"view: already complete in {recipe.out}/index.html")
        return read_run(recipe.out) or {}
    # Before the folder is made: a wrong data set, and a dry run, leave nothing.
    with stage.timed("plan_s"):
        plan = plan_page(source, recipe.limits())
    if dry_run:
        print(
            f"view: would show {plan.triplets.size:,} of {plan.triplets.total:,} triplets and {plan.rejects.size:,} "
            f"of {plan.rejects.total:,} rejects in {recipe.out}/index.html"
        )
        return {}
    stage.start()
    title = recipe.title or source.root.resolve().name
    with stage.timed("write_s"), progress_bar(plan.triplets.size, "row", "view") as bar:
        counts = write_page(source, plan, Path(recipe.out), recipe.limits(), title=title, on_rows=bar.update)
    record = stage.finish(counts)
    print(
        f"view: {counts['shown']:,} of {counts['triplets']:,} triplets, {counts['rejects']:,} rejects → "
        f"{recipe.out}/index.html ({counts['bytes'] / 1e6:.1f} MB, "
        f"{counts['bytes'] / 1e3 / max(1, counts['shown']):.1f} kB a row)"
    )
    if counts["unreadable_pictures"]:
        print(f"  {counts['unreadable_pictures']:,} images could not be read")
    return record


def main() -> int:
    """Run the command line; return its exit status."""
    return cli_main(ViewRecipe, run, name="view", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
