"""Bound the time that the regular expressions of an adapter take, before PEFT matches them in this process.

Python's ``re`` cannot be interrupted, and a short expression such as ``(a+)+$`` may run for years: it is tried on the
module names by another process first, which can be ended. What the expressions select is not known here.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from wm.errors import InputError

MAX_MATCH_S = 20.0
"""Seconds for all expressions of an adapter on all module names, the start of a process included."""
_REPEATS = frozenset("*+{")
_MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    for wrapped in (f"(?:{pattern})\\Z", rf"(.*\\.)?({pattern})$", rf".*\\.{pattern}\\.(\\d+)\\."):
        try:
            compiled = re.compile(wrapped)
        except (re.error, OverflowError, RecursionError):
            continue
        for name in names:
            compiled.match(name)
"""


def check_patterns(config: object, names: Sequence[str], file: Path, *, max_match_s: float = MAX_MATCH_S) -> None:
    """Refuse a PEFT configuration whose regular expressions take too long on a model's module names.

    Args:
        config: A configuration of PEFT, or its values by key.
        names: Names of the base's modules.
        file: Named in the error.
        max_match_s: Seconds that they may take together.

    Raises:
        InputError: They are not done in time. What is no regular expression is left to PEFT, which says so.
    """
    # Without a repeat the time is bounded by the length; most adapters list plain names and need no process.
    patterns = [pattern for pattern in _iter_patterns(config) if _REPEATS & set(pattern)]
    if not patterns:
        return
    # Isolated, and without site packages, which take long to start.
    command = [sys.executable, "-I", "-S", "-c", _MATCH]
    try:
        subprocess.run(
            command,
            input=json.dumps([patterns, list(names)]).encode(),
            capture_output=True,
            check=False,
            timeout=max_match_s,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"{file}: the regular expression {patterns[0]!r:.80} (or another of {len(patterns)}) takes more than "
            f"{max_match_s:g} s on the base's layer names, expected names or a simpler expression"
        ) from error


def _iter_patterns(config: object) -> Iterator[str]:
    values = config if isinstance(config, dict) else vars(config)
    for key in ("target_modules", "exclude_modules", "layers_pattern", "rank_pattern", "alpha_pattern"):
        value = values.get(key)
        if isinstance(value, str):
            yield value
        # Of lists of targets PEFT compares the names; of these three each entry is an expression.
        elif isinstance(value, dict | list) and key in ("layers_pattern", "rank_pattern", "alpha_pattern"):
            yield from (pattern for pattern in value if isinstance(pattern, str))
