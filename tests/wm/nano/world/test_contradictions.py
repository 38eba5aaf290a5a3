"""The opposite of an action of the tabletop is not what happened, in words that the world's parser reads."""

import numpy as np
import pytest

from wm.nano.world.actions import KINDS, PARAPHRASES, action_between, parse_action, random_action
from wm.nano.world.contradictions import contradict
from wm.nano.world.oracle import action_is_right, read_states
from wm.nano.world.scenes import Camera, State, object_id, random_state, render

RED, BLUE = object_id("red", "circle"), object_id("blue", "circle")


@pytest.mark.parametrize(
    ("action", "before", "after", "opposite"),
    [
        ("move the red circle to the right", {0: RED}, {5: RED}, "move the red circle to the top-left"),
        ("put the red circle on the right", {0: RED}, {5: RED}, "put the red circle on the top-left"),
        ("add a blue circle at the top", {0: RED}, {0: RED, 1: BLUE}, "remove the blue circle"),
        ("take away the blue circle", {0: RED, 1: BLUE}, {0: RED}, "place a blue circle in the top"),
        ("make the red circle blue", {4: RED}, {4: BLUE}, "make the blue circle red"),
        ("in other words", {4: RED}, {4: BLUE}, "make the blue circle red"),
        ("nothing", {4: RED}, {4: RED}, None),
        ("two things", {4: RED}, {5: RED, 6: BLUE}, None),
    ],
)
def test_opposites_by_hand(action: str, before: dict[int, int], after: dict[int, int], opposite: str | None) -> None:
    source, target = (State(0, tuple(cells.get(cell, 0) for cell in range(9))) for cells in (before, after))
    assert contradict(source, target, action) == opposite


def test_the_oracle_finds_no_opposite_right() -> None:
    """Every kind and wording, read back from images: the truth is right, its opposite is not."""
    rng = np.random.default_rng(0)
    seen = set()
    for number in range(24):
        state = random_state(rng)
        action = random_action(state, rng, KINDS[number % 4])
        after = action.apply(state)
        assert after is not None
        wording = number // 4 % PARAPHRASES
        images = [render(one, Camera(), rng) for one in (state, after)]
        source, target = read_states(np.stack(images))
        opposite = contradict(source, target, action.text(wording))
        assert opposite is not None
        assert action_is_right(images[0], images[1], action.text(wording))
        assert not action_is_right(images[0], images[1], opposite)
        # It is what leads back, said in the same wording.
        parsed = parse_action(opposite)
        assert parsed == action_between(target, source) and parsed.text(wording) == opposite
        seen.add((action.kind, wording))
    assert seen == {(kind, wording) for kind in KINDS for wording in range(PARAPHRASES)}
