"""Ask people which of several systems' predictions is best, blind: make a study, serve it, report it."""

from jobs.study.job import main

__all__ = ["main"]
