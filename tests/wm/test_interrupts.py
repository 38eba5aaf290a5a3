"""Ctrl-C while modules are imported: one line and the shell's status, whatever the import makes of an exception; and a
reader of the output that has left."""

import signal
import subprocess
import sys
import threading

import pytest

from wm.interrupts import exit_on_interrupt, quiet_when_unread

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


UNREAD = """
import os, sys
from wm.interrupts import quiet_when_unread
reader, writer = os.pipe()
os.dup2(writer, 1)
os.close(writer)
os.close(reader)
with quiet_when_unread():
    {body}
print("reached", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("body", "status", "last"),
    [
        ("print('few words: they fail when they are flushed')", 1, ""),
        ("print('many words' * 10000)", 1, ""),
        ("print('help'); sys.exit(0)", 1, ""),
        ("sys.exit(3)", 3, ""),
        ("pass", 0, "reached"),
    ],
)
def test_nobody_reads_the_output_any_more(body, status, last):
    command = [sys.executable, "-c", UNREAD.format(body=body)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.strip().rpartition("\n")[2]) == (status, last)


def test_a_connection_that_broke_is_still_an_error(capsys):
    with pytest.raises(BrokenPipeError), quiet_when_unread():
        raise BrokenPipeError
