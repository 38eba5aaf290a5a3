"""Programs spare the garbage collector what they import; the library leaves its settings alone."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, gc, sys
before = gc.get_threshold()
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # first in, last out
import {package}
print(gc.isenabled(), [after - now for after, now in zip(gc.get_threshold(), before)])
"""


@pytest.mark.parametrize(
    ("package", "more", "is_frozen"), [("jobs", 190, True), ("serve_apps", 190, True), ("wm.config", 0, False)]
)
def test_full_collections_are_rare_in_programs_alone(package: str, more: int, is_frozen: bool) -> None:
    command = [sys.executable, "-c", SCRIPT.format(package=package)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == [f"True [0, 0, {more}]", str(is_frozen)]
