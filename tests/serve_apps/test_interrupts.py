"""Signals of a server: the first ends it, in the middle of nothing, and those after it change nothing."""

import os
import signal

import pytest
from ray._private import utils

from serve_apps.interrupts import SIGNALS, Interrupts


@pytest.fixture(autouse=True)
def handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_interrupts_and_those_after_it_do_not(number):
    interrupts = Interrupts()
    interrupts.install()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    for again in SIGNALS:
        os.kill(os.getpid(), again)


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_held_is_done_to_its_end(number):
    interrupts, steps = Interrupts(), []
    with pytest.raises(KeyboardInterrupt), interrupts.hold():
        os.kill(os.getpid(), number)
        steps.append("end")
    assert steps == ["end"]


def test_handlers_that_ray_sets_while_it_starts_are_not_set():
    interrupts, set_sigterm_handler = Interrupts(), utils.set_sigterm_handler
    with interrupts.hold():
        utils.set_sigterm_handler(lambda number, frame: os._exit(1))
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as its native code does
    assert utils.set_sigterm_handler is set_sigterm_handler
    for number in SIGNALS:
        assert signal.getsignal(number) == interrupts._interrupt


def test_an_error_while_held_is_the_one_that_is_raised():
    interrupts = Interrupts()
    with pytest.raises(ValueError, match="no"), interrupts.hold():
        os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("no")


def test_signals_that_are_ignored_from_the_start_stay_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    interrupts = Interrupts()
    interrupts.install()
    os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)
