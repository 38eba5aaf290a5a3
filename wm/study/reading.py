"""Read the votes of a study from its store, as the commands name it."""

from dataclasses import dataclass
from pathlib import Path

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.files.mirror import shown
from wm.study.store import Participant, VoteStore
from wm.study.study import STORE_FILE, Study


@dataclass(frozen=True)
class StoredVotes:
    """What a store holds of a study.

    Attributes:
        votes: In the order of storing.
        participants: In the order of joining; those who have withdrawn are not among them, nor are their votes.
        num_withdrawn: How many have.
    """

    votes: list[Vote]
    participants: list[Participant]
    num_withdrawn: int


def find_store(folder: str | Path, store: str) -> Path:
    """Return the path of a study's store.

    Args:
        folder: Folder of the study.
        store: The file as it was given; empty: the one beside the study.
    """
    # Beside the study, unless the study is where nobody can write.
    return Path(store) if store else Path(folder) / STORE_FILE


def read_study_votes(study: Study, folder: str | Path, store: str) -> StoredVotes:
    """Read all votes of a study, and who joined it.

    Args:
        study: The study.
        folder: Its folder.
        store: File of the votes; empty: the one beside the study.

    Returns:
        What the store holds of the study.

    Raises:
        InputError: There is no store, or it cannot be read.
    """
    # A new store would be empty, and its report one of nobody.
    path = find_store(folder, store)
    if not path.is_file():
        raise InputError(
            f"no store of votes at {shown(path)!r:.300}; wm study serve or wm study import makes it, or give store=FILE"
        )
    # Read only: people may be voting right now.
    with VoteStore(path, read_only=True) as votes:
        return StoredVotes(
            votes.list_votes(study.study_id),
            votes.list_participants(study.study_id),
            votes.count_withdrawn(study.study_id),
        )
