"""The order of rows: epochs mean epochs, and nothing depends on workers or restarts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm.training.data.order import SampleOrder, rank_slice


def test_an_epoch_shows_every_row_once_in_its_own_order() -> None:
    order = SampleOrder([5, 7], [1.0, 1.0], seed=3)
    first, second = order.epoch(0), order.epoch(1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()


def test_mix_weights_repeat_and_thin_out_sources() -> None:
    order = SampleOrder([4, 10], [2.5, 0.5], seed=0)
    assert order.rows_per_epoch == 10 + 5
    observed = []
    for number in range(20):
        counts = np.bincount(order.epoch(number), minlength=14)
        assert counts[:4].sum() == 10 and set(counts[:4]) <= {2, 3}
        assert counts[4:].sum() == 5 and counts[4:].max() == 1
        observed.append(tuple(np.flatnonzero(counts[4:])))
    assert len(set(observed)) > 10, "each epoch draws another half"


def test_batches_follow_one_another_over_the_end_of_epochs() -> None:
    order = SampleOrder([10], [1.0], seed=1)
    stream = np.concatenate([order.epoch(number) for number in range(4)])
    for step in range(5):
        assert order.batch(step, 8).tolist() == stream[8 * step : 8 * step + 8].tolist()
    assert order.batch(0, 25).tolist() == stream[:25].tolist()


def test_a_step_depends_on_seed_and_step_alone() -> None:
    one, other = SampleOrder([50], [1.0], seed=1), SampleOrder([50], [1.0], seed=1)
    for step in (40, 3, 17, 3):
        assert one.batch(step, 12).tolist() == other.batch(step, 12).tolist()
    assert SampleOrder([50], [1.0], seed=2).batch(3, 12).tolist() != one.batch(3, 12).tolist()


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_any_number_of_ranks_shares_the_same_global_batch(num_ranks: int) -> None:
    rows = SampleOrder([33], [1.0], seed=0).batch(5, 16)
    parts = [rank_slice(rows, rank, num_ranks) for rank in range(num_ranks)]
    assert np.concatenate(parts).tolist() == rows.tolist()
    assert {len(part) for part in parts} == {16 // num_ranks}


def test_steps_of_epochs_rounds_up() -> None:
    order = SampleOrder([10], [1.0], seed=0)
    assert [order.steps_of(epochs, 4) for epochs in (1, 2, 0.4, 0.5)] == [3, 5, 1, 2]


SOURCES = st.lists(st.tuples(st.integers(1, 40), st.floats(0.1, 3.0)), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(sources=SOURCES, seed=st.integers(0, 2**63 - 1), number=st.integers(0, 5))
def test_an_epoch_shows_each_row_mix_weight_times(sources: list[tuple[int, float]], seed: int, number: int) -> None:
    counts, weights = [count for count, _ in sources], [weight for _, weight in sources]
    order = SampleOrder(counts, weights, seed)
    frequencies = (
        np.bincount(order.epoch(number), minlength=sum(counts)) if order.rows_per_epoch else np.zeros(sum(counts))
    )
    for part, (count, weight) in zip(np.split(frequencies, np.cumsum(counts)[:-1]), sources, strict=True):
        assert part.sum() == round(weight * count)
        assert part.max() - part.min() <= 1


@settings(max_examples=60, deadline=None)
@given(
    sources=SOURCES.filter(lambda sources: any(round(count * weight) for count, weight in sources)),
    seed=st.integers(0, 2**63 - 1),
    shares=st.integers(1, 4),
    first=st.integers(0, 30),
)
def test_ranks_and_restarts_see_the_same_stream(
    sources: list[tuple[int, float]], seed: int, shares: int, first: int
) -> None:
    """Batches are the epochs one after another, whoever takes which part and wherever a run begins again."""
    counts, weights = [count for count, _ in sources], [weight for _, weight in sources]
    order, global_batch, steps = SampleOrder(counts, weights, seed), 4 * shares, 4
    epochs = -(-(first + steps) * global_batch // order.rows_per_epoch)
    stream = np.concatenate([SampleOrder(counts, weights, seed).epoch(number) for number in range(epochs)])
    resumed = SampleOrder(counts, weights, seed)
    for step in range(first, first + steps):
        expected = stream[step * global_batch : (step + 1) * global_batch].tolist()
        for num_ranks in (1, 2, 4):
            parts = [rank_slice(resumed.batch(step, global_batch), rank, num_ranks) for rank in range(num_ranks)]
            assert np.concatenate(parts).tolist() == expected
        assert order.batch(step, global_batch).tolist() == expected
