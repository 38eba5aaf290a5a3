"""Print what ``push`` uploads, what stays, and what is wrong. Knows nothing of how it is found."""

from collections import defaultdict

from jobs.push.checks import Findings
from jobs.push.recipe import PushRecipe
from jobs.push.selection import Selection
from wm.files.mirror import shown

MANY_FILES = 40
"""Names that are printed; of many shards the number and size are enough."""


def print_selection(recipe: PushRecipe, selection: Selection, findings: Findings) -> None:
    """Print files, what is left out and why, and the problems.

    Args:
        recipe: Folder and repository.
        selection: The files.
        findings: Of the checks.
    """
    # In one line what would be public, or would not.
    size = format_bytes(selection.num_bytes)
    visibility = "private" if recipe.private else "public"
    print(f"push: {selection.kind} {shown(selection.folder)} to {recipe.repo} ({visibility}): ", end="")
    print(f"{len(selection.files):,} files, {size}")
    for name in list(selection.files)[:MANY_FILES]:
        note = "  (without paths of this machine)" if name in findings.rewritten else ""
        print(f"  {format_bytes(selection.files[name]):>10}  {name}{note}")
    if len(selection.files) > MANY_FILES:
        print(f"  … and {len(selection.files) - MANY_FILES:,} more")
    # By reason: of a run's checkpoints there may be hundreds of files.
    names: dict[str, list[str]] = defaultdict(list)
    for name, reason in selection.left_out.items():
        names[reason].append(name)
    for reason, of_reason in names.items():
        more = f" and {len(of_reason) - 3:,} more" if len(of_reason) > 3 else ""
        print(f"  left out ({reason}): {', '.join(of_reason[:3])}{more}")
    print(f"  licences: {', '.join(findings.licenses) or 'none given'}")
    for problem in findings.problems:
        print(f"  warning: {problem}")


def format_bytes(count: int) -> str:
    """Format a size: ``1.2 MB``."""
    size, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
