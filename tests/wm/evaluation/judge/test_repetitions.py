"""What repeated judgements of an item differ in."""

from wm.evaluation.judge.repetitions import name_repetitions


def test_repetitions_are_named_by_what_differs() -> None:
    # Training seed, sampling seed, repeat.
    assert name_repetitions([(0, 5, 0), (1, 5, 0)]) == "training seeds"
    assert name_repetitions([(3, 0, 0), (3, 1, 0), (3, 2, 0)]) == "sampling seeds"
    assert name_repetitions([(0, 0, 0), (0, 0, 1)]) == "repeats"
    assert name_repetitions([(0, 0, 0), (1, 1, 0)]) == "combinations of training seeds and sampling seeds"
    assert name_repetitions([(0, 0, 0)]) == name_repetitions([]) == "sampling seeds"
