"""What a stopping server prints: its own lines and its own errors, and nothing that Ray says of itself."""

import subprocess
import sys
import textwrap

import pytest

from serve_apps.quiet import is_rays

# Lines that Ray 2.60 printed to terminals of this project.
RAYS = [
    "\x1b[33m(raylet)\x1b[0m Task ServeController.graceful_shutdown failed. There are infinite retries remaining, so "
    "the task will be retried. Error: The actor is dead because it was killed by `ray.kill`.",
    "(raylet) [2026-11-28 03:25:07,123 E 10308 10400] (raylet) node_manager.cc:3041: 1 Workers killed",
    "[2026-11-28 03:25:07,123 E 10308 10400] core_worker.cc:720: Failed to report",
    "[2026-11-28 03:25:07,123 W 10308 10400] (python-core-driver) reference_count.cc:1",
    "\x1b[36m(autoscaler +3s)\x1b[0m Tip: use `ray status`",
]
OURS = [
    "stopping",
    "error: cannot listen on 127.0.0.1 port 80: Permission denied; give another port=",
    "Traceback (most recent call last):",
    '  File "a.py", line 3, in stop',
    "RuntimeError: (raylet) is part of it",
    "[2026-11-28] a line of a user's own",
    "WARNING wm.models: [2026-11-28 03:25:07,123 E 10308 10400]",
]


@pytest.mark.parametrize("line", RAYS)
def test_lines_of_rays(line):
    assert is_rays(line.encode() + b"\n")


@pytest.mark.parametrize("line", OURS)
def test_lines_of_our_own(line):
    assert not is_rays(line.encode() + b"\n")


def printed_by(body):
    """Standard output, error and exit code of a process with the module's functions."""
    code = "import os, sys, threading\nfrom serve_apps.quiet import *\n" + textwrap.dedent(body)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout, done.stderr, done.returncode


def test_errors_at_the_end_are_printed_and_rays_lines_are_not():
    lines = "".join(f"os.write(2, {line!r}.encode() + b'\\n')\n" for line in [*RAYS, *OURS[:2]])
    out, err, code = printed_by(
        f"RAYS, OURS = {RAYS!r}, {OURS!r}\n"
        "print('before')\n"
        "with quiet_end():\n"
        "    print(RAYS[0])\n"
        "    print('an error of ours', file=sys.stderr)\n"
        + textwrap.indent(lines, "    ")
        + "    raise ValueError('what went wrong')\n"
    )
    assert out == "before\n" and code == 1
    first, second, third, *trace = err.splitlines()
    assert [first, second, third] == ["an error of ours", *OURS[:2]]
    assert trace[0].startswith("Traceback") and trace[-1] == "ValueError: what went wrong"


def test_what_rays_threads_print_is_dropped_and_nothing_else():
    out, err, code = printed_by(
        """
        def speak():
            print(threading.current_thread().name, "out")
            print(threading.current_thread().name, "err", file=sys.stderr)

        with without_ray_threads():
            for name in ("ray_listen_error_messages", "ray_print_logs", "ours", "array"):
                thread = threading.Thread(target=speak, name=name)
                thread.start()
                thread.join()
            speak()
            assert sys.stdout.fileno() == 1 and not sys.stdout.isatty()
        assert sys.stdout is sys.__stdout__
        """
    )
    assert out.splitlines() == ["ours out", "array out", "MainThread out"] and code == 0
    assert err.splitlines() == ["ours err", "array err", "MainThread err"]


def test_the_names_of_rays_threads_are_rays():
    """Another version of Ray may name them otherwise: then this fails, not the terminal."""
    from pathlib import Path

    from ray._private import worker

    from serve_apps.quiet import RAY_THREADS

    source = Path(worker.__file__).read_text()
    for name in RAY_THREADS:
        assert f'name="{name}"' in source
