"""Contradict what happened on the table: the exact opposite of an action, from the states before and after it."""

from wm.nano.world.actions import PARAPHRASES, action_between
from wm.nano.world.scenes import State


def contradict(source: State, target: State, action: str) -> str | None:
    """Say the action that undoes what happened, as if it had happened.

    Adding becomes removing, a move leads to where the object was, a recolouring gives the old colour. In the source
    that action cannot be done: the object to remove is not there, or is already as the action would make it.

    Args:
        source: The table before.
        target: The table after.
        action: What happened, in words; the opposite is said in the same of the two wordings, so that no word of it
            is rarer than those of the truth.

    Returns:
        The opposite in words; None where no single action leads from one state to the other.
    """
    happened, opposite = action_between(source, target), action_between(target, source)
    # Unreadable images, or nothing that happened: there is nothing to undo.
    if happened is None or opposite is None:
        return None
    wordings = [number for number in range(PARAPHRASES) if happened.text(number) == action]
    return opposite.text(wordings[0] if wordings else 0)
