"""The tabletop's states, pictures, actions and words."""

import numpy as np
import pytest

from wm.nano.world.actions import (
    KINDS,
    SHARES,
    Action,
    actions_of,
    caption,
    parse_action,
    random_action,
    vocabulary,
)
from wm.nano.world.documents import sample_document
from wm.nano.world.oracle import read_states
from wm.nano.world.scenes import (
    BACKGROUNDS,
    CELL_PX,
    COLOURS,
    MARGIN_PX,
    NUM_CELLS,
    NUM_OBJECTS,
    POSITIONS,
    SHAPES,
    SIDE_PX,
    Camera,
    State,
    object_id,
    object_name,
    random_camera,
    random_crumbs,
    random_state,
    render,
)

EVERYTHING = range(1, NUM_OBJECTS + 1)


def states(count: int, seed: int = 0) -> list[State]:
    rng = np.random.default_rng(seed)
    return [random_state(rng) for _ in range(count)]


def after(state: State, action: Action) -> State | None:
    """What an action does, from its definition: where every object stands."""
    where = {thing: cell for cell, thing in enumerate(state.cells) if thing}
    used = set(where.values())
    if action.kind == "add":
        if action.thing in where or action.cell in used:
            return None
        where[action.thing] = action.cell
    elif action.thing not in where:
        return None
    elif action.kind == "move":
        if action.cell in used:
            return None
        where[action.thing] = action.cell
    elif action.kind == "remove":
        del where[action.thing]
    else:
        if action.becomes in where:
            return None
        where[action.becomes] = where.pop(action.thing)
    cells = [0] * NUM_CELLS
    for thing, cell in where.items():
        cells[cell] = thing
    return State(state.background, tuple(cells))


def every_action() -> list[Action]:
    """All actions that have words: recolouring keeps the shape and changes the colour."""
    moves = [Action(kind, thing, cell=cell) for kind in ("move", "add") for thing in EVERYTHING for cell in range(9)]
    removals = [Action("remove", thing) for thing in EVERYTHING]
    paints = [
        Action("recolour", thing, becomes=other)
        for thing in EVERYTHING
        for other in EVERYTHING
        if other != thing and object_name(other)[1] == object_name(thing)[1]
    ]
    return [*moves, *removals, *paints]


def test_object_ids_name_every_colour_and_shape_once() -> None:
    names = [object_name(thing) for thing in EVERYTHING]
    assert len(set(names)) == NUM_OBJECTS == len(COLOURS) * len(SHAPES)
    assert [object_id(*name) for name in names] == list(EVERYTHING)


def test_random_states_hold_two_to_four_different_objects() -> None:
    observed = states(400)
    counts = {len(state.things()) for state in observed}
    assert counts == {2, 3, 4}
    assert all(len(set(state.things())) == len(state.things()) for state in observed)
    assert {state.background for state in observed} == set(range(len(BACKGROUNDS)))
    assert {thing for state in observed for thing in state.things()} == set(EVERYTHING)
    assert {cell for state in observed for cell in state.free()} == set(range(NUM_CELLS))
    assert all(state.cell_of(thing) == state.cells.index(thing) for state in observed[:20] for thing in state.things())


def test_apply_against_the_definition() -> None:
    actions = every_action()
    crowded = State(1, (1, 4, 7, 10, 2, 5, 8, 0, 0))
    for state in [*states(60, seed=1), State(0, (0,) * 9), crowded]:
        for action in actions:
            assert action.apply(state) == after(state, action), (action, state)


def test_actions_without_their_particulars_cannot_happen() -> None:
    state = State(0, (1, 0, 0, 0, 0, 0, 0, 0, 0))
    for action in (Action("move", 1), Action("add", 2), Action("recolour", 1)):
        assert action.apply(state) is None


def test_actions_of_lists_exactly_what_can_happen() -> None:
    for state in states(60, seed=2):
        possible = {action for action in every_action() if after(state, action) is not None}
        listed = [action for kind in KINDS for action in actions_of(state, kind)]
        assert len(listed) == len(set(listed)) and set(listed) == possible
        assert all(action.kind == kind for kind in KINDS for action in actions_of(state, kind))


def test_every_action_reads_back_from_its_own_words() -> None:
    for action in every_action():
        texts = [action.text(paraphrase) for paraphrase in (0, 1)]
        assert texts[0] != texts[1]
        assert [parse_action(text) for text in texts] == [action, action]
    assert Action("move", 1, cell=2).text() == "move the red circle to the top-right"
    assert Action("recolour", 1, becomes=7).text(1) == "paint the red circle blue"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("Move the RED circle, to the top-right.", Action("move", 1, cell=2)),
        ("put red circle top-right please", Action("move", 1, cell=2)),
        ("take the blue triangle away", Action("remove", 9)),
        ("paint the green square the colour yellow", Action("recolour", 5, becomes=11)),
        ("move the red circle", None),
        ("the red circle to the top", None),
        ("move the circle to the top", None),
        ("move the red to the top", None),
        ("make the red circle", None),
        ("", None),
    ],
)
def test_parsing_is_lenient_with_words_strict_with_gaps(text: str, action: Action | None) -> None:
    assert parse_action(text) == action


def test_random_actions_have_their_shares_and_1_to_5_objects() -> None:
    rng = np.random.default_rng(3)
    kinds = []
    for state in states(2000, seed=4):
        action = random_action(state, rng)
        kinds.append(action.kind)
        assert after(state, action) is not None
    for kind, share in SHARES.items():
        assert abs(kinds.count(kind) / len(kinds) - share) < 0.04
    state = states(1)[0]
    for _ in range(500):
        following = random_action(state, rng).apply(state)
        assert following is not None and following != state and 1 <= len(following.things()) <= 5
        state = following
    full = State(0, (1, 2, 3, 4, 5, 0, 0, 0, 0))
    lone = State(0, (1, 0, 0, 0, 0, 0, 0, 0, 0))
    assert random_action(full, rng, "add").kind == "move" and random_action(lone, rng, "remove").kind == "move"


def test_nothing_to_paint_becomes_a_move() -> None:
    state = State(0, (1, 4, 7, 10, 0, 0, 0, 0, 0))  # the circle in all four colours
    assert actions_of(state, "recolour") == []
    assert random_action(state, np.random.default_rng(0), "recolour").kind == "move"


def told(words: str) -> dict[str, tuple[str, ...]]:
    """A caption as {position: what stands there}."""
    result, parts = {}, []
    for word in words.split():
        if word in POSITIONS:
            result[word] = tuple(parts)
            parts = []
        else:
            parts.append(word)
    assert not parts or words == "empty"
    return result


def true_of(state: State) -> dict[str, tuple[str, ...]]:
    return {POSITIONS[cell]: object_name(thing) if thing else ("empty",) for cell, thing in enumerate(state.cells)}


def test_captions_name_objects_and_their_cells() -> None:
    rng = np.random.default_rng(5)
    for state in states(50, seed=6):
        objects = {position: thing for position, thing in true_of(state).items() if thing != ("empty",)}
        assert told(caption(state, rng, max_cells=9)) == objects
        assert len(told(caption(state, rng, max_cells=2))) == 2
        assert told(caption(state, rng, range(9), max_cells=9)) == true_of(state)
        assert told(caption(state, rng, [4])) == {"center": true_of(state)["center"]}
    assert caption(State(0, (0,) * 9), rng) == "empty"


def test_the_vocabulary_covers_every_text() -> None:
    rng = np.random.default_rng(7)
    texts = [action.text(paraphrase) for action in every_action() for paraphrase in (0, 1)]
    texts += [caption(state, rng) for state in states(50, seed=8)] + [caption(State(0, (0,) * 9), rng)]
    spoken = {word for text in texts for word in text.split()}
    words = vocabulary()
    assert spoken <= set(words) and words == sorted(set(words))


def test_cameras_stay_within_their_limits() -> None:
    rng = np.random.default_rng(9)
    cameras = [random_camera(rng) for _ in range(2000)]
    shifts = np.array([camera.shift_px for camera in cameras])
    assert np.abs(shifts).max() <= 1.0
    assert abs((shifts != 0).any(1).mean() - 0.3) < 0.04
    assert abs(np.mean([bool(camera.crumbs) for camera in cameras]) - 0.2) < 0.04
    assert all(camera.noise == 2.0 for camera in cameras)
    for camera in cameras:
        assert len(camera.crumbs) <= 4
        for x_px, y_px, darkness in camera.crumbs:
            assert 0 <= x_px <= SIDE_PX + 2 * MARGIN_PX - 2 and 0 <= y_px < SIDE_PX and 20 <= darkness < 50
    assert not random_camera(rng, 0.0, 0.0).crumbs and random_camera(rng, 0.0, 0.0).shift_px == (0.0, 0.0)
    assert 1 <= len(random_crumbs(rng)) <= 4


def test_an_image_shows_colours_where_objects_are() -> None:
    rng = np.random.default_rng(10)
    plain = Camera(noise=0.0)
    for state in states(20, seed=11):
        pixels = render(state, plain, rng)
        empty = render(State(state.background, (0,) * 9), plain, rng)
        assert pixels.shape == (SIDE_PX, SIDE_PX, 3) and pixels.dtype == np.uint8
        for cell, thing in enumerate(state.cells):
            row, column = divmod(cell, 3)
            box = np.s_[row * CELL_PX : (row + 1) * CELL_PX, column * CELL_PX : (column + 1) * CELL_PX]
            if thing:
                centre = pixels[row * CELL_PX + 8, column * CELL_PX + 8]
                assert tuple(int(value) for value in centre) == COLOURS[object_name(thing)[0]]
            else:
                np.testing.assert_array_equal(pixels[box], empty[box])


def test_shift_and_noise_do_what_they_say() -> None:
    state, rng = states(1, seed=12)[0], np.random.default_rng(13)
    home = render(state, Camera(noise=0.0), rng).astype(float)
    moved = render(state, Camera((2.0, -1.0), noise=0.0), rng).astype(float)
    np.testing.assert_array_equal(moved[1:-2, 4:-1], home[2:-1, 2:-3])
    noisy = render(State(0, (0,) * 9), Camera(noise=5.0), rng).astype(float)
    assert abs(noisy.std(axis=(0, 1)).mean() - 5.0) < 0.5
    again = [render(state, Camera(), np.random.default_rng(1)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_documents_describe_the_second_image() -> None:
    rng = np.random.default_rng(14)
    documents = [sample_document(rng) for _ in range(200)]
    firsts, seconds = (read_states(np.stack([document[position] for document in documents])) for position in (1, 3))
    verbs = {"move", "put", "add", "place", "remove", "take", "make", "paint"}
    changed = 0
    for (_, _, words, _), first, second in zip(documents, firsts, seconds, strict=True):
        assert told(words).items() <= true_of(second).items() and 1 <= len(told(words)) <= 3
        assert not verbs & set(words.split())
        changed += first != second
    assert 0 < changed < len(documents)
    assert {document[0] for document in documents} == {"understand", "generate"}
