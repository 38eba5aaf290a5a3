"""Upload a model or a data set to the Hugging Face hub: ``wm push folder=runs/fdm repo=owner/name``.

``--dry-run`` lists what would go, what stays and why, and what is wrong with the card; nothing is sent. Files that the
hub has already are not sent again: a stopped upload resumes.
"""

from typing import Any

from jobs.push import report
from jobs.push.checks import check_selection
from jobs.push.recipe import PushRecipe
from jobs.push.selection import select_files
from jobs.push.upload import upload
from wm import cli
from wm.files.mirror import fetch


def run(recipe: PushRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Check the folder and upload it.

    Args:
        recipe: Folder and repository.
        dry_run: List what would be uploaded; needs neither token nor network.

    Returns:
        ``files`` (name → bytes), ``left_out`` (name → reason), ``problems``, and ``commit`` if something was sent.

    Raises:
        InputError: The folder is not complete, holds a secret, a licence forbids sharing it, or the hub refuses.
    """
    # 1. Everything that can be wrong here, before anything is sent.
    selection = select_files(str(fetch(recipe.folder)))
    findings = check_selection(selection, recipe.allow_license)
    result: dict[str, Any] = {
        "kind": selection.kind,
        "files": selection.files,
        "left_out": selection.left_out,
        "problems": findings.problems,
        "rewritten": sorted(findings.rewritten),
    }
    report.print_selection(recipe, selection, findings)
    if dry_run:
        return result
    # 2. Send.
    commit = upload(selection, findings.rewritten, recipe.repo, private=recipe.private, message=recipe.message)
    print(f"push: {len(selection.files):,} files in {commit}")
    return {**result, "commit": commit}


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(PushRecipe, run, name="push", description=__doc__ or "")
