"""Keep blind comparisons of two models in the store of votes: what is shown, before it is, and then the choice.

They are the items of one study, ``playground``, made as people ask for them. Not known here: images, HTTP, how a
prediction is made.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.study.codes import normalise_code
from wm.study.store import PlaygroundItem, RefusedError, VoteStore
from wm.study.study import Study, StudyItem

STUDY_ID: Final = "playground"
"""Study of all votes of playgrounds."""
ORIGIN: Final = "playground"
MAX_AGE_S: Final = 24 * 3600.0
"""A choice that comes later counts no more: nobody has looked at two images for a day."""

Choice: TypeAlias = Literal["left", "right", "no_difference"]


@dataclass(frozen=True)
class Comparison:
    """Two predictions for one action, as they were shown.

    Attributes:
        participant: Code of who was shown them.
        systems: Names of the models, the left one first.
        folders: Folder of each model's weights: a name alone may mean another model after a restart.
        action: The instruction.
        source_sha256: Of the pixels of the source image; the image itself is not kept.
        seed: Of both predictions.
        num_candidates: Sampled of each, of which the verifier chose the one that was shown.
        shown_at_s: Unix time at which it was stored, s.
        item_id: Opaque name, which the store gives.
    """

    participant: str
    systems: tuple[str, str]
    folders: Mapping[str, str]
    action: str
    source_sha256: str
    seed: int
    num_candidates: int
    shown_at_s: float = 0.0
    item_id: str = ""

    def best_by(self, choice: Choice) -> str | None:
        """Return the model that a choice prefers; None: no difference."""
        return {"left": self.systems[0], "right": self.systems[1], "no_difference": None}[choice]

    def worst_by(self, choice: Choice) -> str | None:
        """Return the model that a choice does not prefer; None: no difference."""
        return {"left": self.systems[1], "right": self.systems[0], "no_difference": None}[choice]


class Comparisons:
    """The comparisons of a store.

    Args:
        store: Where they and their votes are kept.
        clock: Returns Unix time in s.
    """

    def __init__(self, store: VoteStore, *, clock: Callable[[], float] = time.time) -> None:
        self._store, self._clock = store, clock

    def check_folders(self, find_folder: Callable[[str], str | None]) -> None:
        """Refuse models that the store knows under the same name from another folder: their votes would be mixed.

        Args:
            find_folder: Given the name of a model, returns the folder of its weights; None: it is not served now.

        Raises:
            InputError: It names the model and both folders.
        """
        # All of them: the file may be older than the last restart.
        for item in self._store.list_playground_items(STUDY_ID):
            for name, folder in _to_comparison(item).folders.items():
                present = find_folder(name)
                if present is not None and present != folder:
                    raise InputError(
                        f"{str(self._store.path)!r} holds choices about {name} = {folder}, and {name} is {present} "
                        "here: give another file for other models"
                    )

    def join(self, code: str | None) -> str:
        """Return the code of who compares.

        Args:
            code: As an earlier comparison gave it; None: of somebody new.

        Raises:
            RefusedError: Nobody has this code, or the disk is full.
        """
        # People type codes with other separators, and in small letters.
        if code is None:
            return self._store.add_participant(STUDY_ID, origin=ORIGIN).code
        return self._store.find_participant(STUDY_ID, normalise_code(code)).code

    def add(self, comparison: Comparison) -> Comparison:
        """Store a comparison; once this returns its images may be shown: a choice finds it, whatever dies meanwhile.

        Args:
            comparison: Without name and time.

        Returns:
            The same with both.

        Raises:
            RefusedError: The disk is full.
        """
        # The store gives the name; the time is the clock's of this machine, as that of the choice will be.
        context = asdict(comparison) | {"shown_at_s": self._clock()}
        del context["item_id"]
        return _to_comparison(self._store.add_playground_item(STUDY_ID, context))

    def choose(self, item_id: str, choice: Choice) -> Comparison:
        """Store a choice as a vote; sent again, as after a lost reply, it is stored once.

        Args:
            item_id: Of the comparison.
            choice: Which image shows the action better.

        Returns:
            The comparison, with the models' names.

        Raises:
            RefusedError: There is none of this name (code ``unknown``); it was shown too long ago (``expired``); the
                person chose otherwise before (``answered``); the disk is full (``unavailable``). Nothing was stored.
        """
        comparison = _to_comparison(self._store.find_playground_item(STUDY_ID, item_id))
        best, worst = comparison.best_by(choice), comparison.worst_by(choice)
        # 1. The earlier choice, also where the comparison has expired since.
        votes = self._store.list_votes(STUDY_ID, comparison.participant)
        earlier = next((vote for vote in votes if vote.item_id == comparison.item_id), None)
        if earlier is not None and earlier.best != best:
            raise RefusedError(
                "You chose otherwise here before; the first choice counts and stays as it is.", "answered"
            )
        if earlier is not None:
            return comparison
        # 2. A new one. The clock of the machine may have been set back.
        seconds = max(0.0, self._clock() - comparison.shown_at_s)
        if seconds > MAX_AGE_S:
            raise RefusedError("These images were shown more than a day ago: please compare two new ones.", "expired")
        vote = Vote(
            STUDY_ID, comparison.participant, comparison.item_id, "", "", comparison.systems, best, worst,
            seconds=round(seconds, 3), stored_at="", origin=ORIGIN,
        )  # fmt: skip
        self._store.add_vote(vote)
        return comparison

    def count(self) -> int:
        """Return how many choices are stored."""
        return sum(self._store.count_votes(STUDY_ID).values())


def load_playground(path: str | Path) -> Study:
    """Build the study of all comparisons of a store that have a vote, for those who count and write out its votes.

    Args:
        path: The store.

    Returns:
        A study without folder and images. All its items are of one subset.

    Raises:
        InputError: There is no store, or no vote of a playground in it.
    """
    if not Path(path).is_file():
        raise InputError(f"store = {str(path)!r:.300}: no such file; wm serve comparisons=FILE makes one")
    with VoteStore(path, read_only=True) as store:
        votes = store.list_votes(STUDY_ID)
        comparisons = [_to_comparison(item) for item in store.list_playground_items(STUDY_ID)]
    if not votes:
        raise InputError(f"store = {str(path)!r:.300} holds no vote of a playground; give study=FOLDER for a study's")
    # Comparisons that nobody chose in say nothing, and are no items.
    actions = {comparison.item_id: comparison.action for comparison in comparisons}
    systems = {vote.item_id: vote.systems for vote in votes}
    items = tuple(
        StudyItem(item_id, "", STUDY_ID, actions.get(item_id, ""), "", dict.fromkeys(names, ""))
        for item_id, names in systems.items()
    )
    return Study(
        study_id=STUDY_ID,
        title="Playground: two models compared blind",
        consent="",
        instructions="",
        systems=tuple(sorted({name for names in systems.values() for name in names})),
        items=items,
        num_participants=0,
        seed=0,
        image_px=0,
    )


def _to_comparison(item: PlaygroundItem) -> Comparison:
    # JSON has no tuples.
    values = dict(item.context)
    try:
        systems: Any = values.pop("systems")
        first, second = map(str, systems)
        return Comparison(**values, systems=(first, second), item_id=item.item_id)  # type: ignore[arg-type]  # as stored
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"comparison {item.item_id} was stored by another version of wm: {error}") from error
