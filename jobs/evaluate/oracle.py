"""Build the judge of the tabletop world for a held-out set, and the opposites of its actions. Knows no model."""

from typing import NamedTuple

from wm.errors import InputError
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.images import ActionCheck, Codes, JudgeMany
from wm.images import Pixels
from wm.judging import JudgeScore
from wm.nano.world.actions import parse_action
from wm.nano.world.contradictions import contradict
from wm.nano.world.oracle import UNREADABLE, action_is_right, judge_states, read_states

_BATCH_SIZE = 256
"""Images read at a time: the comparison with all templates takes 75 x 13 floats a cell."""


class Oracle(NamedTuple):
    """What the states behind a held-out set say."""

    judge_many: JudgeMany
    action_is_right: ActionCheck | None  # None where no reference action is in the tabletop's words
    counterfactuals: list[str | None]  # the exact opposite of what happened; None where the states do not say it


def build_oracle(held_out: HeldOut) -> Oracle:
    """Read the true pairs back into states once, and build what is known from them.

    Args:
        held_out: The triplets.

    Returns:
        The judge, its check of actions, and the opposite of each action.

    Raises:
        InputError: Most images show something else than the tabletop.
    """
    sources, targets = read_states(held_out.source_pixels), read_states(held_out.target_pixels)
    # Cells that show nothing known are equal to each other: the oracle would call noise right.
    unreadable = sum(
        UNREADABLE in (*source.cells, *target.cells) for source, target in zip(sources, targets, strict=True)
    )
    if 2 * unreadable > len(held_out):
        raise InputError(
            f"judge = 'oracle' reads images of the tabletop world; {unreadable} of {len(held_out)} held-out triplets "
            "show something else. Use judge = 'none'"
        )

    def judge_many(items_M: Codes, predicted_MHWC: Pixels) -> list[JudgeScore]:
        scores = []
        for begin in range(0, len(items_M), _BATCH_SIZE):
            batch = slice(begin, begin + _BATCH_SIZE)
            # Several predictions may belong to one item.
            for item, state in zip(items_M[batch].tolist(), read_states(predicted_MHWC[batch]), strict=True):
                scores.append(judge_states(sources[item], targets[item], state))
        return scores

    # Where no reference is in the tabletop's words, no answer would be right.
    reads_actions = any(parse_action(action) is not None for action in held_out.actions)
    counterfactuals = [contradict(*row) for row in zip(sources, targets, held_out.actions, strict=True)]
    return Oracle(judge_many, action_is_right if reads_actions else None, counterfactuals)
