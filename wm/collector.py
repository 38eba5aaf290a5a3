"""Spare Python's garbage collector the objects of imported libraries, which no command ever frees.

torch, transformers and Ray come to 900,000 objects. While they are imported the collector goes through all that there
are again and again, and when the process ends twice more: together 2.3 s of the 5.4 s of CPU time that a replica's
imports took.
"""

import atexit
import gc
import sys

_YOUNG, _MIDDLE, _ = gc.get_threshold()
_FULL = 200
"""Collections of younger objects between two of all objects, of which Python's own default is 10. Once the imports are
done it changes little: Python in any case waits until a quarter of the objects are new
(https://devguide.python.org/internals/garbage-collector/#collecting-the-oldest-generation)."""


def spare_imports() -> None:
    """Let full collections be rarer in this process, and none search what is there when it ends.

    For programs, not for the library: it changes a setting of the process, not of a module.
    """
    gc.set_threshold(_YOUNG, _MIDDLE, _FULL)
    atexit.register(_freeze)


def _freeze() -> None:
    """Let the last collections, those of the interpreter's end, pass over all objects."""
    # nanobind, with which DuckDB is bound to Python, would report each object that is not freed.
    if "_duckdb" not in sys.modules:
        gc.freeze()
