"""Read the votes of a study from its store, as the commands name it."""

from pathlib import Path

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.files.mirror import shown
from wm.study.store import Participant, VoteStore
from wm.study.study import STORE_FILE, Study


def find_store(folder: str | Path, store: str) -> Path:
    """Return the path of a study's store.

    Args:
        folder: Folder of the study.
        store: The file as it was given; empty: the one beside the study.
    """
    return Path(store) if store else Path(folder) / STORE_FILE


def read_study_votes(study: Study, folder: str | Path, store: str) -> tuple[list[Vote], list[Participant]]:
    """Read all votes of a study, and who joined it.

    Args:
        study: The study.
        folder: Its folder.
        store: File of the votes; empty: the one beside the study.

    Returns:
        The votes in the order of storing, participants in the order of joining.

    Raises:
        InputError: There is no store, or it cannot be read.
    """
    path = find_store(folder, store)
    if not path.is_file():
        raise InputError(
            f"no store of votes at {shown(path)!r:.300}; wm study serve or wm study import makes it, or give store=FILE"
        )
    with VoteStore(path, read_only=True) as votes:
        return votes.list_votes(study.study_id), votes.list_participants(study.study_id)
