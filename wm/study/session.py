"""Lead participants through a study: who joins, which item comes next, and which choices are taken.

Not known here: HTTP, pages, how a store keeps votes.
"""

import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final, TypedDict

from wm.evaluation.votes.records import Vote
from wm.study.codes import normalise_code
from wm.study.database import RefusedError
from wm.study.order import order_items, order_systems
from wm.study.store import Participant, VoteStore
from wm.study.study import IMAGES, Study, StudyItem

MAX_SECONDS: Final = 7 * 24 * 3600.0
"""Longest time for one choice: a page that was left open over a holiday is still taken."""
_NAME_LETTERS: Final = 32
"""Hexadecimal letters of an opaque name: 128 bits, which nobody finds by trying."""


class Question(TypedDict):
    """An item as one participant sees it: nothing in it says which system is where."""

    item_id: str
    action: str
    source: str
    candidates: list[str]


class Progress(TypedDict):
    """Where a participant is: how many items are answered and there are; the next one, and the one after it."""

    code: str
    done: int
    total: int
    question: Question | None
    upcoming: Question | None


class StudySession:
    """A study whose participants come, answer, leave and come back; safe for several threads."""

    def __init__(self, study: Study, folder: Path, store: VoteStore, *, open_seats: int = 0) -> None:
        """Open the study for participants.

        Args:
            study: The study.
            folder: Its folder, with the images.
            store: Where votes are kept.
            open_seats: Participants beyond those that are planned.
        """
        self.study, self.store = study, store
        self._images = folder / IMAGES
        self._seats = study.num_participants + open_seats
        # Tag in the addresses of a participant's images → the participant.
        self._by_tag: dict[str, Participant] = {}
        self._files_of = lru_cache(maxsize=512)(self._name_files)

    def join(self, study_id: str) -> Participant:
        """Make a participant who has just consented.

        Args:
            study_id: As the page has it.

        Raises:
            RefusedError: All seats are taken, the page is of another study, or nothing can be stored.
        """
        self._check_study(study_id)
        return self.store.add_participant(self.study.study_id, limit=self._seats)

    def find(self, code: str) -> Participant:
        """Find a participant by the code as it was typed.

        Raises:
            RefusedError: There is none.
        """
        return self.store.find_participant(self.study.study_id, normalise_code(code))

    def progress(self, participant: Participant) -> Progress:
        """Return where a participant is.

        Args:
            participant: Of this study.
        """
        answered = {vote.item_id for vote in self.store.list_votes(self.study.study_id, participant.code)}
        items = order_items(self.study, participant.number)
        # The one after is loaded while this one is looked at.
        following = [self._question(participant, item) for item in items if item.item_id not in answered][:2]
        first, second = [*following, None, None][:2]
        # Not the number of votes: an item may have been taken out of the study by hand.
        num_answered = sum(item.item_id in answered for item in items)
        return Progress(code=participant.code, done=num_answered, total=len(items), question=first, upcoming=second)

    def vote(
        self, participant: Participant, *, study_id: str, item_id: str, best: int, worst: int, seconds: float
    ) -> Progress:
        """Store a choice; once this returns it is on the disk.

        Args:
            participant: Whose it is.
            study_id: As the page has it.
            item_id: As the page has it.
            best: Position of the best image, from 0.
            worst: Position of the worst image, from 0.
            seconds: Time from showing the item to the choice, s.

        Returns:
            Where the participant is now. The same choice sent again changes nothing.

        Raises:
            RefusedError: The choice is none, is not of the item that the participant is at, differs from a choice that
                is stored, or cannot be stored.
        """
        self._check_study(study_id)
        items = {item.item_id: item for item in order_items(self.study, participant.number)}
        answered = {vote.item_id for vote in self.store.list_votes(self.study.study_id, participant.code)}
        current = next((name for name in items if name not in answered), None)
        # An answered one is left to the store, which knows whether it is the same choice.
        if item_id not in items or item_id not in {*answered, current}:
            raise RefusedError("This page was out of date, and your choice on it was not saved.", "stale")
        # The page knows positions alone; which system was where is worked out again, and stored.
        systems = tuple(order_systems(self.study, items[item_id], participant.number))
        if not (0 <= best < len(systems) and 0 <= worst < len(systems)):
            raise RefusedError("Please choose a best and a worst model among those shown.")
        item = items[item_id]
        # A clock that jumped must not cost the vote: its time is brought within bounds.
        choice = Vote(
            study_id=self.study.study_id,
            participant=participant.code,
            item_id=item_id,
            triplet_id=item.triplet_id,
            subset=item.subset,
            systems=systems,
            best=systems[best],
            worst=systems[worst],
            seconds=round(min(max(seconds, 0.0), MAX_SECONDS), 3),
            stored_at="",
            is_check=item.is_check,
            passed_check=item.is_passed(systems[best], systems[worst]) if item.is_check else None,
        )
        self.store.add_vote(choice)
        return self.progress(participant)

    def withdraw(self, participant: Participant, *, study_id: str) -> None:
        """Leave a participant and all of their choices out from now on.

        Args:
            participant: Who asks for it.
            study_id: As the page has it.

        Raises:
            RefusedError: The page is of another study, or nothing can be stored.
        """
        self._check_study(study_id)
        self.store.withdraw(self.study.study_id, participant.code)

    def find_image(self, tag: str, name: str) -> Path | None:
        """Return the file of an image address that :meth:`progress` gave out; None if it gave out no such address.

        Args:
            tag: First part of the address, of the participant.
            name: Second part, of the image for this participant.
        """
        if tag not in self._by_tag:
            # After a restart, or another server of this store gave it out.
            people = self.store.list_participants(self.study.study_id)
            self._by_tag = {self._opaque("tag", person.code): person for person in people}
        # Names of another participant are not found under this tag.
        participant = self._by_tag.get(tag)
        file = self._files_of(participant).get(name) if participant else None
        return self._images / file if file else None

    def _check_study(self, study_id: str) -> None:
        if study_id != self.study.study_id:
            raise RefusedError("This page is of another study: please load it again.", "other_study")

    def _question(self, participant: Participant, item: StudyItem) -> Question:
        names = self._image_names(participant, item)
        tag = self._opaque("tag", participant.code)
        # Relative, so that a proxy may serve the study below a path of its own.
        source, *candidates = [f"images/{tag}/{name}" for name in names]
        return Question(item_id=item.item_id, action=item.action, source=source, candidates=candidates)

    def _name_files(self, participant: Participant) -> Mapping[str, str]:
        """Map the opaque names of a participant's images to their files."""
        files: dict[str, str] = {}
        for item in self.study.items:
            systems = order_systems(self.study, item, participant.number)
            names = self._image_names(participant, item)
            files |= dict(zip(names, [item.source, *(item.candidates[name] for name in systems)], strict=True))
        return files

    def _image_names(self, participant: Participant, item: StudyItem) -> list[str]:
        """Name the source and each position. Two participants who compare addresses learn nothing from them."""
        positions = range(1 + len(item.candidates))
        return [self._opaque("image", participant.code, item.item_id, str(position)) for position in positions]

    def _opaque(self, *parts: str) -> str:
        # The study's name keeps apart studies that share a store.
        text = "\0".join((self.study.study_id, *parts))
        return hmac.new(self.store.secret, text.encode(), hashlib.sha256).hexdigest()[:_NAME_LETTERS]
