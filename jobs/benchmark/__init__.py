"""Measure this machine: one module a benchmark, one harness for all of them."""

from jobs.benchmark.job import main

__all__ = ["main"]
