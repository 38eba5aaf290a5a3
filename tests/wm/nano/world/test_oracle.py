"""The tabletop's judge: it reads pictures back exactly, and its marks follow their definition."""

import numpy as np
import pytest

from wm.errors import InputError
from wm.nano.world.actions import Action, random_action
from wm.nano.world.oracle import UNREADABLE, action_is_right, judge, judge_states, read_states
from wm.nano.world.scenes import NUM_CELLS, Camera, State, random_crumbs, random_state, render
from wm.nano.world.triplets import sample_triplet


def pairs(count: int, seed: int) -> list[tuple[State, Action, State]]:
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        state = random_state(rng)
        action = random_action(state, rng)
        target = action.apply(state)
        assert target is not None
        result.append((state, action, target))
    return result


def hard_camera(rng: np.random.Generator) -> Camera:
    """Worse than any camera of the data: shifts up to 2 px, crumbs, three times the noise."""
    shift = rng.uniform(-2, 2, 2)
    return Camera((float(shift[0]), float(shift[1])), noise=6.0, crumbs=random_crumbs(rng))


def test_states_are_read_exactly_under_noise_shifts_and_crumbs() -> None:
    rng = np.random.default_rng(0)
    states = [random_state(rng) for _ in range(300)]
    states += [State(background, (0,) * NUM_CELLS) for background in range(3)]
    pictures = np.stack([render(state, hard_camera(rng), rng) for state in states])
    assert read_states(pictures) == states


def test_every_object_is_read_in_every_cell_of_every_table() -> None:
    rng = np.random.default_rng(1)
    states = [
        State(background, tuple(thing if cell == position else 0 for cell in range(NUM_CELLS)))
        for background in range(3)
        for thing in range(1, 13)
        for position in range(NUM_CELLS)
    ]
    assert read_states(np.stack([render(state, Camera((1.0, -1.0)), rng) for state in states])) == states


def test_a_cell_like_nothing_known_is_unreadable() -> None:
    rng = np.random.default_rng(2)
    state = random_state(rng)
    picture = render(state, Camera(), rng)
    picture[16:32, 16:32] = rng.integers(0, 256, (16, 16, 3))
    (result,) = read_states(picture[None])
    assert result.cells[4] == UNREADABLE
    assert result == State(state.background, (*state.cells[:4], UNREADABLE, *state.cells[5:]))


def test_arrays_that_are_no_images_of_the_world_are_refused() -> None:
    assert read_states(np.zeros((0, 48, 48, 3), np.uint8)) == []
    for shape in ((1, 48, 64, 3), (48, 48, 3), (1, 48, 48)):
        with pytest.raises(InputError, match=r"tabletop images have shape"):
            read_states(np.zeros(shape, np.uint8))


def test_marks_of_target_copy_noise_swap_and_another_scene() -> None:
    rng = np.random.default_rng(3)
    others = []
    examples = pairs(60, seed=4)
    for number, (source, _, target) in enumerate(examples):
        images = [render(state, hard_camera(rng), rng) for state in (source, target)]
        true = judge(*images, render(target, hard_camera(rng), rng))
        assert (true.editing_success, true.minimal_editing, true.final) == (10.0, 10.0, 10.0)
        assert true.right and not true.copied
        copy = judge(*images, render(source, hard_camera(rng), rng))
        assert (copy.editing_success, copy.minimal_editing, copy.final) == (0.0, 10.0, 0.0)
        assert copy.copied and not copy.right
        swapped = judge(images[1], images[0], images[1])
        assert (swapped.editing_success, swapped.minimal_editing, swapped.copied) == (0.0, 10.0, True)
        noise = judge(*images, rng.integers(0, 256, (48, 48, 3)).astype(np.uint8))
        assert (noise.editing_success, noise.minimal_editing, noise.final) == (0.0, 0.0, 0.0)
        other = judge_states(source, target, examples[(number + 1) % len(examples)][2])
        assert not other.copied
        others.append(other.final)
    assert np.mean(others) < 3


def test_marks_by_counting_cells() -> None:
    rng = np.random.default_rng(5)
    for source, _, target in pairs(200, seed=6):
        cells = [int(thing) for thing in np.where(rng.random(9) < 0.6, target.cells, source.cells)]
        cells = [UNREADABLE if rng.random() < 0.1 else thing for thing in cells]
        background = target.background if rng.random() < 0.8 else (target.background + 1) % 3
        predicted = State(background, tuple(cells))
        wins = {True: [0, 0], False: [0, 0]}
        for a, b, c in zip(source.cells, target.cells, cells, strict=True):
            wins[a != b][0] += int(b == c and background == target.background)
            wins[a != b][1] += 1
        score = judge_states(source, target, predicted)
        assert score.editing_success == pytest.approx(10 * wins[True][0] / wins[True][1])
        assert score.minimal_editing == pytest.approx(10 * wins[False][0] / wins[False][1])
        assert score.final == min(score.editing_success, score.minimal_editing)
        assert score.right == (predicted == target) and score.copied == (predicted == source)


def test_a_still_pair_has_nothing_to_edit() -> None:
    state = pairs(1, seed=7)[0][0]
    same = judge_states(state, state, state)
    assert (same.editing_success, same.minimal_editing, same.right, same.copied) == (10.0, 10.0, True, True)


def test_actions_are_right_by_what_they_lead_to() -> None:
    rng = np.random.default_rng(8)
    for source, action, target in pairs(60, seed=9):
        images = [render(state, hard_camera(rng), rng) for state in (source, target)]
        assert all(action_is_right(*images, action.text(paraphrase)) for paraphrase in (0, 1))
        assert not action_is_right(images[1], images[0], action.text())
        assert not action_is_right(*images, "") and not action_is_right(*images, "nothing happens")
        other = random_action(source, rng)
        assert action_is_right(*images, other.text()) == (other.apply(source) == target)


def test_supervised_triplets_are_what_their_words_say() -> None:
    rng = np.random.default_rng(10)
    for _ in range(60):
        source, words, target = sample_triplet(rng)
        assert action_is_right(source, target, words)
        assert read_states(source[None]) != read_states(target[None])
