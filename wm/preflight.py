"""Keep the checks that every command runs once its recipe is read, before any work.

A package adds its own when it is imported, such as those that need Ray. Not known here: what they check.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wm.config import Recipe

_checks: "list[Callable[[Recipe], None]]" = []


def add_check(check: "Callable[[Recipe], None]") -> None:
    """Add a check, which raises :class:`wm.errors.InputError` for a recipe that must not run here.

    Args:
        check: Called with the recipe of the command; a dry run calls it too.
    """
    if check not in _checks:
        _checks.append(check)


def run_checks(recipe: "Recipe") -> None:
    """Call every check that was added, then prepare what the recipe names in buckets.

    Args:
        recipe: Of the command that starts.

    Raises:
        InputError: A check refuses the recipe, or a bucket that it names cannot be used.
    """
    from wm.buckets import prepare_buckets

    for check in _checks:
        check(recipe)
    # Downloads come last: what is refused costs none.
    prepare_buckets(recipe)
