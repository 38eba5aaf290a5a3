"""Say in a few lines what ``look`` has found, and what comes next. Knows nothing of how it was found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.annotate.report import describe_devices
from jobs.look.recipe import LookRecipe
from jobs.look.verdicts import Expectation
from wm.files.mirror import shown


def describe_result(
    recipe: LookRecipe, counts: Mapping[str, Any], expectation: Expectation, commands: Sequence[str], out: Path
) -> str:
    """Describe a run: clips, pairs, what the filters find, the complete set, the next commands, the page.

    Args:
        recipe: As it was given.
        counts: Of the chosen rule, with ``listed`` and ``unfinished``.
        expectation: For all videos.
        commands: What comes next.
        out: Folder of the page.

    Returns:
        Lines.
    """
    # 1. What was looked at; a mean over no clip is none.
    pairs, decoded = counts["pairs"], counts["decoded"]
    mean = f"{pairs / decoded:.2f} a clip" if decoded else "no clip was read"
    lines = [
        f"look: {counts['videos']:,} of {counts['listed']:,} clips, {pairs:,} pairs ({mean}), {counts['kept']:,} kept "
        f"with these settings; not read: {counts['failed']:,}"
    ]
    if counts["unfinished"]:
        lines.append(f"  not finished within {recipe.budget_s:g} s: {counts['unfinished']:,} (budget_s=0: no limit)")
    if recipe.keyframes.motion == "farneback":
        lines.append(f"  {describe_devices(counts)}")
    # 2. What the filters find, whether they take it out or not.
    findings = [
        f"{reason} {number} of {counts['judged'][reason]} pairs"
        for reason, number in counts["findings"].items()
        if number
    ]
    lines.append(f"  filters find: {', '.join(findings) or 'nothing'}")
    # 3. All videos.
    if counts["videos"] < counts["listed"]:
        left = min(counts["listed"], recipe.max_clips) - counts["videos"]
        more = f"the same command looks at {left:,} more" if left > 0 else f"max_clips = {recipe.max_clips} reached"
        lines.append(f"  all {counts['listed']:,} clips: about {expectation.kept:,.0f} pairs kept; {more}")
    # 4. What to do now; the page comes last, where the eye is.
    lines += [f"  next: {command}" for command in commands[:1]]
    lines.append(f"  open {shown(out / 'index.html')}")
    return "\n".join(lines)
