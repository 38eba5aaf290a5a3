"""Keep judgements: one JSON line a reply, see :mod:`wm.evaluation.reply_store`.

Not known here: who asks, and what the figures are.
"""

from pathlib import Path

from wm.evaluation.reply_store import ReplyLine, ReplyStore

LINES = "judgements"
"""Folder of the lines below that of the store."""


class JudgementLine(ReplyLine):
    """One reply. Without a judgement its scores are null and ``failure`` says why."""

    editing_success: float | None
    minimal_editing: float | None
    reasoning: str


class JudgementStore(ReplyStore[JudgementLine]):
    """The judgements of a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Read all judgements that are there.

        Args:
            folder: Folder of the store; need not exist.

        Raises:
            InputError: A line other than the last one of a file is damaged.
        """
        super().__init__(folder, LINES, noun="judgement", fields=("editing_success",))

    @property
    def judged(self) -> dict[str, JudgementLine]:
        """Lines with a judgement by key."""
        return self.answered
