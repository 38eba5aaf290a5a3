"""Ctrl-C while modules are imported: one line and the shell's status, whatever the import makes of an exception."""

import signal
import subprocess
import sys
import threading

import pytest

from wm.interrupts import exit_on_interrupt

SWALLOWED = """
import os, signal
from wm.interrupts import exit_on_interrupt
with exit_on_interrupt():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        pass
print("not reached")
"""


def test_an_interrupt_ends_an_import_that_swallows_exceptions():
    done = subprocess.run([sys.executable, "-c", SWALLOWED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_interrupts_are_as_they_were_afterwards():
    before = signal.getsignal(signal.SIGINT)
    with exit_on_interrupt():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(ImportError), exit_on_interrupt():
        raise ImportError
    assert signal.getsignal(signal.SIGINT) is before


def test_ignored_interrupts_stay_ignored_and_threads_set_none(monkeypatch):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with exit_on_interrupt():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    handlers = []

    def enter():
        with exit_on_interrupt():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [before]
