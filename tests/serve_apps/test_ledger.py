"""The ledger of the keys' limits against one bucket that all requests pass through, as one process would have it."""

import random

import pytest

from serve_apps.ledger import HOLDER_S, MAX_AHEAD_SHARE, Claim, Ledger

KEY = "0" * 64


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


def ask(ledger, holder, *, slots=0, returned=0, wants=0, wants_slots=0, per_minute=60, at_once=8):
    (grant,) = ledger.exchange(holder, [Claim(KEY, per_minute, at_once, slots, returned, wants, wants_slots)])
    return grant


def test_tokens_come_ahead_and_leave_the_others_their_share(clock):
    ledger = Ledger(clock)
    first = ask(ledger, "a", wants=1, wants_slots=1)
    assert (first.tokens, first.slots, first.remaining, first.num_holders) == (
        1 + int(60 * MAX_AHEAD_SHARE),
        1,
        56.0,
        1,
    )
    assert ask(ledger, "b", wants=40).tokens == 43
    # 13 are left: of two processes each may take a quarter of what is over.
    last = ask(ledger, "a", slots=1, wants=5)
    assert (last.tokens, last.num_holders) == (5 + (13 - 5) // 4, 2)
    assert ask(ledger, "b", wants=40).tokens == int(last.remaining), "what there is, and none ahead"


def test_what_comes_back_can_be_had_again_but_not_more(clock):
    ledger = Ledger(clock)
    granted = ask(ledger, "a", wants=60)
    assert (granted.tokens, granted.remaining) == (60, 0.0)
    assert ask(ledger, "b", wants=1).tokens == 0
    assert ask(ledger, "a", returned=20).remaining == 20.0
    assert ask(ledger, "a", returned=50).remaining == 60.0, (
        "40 were left with it: a process cannot return what it has not"
    )
    clock.now_s = 1000.0
    assert ask(ledger, "b").remaining == 60.0, "no more than a minute's is saved up"


def test_slots_are_freed_by_what_a_process_says_or_by_silence(clock):
    ledger = Ledger(clock)
    assert ask(ledger, "a", wants_slots=6).slots == 6
    assert ask(ledger, "b", wants_slots=6).slots == 2
    assert ask(ledger, "b", slots=2, wants_slots=1).slots == 0
    ask(ledger, "a", slots=1)
    assert ask(ledger, "b", slots=2, wants_slots=9).slots == 5
    clock.now_s = HOLDER_S + 1
    assert ask(ledger, "c", wants_slots=9).slots == 8, "a and b are silent: they are dead"


def test_a_new_ledger_learns_the_slots_in_use(clock):
    ledger = Ledger(clock)
    ask(ledger, "a", slots=7)
    assert ask(ledger, "b", wants_slots=3).slots == 1


def test_limits_that_change_hold_from_the_next_claim(clock):
    ledger = Ledger(clock)
    ask(ledger, "a", wants=1)
    assert ask(ledger, "a", per_minute=10, wants=30).tokens == 10
    assert ask(ledger, "a", at_once=2, wants_slots=5).slots == 2


@pytest.mark.parametrize("seed", range(5))
def test_no_more_pass_than_through_one_bucket(clock, seed):
    """However tokens are leased, returned and lost: in no span of time more than one bucket lets through."""
    chance, ledger, limit = random.Random(seed), Ledger(clock), 120
    held, passed = dict.fromkeys("abcde", 0), []
    for _ in range(3000):
        clock.now_s += chance.expovariate(20)
        name = chance.choice("abcde")
        if held[name]:
            held[name] -= 1
            passed.append(clock.now_s)
        elif chance.random() < 0.9:
            held[name] += ask(ledger, name, wants=chance.randint(1, 4), per_minute=limit).tokens
        if chance.random() < 0.05:
            returned, held[name] = held[name], 0
            # Of some returns the message is lost.
            if chance.random() < 0.8:
                ask(ledger, name, returned=returned, per_minute=limit)
    # Tokens wait at a process: what is passed between two moments may have been leased a little before.
    most = limit + int(limit * MAX_AHEAD_SHARE) * len(held) + 4 * len(held)
    assert len(passed) <= limit + clock.now_s * limit / 60
    for first, start_s in enumerate(passed):
        last = next((i for i in range(first, len(passed)) if passed[i] > start_s + 10), len(passed))
        assert last - first <= most + 10 * limit / 60
    assert len(passed) >= 0.5 * (limit + clock.now_s * limit / 60)
