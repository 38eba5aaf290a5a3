"""Find the report of a study with people among result folders, and read its figures. Knows no table."""

from collections.abc import Callable, Sequence
from typing import Final

from wm.errors import InputError
from wm.evaluation.paper.folders import Source
from wm.evaluation.votes.figures import StudyFigures, read_study_figures
from wm.evaluation.votes.tables import VOTE_SCHEMA, VOTES_FILE
from wm.tables import read_table

STUDY_STAGE: Final = "study"
"""Stage of ``wm study report``."""
MAKING_STAGE: Final = "study-make"
"""Stage of ``wm study make``, whose folder holds no figures."""


def find_study(
    sources: Sequence[Source], check_ids: Callable[[Source, Sequence[str]], None] | None
) -> StudyFigures | None:
    """Read the figures of the one study.

    Args:
        sources: Folders of the stage.
        check_ids: Raises where triplets are of another bench; None: no bench is known.

    Returns:
        The figures; None without a study.

    Raises:
        InputError: There are two, or one is damaged or of another bench.
    """
    # Most results hold none.
    if not sources:
        return None
    # Of two studies nobody knows which one a table should show.
    if len(sources) > 1:
        raise InputError(f"{sources[0].folder} and {sources[1].folder} are both reports of a study: give one of them")
    if check_ids is not None:
        ids = read_table(sources[0].folder / VOTES_FILE, VOTE_SCHEMA, ["triplet_id"])["triplet_id"]
        check_ids(sources[0], ids.unique().to_pylist())
    return read_study_figures(sources[0].folder)
