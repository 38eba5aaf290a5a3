"""Run the commands of a study with people by their names: ``wm study make`` and the others.

Knows none of their keys: those are in ``wm study NAME --help``.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from wm.names import hint_nearest

SUBCOMMANDS = {
    "make": "jobs.study.make",
    "serve": "jobs.study.serve",
    "report": "jobs.study.report",
    "export": "jobs.study.export",
    "import": "jobs.study.import_votes",
    "simulate": "jobs.study.simulate",
}
"""Name → module with a class ``Study…Recipe``, a function ``main`` and a docstring that says what it does."""

_SUMMARIES = {
    "make": "choose items of a bench and encode every system's images, so that nothing shows whose they are",
    "serve": "ask people: consent, one page an item, best and worst; votes are kept as they come",
    "report": "mean votes by subset (the paper's table 5) with tests, agreement, win rates and a chart",
    "export": "write the votes as CSV, Parquet, or tasks and answers of Label Studio",
    "import": "take votes in from Label Studio's results, or from an exported file",
    "simulate": "vote as people of known taste would, to see that all of it works before anybody is asked",
}

_EXAMPLE = """\
All of the way:
  wm study make predictions='["runs/evaluate", "data/got"]' triplets=BENCH systems='["GoT", "C-FT", "C-FDM"]' out=STUDY
  wm study serve study=STUDY                      people open the address that it prints
  wm study report study=STUDY reference=C-FDM out=REPORT
  wm paper items='table 5' results='["REPORT"]' out=TABLES
Without people, to try all of it:
  wm study simulate study=STUDY means='{ "GoT" = -0.2, "C-FT" = 0.0, "C-FDM" = 0.2 }' out=VOTES
  wm study report study=STUDY store=VOTES/votes.sqlite reference=C-FDM out=REPORT"""


def describe_subcommands() -> str:
    """Build the text of ``wm study --help``."""
    width = max(map(len, SUBCOMMANDS)) + 2
    lines = ["usage: wm study NAME [recipe.toml] [key=value ...]", ""]
    lines += [f"  {name:{width}}{summary}" for name, summary in _SUMMARIES.items()]
    return "\n".join([*lines, "", _EXAMPLE, "", "wm study NAME --help lists the keys of each."])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names.

    Args:
        argv: Arguments; None: those of this process.

    Returns:
        The command's exit status; 2 for an unknown name.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if name in ("-h", "--help", "help"):
        print(describe_subcommands())
        return 0
    if name not in SUBCOMMANDS:
        hint = hint_nearest(name, SUBCOMMANDS)
        print(f"error: wm study {name!r:.100}; expected one of {', '.join(SUBCOMMANDS)}{hint}", file=sys.stderr)
        return 2
    # Imported when it is called: the server must not wait for what computes figures.
    module = import_module(SUBCOMMANDS[name])
    # Each parses the arguments of this process, as it does under its own name.
    sys.argv = [f"wm study {name}", *rest]
    status: int = module.main()
    return status
